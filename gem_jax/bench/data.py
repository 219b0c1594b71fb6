"""Batches to measure speed on: any schema, seeded, with the sizes of real ones; there is nothing to learn in them.

A benchmark's shapes must not change when the synthetic stream does, so this generator stands alone. Its numbers are pinned by a
digest in the tests.

Shape letters: n examples, E events.
"""

import dataclasses

import numpy as np

from gem_jax.data.batch import Examples, Histories
from gem_jax.data.identity import digest
from gem_jax.data.schema import Schema, Sequence
from gem_jax.data.source import Splits, numbered
from gem_jax.data.synthetic import hashing
from gem_jax.errors import UserError

BASE_RATE = 0.05
"""Of every label."""

DAY_S = 86_400


@dataclasses.dataclass(frozen=True, kw_only=True)
class BenchDataConfig:
    """Random examples of a schema: ids log-uniform (Zipf's law with exponent 1), those of users uniform; labels Bernoulli."""

    columns: Schema
    """What the examples are."""
    lengths: dict[str, tuple[int, ...]]
    """Source -> lengths of its histories in events, each as likely as the others; one that is likelier stands more than once."""
    examples: int = 1_000_000
    """Of the training part; the test part has a hundredth of it."""
    seed: int = 0
    """Another seed, other numbers of the same distribution."""

    def __post_init__(self):
        sources = {s.name: s.max_len for s in self.columns.sequences}
        if sources.keys() != self.lengths.keys():
            raise UserError(
                f"data.lengths names {sorted(self.lengths)} and the sources are {sorted(sources)}; name each once"
            )
        for name, values in self.lengths.items():
            if not values or min(values) < 0 or max(values) > sources[name]:
                raise UserError(
                    f"data.lengths.{name}={values} must be numbers from 0 to the source's max_len of {sources[name]}"
                )
        if self.seed < 0:
            raise UserError(f"data.seed={self.seed} must not be negative")
        if self.examples < 100:
            raise UserError(f"data.examples={self.examples} must be at least 100")

    def schema(self) -> Schema:
        """The schema of the examples."""
        return self.columns

    def build(self) -> Splits:
        """Both parts; nothing is made before it is read."""
        return Splits(
            train=BenchSource(self, "train", self.examples), test=BenchSource(self, "test", self.examples // 100)
        )


class BenchSource:
    """A part of the data; example i is a pure function of (seed, part, i)."""

    def __init__(self, config: BenchDataConfig, part: str, length: int):
        self.schema = config.columns
        self._config, self._part, self._length = config, part, length

    def __len__(self) -> int:
        return self._length

    def identity(self) -> str:
        """Of the config and the part."""
        return digest(repr(self._config), self._part)

    def read(self, indices: np.ndarray) -> Examples:
        """Examples at `indices` (int64 [n]), in that order."""
        schema, n = self.schema, len(indices)
        ids = {f.name: self._ids(f"id {f.name}", f.table, f.role, indices, f.max_ids) for f in schema.categoricals}
        uniform = self._uniform("label", indices, len(schema.tasks))
        return Examples(
            ids=ids,
            dense=self._normal("dense", indices, len(schema.dense)),
            vectors={v.name: self._normal(f"vector {v.name}", indices, v.dim) for v in schema.vectors},
            sequences={s.name: self._histories(s, indices) for s in schema.sequences},
            labels=(uniform < BASE_RATE).astype(np.float32),
            domain=(self._uniform("domain", indices, 1)[:, 0] * len(schema.domains)).astype(np.int32),
            weight=np.ones(n, np.float32),
            user=ids["user"][:, 0].astype(np.int64) if "user" in ids else np.full(n, -1, np.int64),
            true_probability=np.full((n, len(schema.tasks)), BASE_RATE, np.float32),
            example_id=numbered(self._part, indices),
            time_s=indices.astype(np.int64),
        )

    def _histories(self, source: Sequence, indices: np.ndarray) -> Histories:
        choices = np.array(self._config.lengths[source.name], np.int32)
        place = self._uniform(f"length {source.name}", indices, 1)[:, 0]
        lengths = choices[(place * len(choices)).astype(np.int64)]
        keep = np.arange(source.max_len) < lengths[:, None]
        ids = {
            a.name: self._ids(f"event {source.name} {a.name}", a.table, "event", indices, source.max_len)[keep]
            for a in source.attributes
        }
        gaps = 1 + (self._uniform(f"age {source.name}", indices, source.max_len) * DAY_S).astype(np.int64)
        gaps[~keep] = 0
        ages = np.cumsum(gaps[:, ::-1], axis=1)[:, ::-1]  # the newest event last
        return Histories(ids=ids, age_s=ages[keep].astype(np.int32), lengths=lengths)

    def _ids(self, what: str, table: str, role: str, indices: np.ndarray, count: int) -> np.ndarray:
        """int32 [n, count]."""
        rows, uniform = self.schema.table(table).rows, self._uniform(what, indices, count)
        ids = uniform * rows if role == "user" else np.minimum((rows + 1.0) ** uniform, rows) - 1
        return ids.astype(np.int32)

    def _counters(self, indices: np.ndarray, count: int) -> np.ndarray:
        return indices[:, None] * count + np.arange(count)

    def _key(self, what: str) -> np.uint64:
        return hashing.stream(self._config.seed, f"bench {self._part} {what}")

    def _uniform(self, what: str, indices: np.ndarray, count: int) -> np.ndarray:
        return hashing.uniform(self._key(what), self._counters(indices, count))

    def _normal(self, what: str, indices: np.ndarray, count: int) -> np.ndarray:
        return hashing.normal(self._key(what), self._counters(indices, count)).astype(np.float32)

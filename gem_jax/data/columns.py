"""Slicing, joining and gathering of `Examples`, and a source that holds them in memory.

Shape letters: n examples, E events.
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from gem_jax.data.batch import Examples, Histories
from gem_jax.data.identity import digest
from gem_jax.data.schema import Schema


def _transform(
    parts: Sequence[Examples],
    column: Callable[[list[np.ndarray]], np.ndarray],
    histories: Callable[[list[Histories]], Histories],
) -> Examples:
    """New examples: `column` makes each per-example column from the parts' columns, `histories` each sequence."""
    first = parts[0]

    def each(get: Callable[[Examples], np.ndarray]) -> np.ndarray:
        return column([get(p) for p in parts])

    return Examples(
        ids={name: column([p.ids[name] for p in parts]) for name in first.ids},
        dense=each(lambda p: p.dense),
        vectors={name: column([p.vectors[name] for p in parts]) for name in first.vectors},
        sequences={name: histories([p.sequences[name] for p in parts]) for name in first.sequences},
        labels=each(lambda p: p.labels),
        domain=each(lambda p: p.domain),
        weight=each(lambda p: p.weight),
        user=each(lambda p: p.user),
        example_id=each(lambda p: p.example_id),
        time_s=each(lambda p: p.time_s),
        true_probability=each(lambda p: p.true_probability),
        training={name: column([p.training[name] for p in parts]) for name in first.training},
    )


def slice_examples(examples: Examples, start: int, stop: int) -> Examples:
    """Examples `start .. stop`, as views of the columns."""

    def histories(parts: list[Histories]) -> Histories:
        (h,) = parts
        first = int(h.lengths[:start].sum())
        last = first + int(h.lengths[start:stop].sum())
        return Histories(
            ids={name: ids[first:last] for name, ids in h.ids.items()},
            age_s=h.age_s[first:last],
            lengths=h.lengths[start:stop],
        )

    return _transform([examples], lambda columns: columns[0][start:stop], histories)


def join_examples(parts: Sequence[Examples]) -> Examples:
    """The parts one after the other; one part is returned as it is."""
    if len(parts) == 1:
        return parts[0]

    def histories(hs: list[Histories]) -> Histories:
        return Histories(
            ids={name: np.concatenate([h.ids[name] for h in hs]) for name in hs[0].ids},
            age_s=np.concatenate([h.age_s for h in hs]),
            lengths=np.concatenate([h.lengths for h in hs]),
        )

    return _transform(parts, np.concatenate, histories)


def take_examples(examples: Examples, indices: np.ndarray) -> Examples:
    """Examples at `indices` [n], in that order."""

    def histories(parts: list[Histories]) -> Histories:
        (h,) = parts
        ends = np.cumsum(h.lengths, dtype=np.int64)
        lengths = h.lengths[indices]
        rows = ragged_ranges(ends[indices] - lengths, lengths)
        return Histories(ids={name: ids[rows] for name, ids in h.ids.items()}, age_s=h.age_s[rows], lengths=lengths)

    return _transform([examples], lambda columns: columns[0][indices], histories)


def ragged_ranges(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """`starts[i], starts[i] + 1, ..., starts[i] + lengths[i] - 1` for every i in turn, int64 [sum(lengths)]."""
    before = np.cumsum(lengths, dtype=np.int64) - lengths
    return np.arange(int(lengths.sum()), dtype=np.int64) + np.repeat(starts - before, lengths)


def empty_examples(schema: Schema, count: int = 0) -> Examples:
    """`count` examples like a batch's empty slots, in the columns of `schema`: of weight 0, everything else absent."""
    zeros = np.zeros(count, np.int32)
    unknown = np.full(count, -1, np.int64)
    unobserved = np.full((count, len(schema.tasks)), np.nan, np.float32)
    no_events = np.zeros(0, np.int32)
    return Examples(
        ids={f.name: np.full((count, f.max_ids), -1, np.int32) for f in schema.categoricals},
        dense=np.zeros((count, len(schema.dense)), np.float32),
        vectors={v.name: np.zeros((count, v.dim), np.float32) for v in schema.vectors},
        sequences={
            s.name: Histories(ids={a.name: no_events for a in s.attributes}, age_s=no_events, lengths=zeros)
            for s in schema.sequences
        },
        labels=unobserved,
        domain=zeros,
        weight=np.zeros(count, np.float32),
        user=unknown,
        example_id=unknown,
        time_s=unknown,
        true_probability=unobserved,
        training={t.name: np.zeros((count, t.dim), np.float32) for t in schema.training},
    )


@dataclasses.dataclass(kw_only=True)
class MemorySource:
    """A `Source` whose examples fit in memory."""

    schema: Schema
    examples: Examples

    def __len__(self) -> int:
        return len(self.examples)

    def read(self, indices: np.ndarray) -> Examples:
        """Examples at `indices`, in that order."""
        return take_examples(self.examples, indices)

    def identity(self) -> str:
        """Digest of all columns."""
        return digest(self.examples)

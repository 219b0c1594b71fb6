"""Embedding tables as one array, looked up once per step, updated only where they were touched.

Tables of one width are stacked into a single float32 array [V, D] (fewer gathers, one sort for the whole update). The training
step differentiates with respect to the *looked-up rows* [R, D], never the table, so no dense [V, D] gradient exists.

Shape letters: B examples, T packed events, R looked-up ids of a batch (all features together), V stacked rows, D width.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from gem_jax.data.batch import Batch
from gem_jax.data.schema import Schema


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Embedded:
    """A batch's features as vectors.

    features: categorical name -> [B, D], the mean over the ids present (0 where none is);
    events: sequence -> attribute -> [T, D], 0 in padding rows and where the id is absent.
    """

    features: dict[str, Array]
    events: dict[str, dict[str, Array]]


class TableCollection:
    """Where each of a schema's tables lives in the stacked array, and how a batch's ids become vectors.

    Args:
      schema: names the tables and which feature reads which.
      dim: width D of every table.
    """

    def __init__(self, schema: Schema, dim: int):
        self.schema = schema
        self.dim = dim
        self.first_row: dict[str, int] = {}
        self.num_rows = 0
        for table in schema.tables:
            self.first_row[table.name] = self.num_rows
            self.num_rows += table.rows
        if self.num_rows >= 2**31:
            raise ValueError(f"the tables hold {self.num_rows} rows together; one device addresses at most 2^31 - 1")

    def init(self, key: jax.Array, std: float) -> Float[Array, "V D"]:
        """Rows drawn from N(0, std^2)."""
        return std * jax.random.normal(key, (self.num_rows, self.dim), jnp.float32)

    def ids(self, batch: Batch) -> Int[Array, " R"]:
        """Every id of the batch as a row of the stacked array, -1 where absent; the order `split` expects."""
        parts = [self._shift(batch.ids[f.name], f.table).reshape(-1) for f in self.schema.categoricals]
        for sequence in self.schema.sequences:
            events = batch.sequences[sequence.name]
            parts += [self._shift(events.ids[a.name], a.table) for a in sequence.attributes]
        return jnp.concatenate(parts)

    def _shift(self, ids: Array, table: str) -> Array:
        return jnp.where(ids >= 0, ids + self.first_row[table], -1)

    def split(self, rows: Float[Array, "R D"], batch: Batch) -> Embedded:
        """The looked-up rows, handed to the features they belong to; multi-valued features are averaged."""
        start = 0
        features = {}
        for feature in self.schema.categoricals:
            ids = batch.ids[feature.name]
            block = rows[start : start + ids.size].reshape(*ids.shape, rows.shape[-1])
            start += ids.size
            present = jnp.maximum((ids >= 0).sum(axis=1), 1).astype(block.dtype)
            features[feature.name] = block.sum(axis=1) / present[:, None]
        events: dict[str, dict[str, jax.Array]] = {}
        for sequence in self.schema.sequences:
            num_rows = batch.sequences[sequence.name].age_s.shape[0]
            events[sequence.name] = {}
            for attribute in sequence.attributes:
                events[sequence.name][attribute.name] = rows[start : start + num_rows]
                start += num_rows
        return Embedded(features=features, events=events)


def lookup(table: Float[Array, "V D"], ids: Int[Array, " R"]) -> Float[Array, "R D"]:
    """Rows of the stacked table, zeros for id -1."""
    return table.at[ids].get(mode="fill", fill_value=0.0, wrap_negative_indices=False)

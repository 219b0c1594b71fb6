"""Which rows of which table a batch looks up, and how the rows become its features' vectors.

The training step differentiates with respect to the *looked-up rows* [R, D], never a table, so no dense [V, D] gradient exists.

Shape letters: B examples, T packed events, R looked-up ids of a batch (all features together), V stacked rows, D width.
"""

import dataclasses
import math

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
    """The lookups of a schema's features, in a fixed order: categoricals, then the attributes of each sequence.

    Args:
      schema: names the tables and which feature reads which.
      dim: width D of every table.
    """

    def __init__(self, schema: Schema, dim: int):
        self.schema = schema
        self.dim = dim

    def ids(self, batch: Batch) -> list[tuple[str, Int[Array, " r"]]]:
        """(table, ids with -1 where absent) of each feature in turn; their sizes add up to R."""
        parts = [(f.table, batch.ids[f.name].reshape(-1)) for f in self.schema.categoricals]
        for sequence in self.schema.sequences:
            events = batch.sequences[sequence.name]
            parts += [(a.table, events.ids[a.name]) for a in sequence.attributes]
        return parts

    def num_lookups(self, batch: Batch) -> int:
        """R of a batch, or of its shapes."""
        features = sum(math.prod(batch.ids[f.name].shape) for f in self.schema.categoricals)
        return features + sum(len(s.attributes) * batch.sequences[s.name].age_s.shape[0] for s in self.schema.sequences)

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

"""Features read by the table kernels from rows that all lie here: bags are pooled as they are read, so nothing of [R, D] is made.

Shape letters: B examples and T packed events of a device, R looked-up ids, L rows of the shard, D columns.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from gem_jax.data.batch import Batch
from gem_jax.data.schema import Schema
from pallas_kernels import embedding


def read_pooled(
    schema: Schema, weight: Float[Array, "L D"], slots: Int[Array, " R"], batch: Batch
) -> tuple[dict[str, Array], dict[str, dict[str, Array]]]:
    """(features [B, D], events [T, D] by sequence) of a batch, as `tables.Embedded` has them.

    Args:
      schema: names the features.
      weight: rows of the shard.
      slots: of `tables.requests_of`'s ids; -1 where absent.
      batch: whose shapes say which slots are whose.
    """
    features, start = {}, 0
    for feature in schema.categoricals:
        bags, size = batch.ids[feature.name].shape
        own = slots[start : start + bags * size]
        start += bags * size
        ids = own.reshape(bags, size) if size > 1 else own
        features[feature.name] = embedding.lookup(weight, ids, pooling="mean", dtype=jnp.float32)
    rows = embedding.lookup(weight, slots[start:], dtype=jnp.float32)  # of all sequences at once
    events: dict[str, dict[str, Array]] = {}
    start = 0
    for sequence in schema.sequences:
        length = batch.sequences[sequence.name].age_s.shape[0]
        events[sequence.name] = {}
        for attribute in sequence.attributes:
            events[sequence.name][attribute.name] = rows[start : start + length]
            start += length
    return features, events

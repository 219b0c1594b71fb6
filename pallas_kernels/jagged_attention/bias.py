"""HSTU's additive relative bias over positions and times (arXiv 2402.17152, section 3.2)."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

# Width of one time bucket in natural-log units: HSTU's public code divides log|dt| by log10(2).
BUCKET_WIDTH = 0.301


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RelativeBias:
    """rab^{p,t}: added to `scale * q k^T` before the activation; the same for every head.

    Attributes:
      position: float [2 * max_len - 1]; entry `max_len - 1 + j - i` for query i and key j.
      time: float [num_buckets + 1]; entry `min(floor(log(max(1, |dt|)) / 0.301), num_buckets)` with
        `dt = timestamp[i + 1] - timestamp[j]`: the query row uses the time of the event that it
        predicts, and the last row of a sequence, which has no next event, its own.
      timestamps: int32 [T], packed like q, in any unit (HSTU: seconds).
    """

    position: Any  # arrays; transformations also put cotangents and tracers there
    time: Any
    timestamps: Any


def position_bias(bias: RelativeBias, query, key, max_len: int):
    """`bias.position` for positions query and key (broadcast)."""
    return bias.position[jnp.clip(max_len - 1 + key - query, 0, 2 * max_len - 2)]


def time_bias(bias: RelativeBias, next_time, key_time):
    """`bias.time` for a query's next timestamp and a key's timestamp (broadcast)."""
    dt = jnp.abs(next_time - key_time).astype(jnp.float32)
    bucket = jnp.floor(jnp.log(jnp.maximum(dt, 1.0)) / BUCKET_WIDTH).astype(jnp.int32)
    return bias.time[jnp.clip(bucket, 0, bias.time.shape[0] - 1)]

"""Examples in columns (host, NumPy) and the packed batch of static shape that the model sees.

Shape letters: n examples in a chunk, E events in a chunk, B example slots of a batch, T packed event rows, N tasks.
"""

import dataclasses
from typing import Any

import jax
import numpy as np

START_ALIGNMENT = 8
"""Every packed history starts at a multiple of this many rows (the GPU's TMA copies need it; see `pallas_kernels`)."""

type Array = Any
"""A NumPy array on the host, a jax.Array (or tracer) in the step."""


@dataclasses.dataclass(kw_only=True)
class Histories:
    """Events of one source for n examples, concatenated, oldest first within each example.

    ids: attribute -> int32 [E]; age_s: int32 [E], seconds between the event and the example's time, >= 0;
    lengths: int32 [n], summing to E.
    """

    ids: dict[str, np.ndarray]
    age_s: np.ndarray
    lengths: np.ndarray


@dataclasses.dataclass(kw_only=True)
class Examples:
    """n examples in columns, as a source reads them. Every key is a name of the schema.

    ids: feature -> int32 [n, max_ids], -1 absent; dense: float32 [n, D] in schema order; vectors: name -> float32 [n, dim];
    sequences: name -> Histories; labels: float32 [n, N], NaN unobserved; domain: int32 [n]; weight: float32 [n];
    user: int64 [n], for grouped metrics; true_probability: float32 [n, N], NaN where the data's own truth is unknown.
    """

    ids: dict[str, np.ndarray]
    dense: np.ndarray
    vectors: dict[str, np.ndarray]
    sequences: dict[str, Histories]
    labels: np.ndarray
    domain: np.ndarray
    weight: np.ndarray
    user: np.ndarray
    true_probability: np.ndarray

    def __len__(self) -> int:
        return len(self.domain)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Events:
    """Packed events of one source.

    ids: attribute -> int32 [T], -1 in padding rows; age_s: int32 [T], 0 in padding rows;
    offsets: int32 [B + 1], first row of each example's events, multiples of 8, offsets[B] = end of the last one;
    lengths: int32 [B], events of each example: rows offsets[b] .. offsets[b] + lengths[b], oldest first.
    """

    ids: dict[str, Array]
    age_s: Array
    offsets: Array
    lengths: Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Batch:
    """B example slots of static shape; empty slots have weight 0, ids -1, unobserved labels and no events.

    Fields as in `Examples`, with n = B; `user` stays on the host (`HostColumns`).
    """

    ids: dict[str, Array]
    dense: Array
    vectors: dict[str, Array]
    sequences: dict[str, Events]
    labels: Array
    domain: Array
    weight: Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class HostColumns:
    """What the metrics need of a batch and the device does not: all [B] or [B, N], weight 0 in empty slots.

    num_examples: filled slots; truncated: source -> events dropped because a history was longer than its max_len;
    position: examples of the stream consumed up to and including this batch; imbalance: attention cost of the device that has
    most, over the devices' mean, 1 where there is none.
    """

    labels: np.ndarray
    domain: np.ndarray
    weight: np.ndarray
    user: np.ndarray
    true_probability: np.ndarray
    num_examples: int
    truncated: dict[str, int]
    position: int
    imbalance: float

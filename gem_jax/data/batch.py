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

    Attributes:
      ids: attribute -> int32 [E].
      age_s: int32 [E], seconds between the event and the example's time, >= 0.
      lengths: int32 [n], events of each example, summing to E.
    """

    ids: dict[str, np.ndarray]
    age_s: np.ndarray
    lengths: np.ndarray


@dataclasses.dataclass(kw_only=True)
class Examples:
    """n examples in columns, as a source reads them. Every key is a name of the schema.

    Attributes:
      ids: feature -> int32 [n, max_ids], -1 absent.
      dense: float32 [n, dense features], in schema order.
      vectors: name -> float32 [n, dim].
      sequences: name -> Histories.
      labels: float32 [n, N] from 0 to 1, NaN unobserved.
      domain: int32 [n], place among the schema's domains.
      weight: float32 [n], 0 or more.
      user: int64 [n], for grouped metrics; -1 unknown.
      example_id: int64 [n], 0 or more, unique within a data set (all its parts) and the same whenever the same data is read.
      time_s: int64 [n], when the example happened: Unix seconds, or the data's own clock in seconds; -1 unknown.
      true_probability: float32 [n, N], NaN where the data's own truth is unknown.
      training: training column -> float32 [n, dim], NaN unknown; models never read it.
    """

    ids: dict[str, np.ndarray]
    dense: np.ndarray
    vectors: dict[str, np.ndarray]
    sequences: dict[str, Histories]
    labels: np.ndarray
    domain: np.ndarray
    weight: np.ndarray
    user: np.ndarray
    example_id: np.ndarray
    time_s: np.ndarray
    true_probability: np.ndarray
    training: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.domain)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Events:
    """Packed events of one source.

    Attributes:
      ids: attribute -> int32 [T], -1 in padding rows.
      age_s: int32 [T], 0 in padding rows.
      offsets: int32 [B + 1], first row of each example's events, multiples of 8; offsets[B] is the end of the last one.
      lengths: int32 [B], events of each example: rows offsets[b] .. offsets[b] + lengths[b], oldest first.
    """

    ids: dict[str, Array]
    age_s: Array
    offsets: Array
    lengths: Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Batch:
    """B example slots of static shape; what only the host needs stays there (`HostColumns`).

    Attributes:
      ids: feature -> int32 [B, max_ids], -1 absent and in empty slots.
      dense: float32 [B, dense features], 0 in empty slots.
      vectors: name -> float32 [B, dim], 0 in empty slots.
      sequences: name -> Events, none in empty slots.
      labels: float32 [B, N], NaN unobserved and in empty slots.
      domain: int32 [B], 0 in empty slots.
      weight: float32 [B], 0 in empty slots.
      training: training column -> float32 [B, dim], NaN unknown, 0 in empty slots; objectives read it, models never.
    """

    ids: dict[str, Array]
    dense: Array
    vectors: dict[str, Array]
    sequences: dict[str, Events]
    labels: Array
    domain: Array
    weight: Array
    training: dict[str, Array] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class HostColumns:
    """What metrics and scores need of a batch and the device does not.

    Attributes:
      labels: float32 [B, N], NaN unobserved and in empty slots.
      domain: int32 [B], 0 in empty slots.
      weight: float32 [B], 0 in empty slots.
      user: int64 [B], -1 unknown and in empty slots.
      example_id: int64 [B], -1 in empty slots.
      time_s: int64 [B], -1 unknown and in empty slots.
      true_probability: float32 [B, N], NaN unknown and in empty slots.
      num_examples: filled slots.
      slots: int64 [num_examples], the filled slots, in the order that their examples have in the stream.
      truncated: source -> events dropped because a history was longer than its max_len.
      position: examples of the stream consumed up to and including this batch.
      imbalance: attention cost of the device that has most, over the devices' mean; 1 where there is none.
    """

    labels: np.ndarray
    domain: np.ndarray
    weight: np.ndarray
    user: np.ndarray
    example_id: np.ndarray
    time_s: np.ndarray
    true_probability: np.ndarray
    num_examples: int
    slots: np.ndarray
    truncated: dict[str, int]
    position: int
    imbalance: float

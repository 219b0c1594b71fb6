"""Embeddings in fewer bits: each row with a scale of its own, as int8 or as two int4 a byte.

A row x of largest magnitude m is kept as round(x L / m) with L = 127 or 7, so that no component is off by more than m / (2 L).
LoopFM (arXiv 2605.29280) keeps its tanh-bounded embeddings in int4 on one fixed grid; a scale a row needs no bound on what a
teacher gives. What the rounding costs is measured where labels are written (`Loss`) and stands in the store's manifest.

Shape letters: n rows, d components, w columns as stored.
"""

import dataclasses
from typing import Literal

import numpy as np
from jaxtyping import Float, Shaped

Storage = Literal["float32", "float16", "int8", "int4"]
"""In what an embedding is kept."""

_LEVELS = {"int8": 127, "int4": 7}
_INT4_ZERO = 8
"""What a component of zero is as one of the sixteen values of four bits."""


def compress(
    values: Float[np.ndarray, "n d"], storage: Storage
) -> tuple[Shaped[np.ndarray, "n w"], Float[np.ndarray, " n"] | None]:
    """Finite float32 rows as they are stored, and each row's scale where the storage has one.

    float16 takes magnitudes above 65,504 as that. int4 keeps component 2 k in the low and 2 k + 1 in the high four bits of byte k.
    """
    if storage == "float32":
        return values.astype(np.float32), None
    if storage == "float16":
        largest = float(np.finfo(np.float16).max)
        return np.clip(values, -largest, largest).astype(np.float16), None
    levels = _LEVELS[storage]
    scale = (np.abs(values).max(axis=1, initial=0.0) / levels).astype(np.float32)
    steps = np.rint(values / np.where(scale > 0, scale, 1)[:, None]).clip(-levels, levels).astype(np.int8)
    if storage == "int8":
        return steps, scale
    nibbles = (steps + _INT4_ZERO).astype(np.uint8)
    if nibbles.shape[1] % 2:
        nibbles = np.pad(nibbles, ((0, 0), (0, 1)), constant_values=_INT4_ZERO)
    return nibbles[:, 0::2] | (nibbles[:, 1::2] << 4), scale


def expand(
    stored: Shaped[np.ndarray, "n w"], scale: Float[np.ndarray, " n"] | None, storage: Storage, dim: int
) -> Float[np.ndarray, "n d"]:
    """Rows of `dim` components in float32 from what `compress` made of them."""
    if storage == "int4":
        nibbles = np.stack([stored & 15, stored >> 4], axis=2).reshape(len(stored), 2 * stored.shape[1])
        stored = nibbles[:, :dim].astype(np.int8) - _INT4_ZERO
    values = stored.astype(np.float32)
    return values if scale is None else values * scale[:, None]


@dataclasses.dataclass(kw_only=True)
class Loss:
    """What a storage loses, over all rows added: the root of sum |x - kept|^2 over sum |x|^2.

    Attributes:
      lost: sum of squares of what the rounding changed.
      total: sum of squares of all components.
    """

    lost: float = 0.0
    total: float = 0.0

    def add(self, values: Float[np.ndarray, "n d"], kept: Float[np.ndarray, "n d"]) -> None:
        """Counts rows and what became of them."""
        exact = values.astype(np.float64)
        self.lost += float(np.square(exact - kept).sum())
        self.total += float(np.square(exact).sum())

    @property
    def relative(self) -> float:
        """From 0 (nothing lost) up."""
        return float(np.sqrt(self.lost / self.total)) if self.total else 0.0

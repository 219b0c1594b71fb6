"""Inputs, an independent float64 oracle and tolerances for the tests of jagged attention."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.jagged_attention import Mask

# around every boundary of 8, 64 and 128 rows, and an empty sequence at each end
LENGTHS = (0, 1, 7, 63, 64, 65, 127, 129, 0)
GPU_LENGTHS = (*LENGTHS[:-1], 1000, 4096, 0)

MASKS = {
    "causal": Mask(),
    "full": Mask(causal=False),
    "window": Mask(window=50),
    "window_full": Mask(causal=False, window=20),
    "block": Mask(block=64, causal=False),
    "block_causal": Mask(block=48),
    "prefix": Mask(prefix=5, window=30),
}


@dataclasses.dataclass(frozen=True)
class Case:
    """One configuration. `gap` rows of padding follow each sequence's last group of 8, `tail` the end."""

    lengths: tuple[int, ...] = LENGTHS
    heads: int = 2
    kv_heads: int = 2
    size: int = 16
    kind: str = "silu"
    mask: Mask = Mask()
    num_targets: int | None = None
    dtype: str = "float32"
    gap: int = 8
    tail: int = 24
    max_len: int | None = None

    @property
    def longest(self) -> int:
        return self.max_len or max(self.lengths)

    @property
    def offsets(self) -> np.ndarray:
        rows = -(-np.array(self.lengths) // 8) * 8 + self.gap
        return np.concatenate([[0], np.cumsum(rows)]).astype(np.int32)

    @property
    def num_rows(self) -> int:
        return int(self.offsets[-1]) + self.tail

    @property
    def targets(self) -> np.ndarray | None:
        if self.num_targets is None:
            return None
        return np.minimum(self.lengths, self.num_targets).astype(np.int32)

    def valid(self) -> np.ndarray:
        """bool [T]: rows that are tokens."""
        valid = np.zeros(self.num_rows, bool)
        for start, length in zip(self.offsets, self.lengths, strict=False):
            valid[start : start + length] = True
        return valid

    def arrays(self, seed: int = 0, poison: float = np.nan):
        """q, k, v and the gradient of o, with `poison` in the padding."""
        rng = np.random.default_rng(seed)
        out = []
        for heads in (self.heads, self.kv_heads, self.kv_heads, self.heads):
            x = rng.normal(size=(self.num_rows, heads, self.size))
            x[~self.valid()] = poison
            out.append(jnp.asarray(x, self.dtype))
        return out


def sees(mask: Mask, i: int, j: int, length: int, targets: int) -> bool:
    """The rule of `Mask`, written out token by token."""
    history = length - targets
    if i == j:
        return True
    if j >= history:  # nobody else sees a target
        return False
    prefix = min(mask.prefix, history)
    if i < prefix or j < prefix:
        return True
    place = min(i, history)
    if mask.causal and j > place:
        return False
    if mask.window is not None and abs(place - j) >= mask.window:
        return False
    return mask.block is None or place // mask.block == j // mask.block


def oracle(case: Case, q, k, v, scale: float) -> np.ndarray:
    """o in numpy float64, one sequence, head and query at a time."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    out = np.zeros(q.shape)
    targets = case.targets if case.targets is not None else [0] * len(case.lengths)
    for start, length, count in zip(case.offsets, case.lengths, targets, strict=False):
        seen = np.array([[sees(case.mask, i, j, length, count) for j in range(length)] for i in range(length)])
        for head in range(case.heads if length else 0):
            rows, kv_head = slice(start, start + length), head * case.kv_heads // case.heads
            scores = scale * q[rows, head] @ k[rows, kv_head].T
            if case.kind == "silu":
                weights = np.where(seen, scores / (1 + np.exp(-scores)), 0) / case.longest
            else:
                weights = np.where(seen, np.exp(scores - scores.max(1, keepdims=True)), 0)
                weights /= weights.sum(1, keepdims=True)
            out[rows, head] = weights @ v[rows, kv_head]
    return out


def in_float64(function, *arrays):
    """function(*arrays) with float64 arithmetic, as numpy arrays."""
    with jax.enable_x64(True):
        wide = [jnp.asarray(np.asarray(x, np.float64)) for x in arrays]
        return jax.tree.map(np.asarray, jax.jit(function)(*wide))


def tolerance(dtype, terms: int) -> float:
    """Relative error (L2) that rounding explains: two roundings to `dtype` on the way to a result (of the
    weights and of the result), and a float32 sum of `terms` products, whose error grows like a random
    walk; the factor 4 covers the handful of float32 operations a term passes through."""
    wide = np.finfo(np.float64 if dtype == "float64" else np.float32).eps
    return 2 * float(jnp.finfo(dtype).eps) + 4 * math.sqrt(terms) * float(wide)


def relative_error(value, truth) -> float:
    value, truth = np.asarray(value, np.float64), np.asarray(truth, np.float64)
    return float(np.linalg.norm(value - truth) / max(np.linalg.norm(truth), 1e-30))

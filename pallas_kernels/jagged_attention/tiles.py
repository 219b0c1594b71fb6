"""Which tiles a Hopper program visits: at most three runs of tiles, so that nothing else is loaded.

Used on scalars inside the kernels and on arrays to estimate work for the balanced work list.
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
from jax import Array

from pallas_kernels.jagged_attention.mask import Mask, block_start, key_bounds


@dataclasses.dataclass(frozen=True)
class Runs:
    """Ascending, disjoint runs of tile numbers: (first, count) each; count may be 0."""

    runs: tuple[tuple[Array, Array], ...]

    @property
    def steps(self) -> Array:
        return sum(count for _, count in self.runs[1:]) + self.runs[0][1]

    def tile(self, step) -> Array:
        """The tile number of the step-th tile, ascending."""
        first, before = self.runs[0]
        number = first + step
        for first, count in self.runs[1:]:
            number = jnp.where(step >= before, first + step - before, number)
            before = before + count
        return number


def _run(first, end):
    return first, jnp.maximum(end - first, 0)


def _up(rows, tile: int):
    return (rows + tile - 1) // tile


def key_tiles(mask: Mask, row, rows: int, length, history, tile: int, has_targets: bool) -> Runs:
    """Tiles of `tile` keys that the queries row .. min(row + rows, length) of a sequence see."""
    end = jnp.minimum(row + rows, length)
    low, _ = key_bounds(mask, row, history, has_targets)
    _, high = key_bounds(mask, end - 1, history, has_targets)
    if mask.prefix:  # a tile that starts inside the prefix sees the whole history
        high = jnp.where(row < jnp.minimum(mask.prefix, history), history, high)
    main, main_end = low // tile, _up(high, tile)
    runs = []
    if mask.prefix:
        runs.append(_run(main * 0, jnp.minimum(_up(jnp.minimum(mask.prefix, history), tile), main)))
    if not has_targets:
        return Runs((*runs, _run(main, main_end)))
    own = jnp.maximum(row, history) // tile  # targets see themselves
    own_end = jnp.where(end > history, _up(end, tile), own)
    main_end = jnp.where(end > history, jnp.minimum(main_end, own), main_end)
    return Runs((*runs, _run(main, main_end), _run(own, own_end)))


def query_tiles(mask: Mask, key, keys: int, length, history, tile: int, has_targets: bool) -> Runs:
    """Tiles of `tile` queries that see the keys key .. min(key + keys, length) of a sequence."""
    end = jnp.minimum(key + keys, length)
    first, last = key * 0, history
    if mask.causal:
        first = key
    if mask.window is not None:
        last = jnp.minimum(last, end - 1 + mask.window)
        first = jnp.maximum(first, key - (mask.window - 1))
    if mask.block is not None:
        first = jnp.maximum(first, block_start(mask.block, key))
        last = jnp.minimum(last, block_start(mask.block, end - 1) + mask.block)
    prefix = jnp.minimum(mask.prefix, history)
    if mask.prefix:
        first = jnp.where(key < prefix, 0, first)
        last = jnp.where(key < prefix, history, last)
    if has_targets:
        last = jnp.where(key < history, last, first)
    main, main_end = first // tile, _up(last, tile)
    runs = []
    if mask.prefix:  # prefix queries see every key of the history
        seen = jnp.where(key < history, _up(prefix, tile), 0)
        runs.append(_run(main * 0, jnp.minimum(seen, main)))
    if not has_targets:
        return Runs((*runs, _run(main, main_end)))
    return Runs((*runs, _run(main, main_end), _target_run(mask, key, end, length, history, tile, main_end)))


def _target_run(mask, key, end, length, history, tile, main_end):
    low, high = key_bounds(mask, history, history)  # what every target sees of the history
    seen = (jnp.minimum(end, high) > jnp.maximum(key, low)) | (key < jnp.minimum(mask.prefix, history))
    first = jnp.maximum(key, history)
    last = jnp.where(seen, length, jnp.where(end > history, end, first))
    first = jnp.where(key < history, jnp.maximum(first // tile, main_end), first // tile)
    return _run(first, _up(last, tile))

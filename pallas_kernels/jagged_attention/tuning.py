"""Tile sizes per GPU and head dim, from `tuning/<gpu>.json` (written by `python -m pallas_kernels.bench
jagged_attention --tune`)."""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import pathlib
from typing import NamedTuple

from pallas_kernels.common.tuning import Tables
from pallas_kernels.jagged_attention import mosaic_dq, mosaic_pipe, mosaic_walk

TABLES = Tables(pathlib.Path(__file__).parent / "tuning", default="nvidia_h200")


class Tilings(NamedTuple):
    """How the kernels run for one head dim; softmax's row sums want other steps of the forward pass than the rest.

    `backward` is with dQ fused (None for heads of 256, whose dQ is not), `backward_kv` without.
    """

    forward: mosaic_pipe.Tiling
    forward_softmax: mosaic_pipe.Tiling
    backward: mosaic_walk.Tiling | None
    backward_kv: mosaic_walk.Tiling
    dq: mosaic_dq.Tiling


_trial: contextvars.ContextVar[Tilings | None] = contextvars.ContextVar("trial", default=None)


@contextlib.contextmanager
def trial(tilings: Tilings):
    """Within it (and this thread), `tilings` are used whatever the files say: for the search."""
    token = _trial.set(tilings)
    try:
        yield
    finally:
        _trial.reset(token)


def tilings(device_kind: str, head_dim: int) -> Tilings:
    """Of a device and a head dim of 64, 128 or 256."""
    if (tried := _trial.get()) is not None:
        return tried
    row = TABLES.of(device_kind)[str(head_dim)]
    return Tilings(
        forward=mosaic_pipe.Tiling(**row["forward"]),
        forward_softmax=mosaic_pipe.Tiling(**row["forward_softmax"]),
        backward=mosaic_walk.Tiling(**row["backward"]) if "backward" in row else None,
        backward_kv=mosaic_walk.Tiling(**row["backward_kv"]),
        dq=mosaic_dq.Tiling(**row["dq"]),
    )


def write(device_kind: str, tilings: dict[int, Tilings]) -> None:
    """Write a device's file: the tilings by head dim."""
    rows = {
        str(size): {
            kernel: dataclasses.asdict(tiling) for kernel, tiling in row._asdict().items() if tiling is not None
        }
        for size, row in tilings.items()
    }
    TABLES.write(device_kind, rows)

"""Tile sizes per GPU and head size, from `tuning/<gpu>.json` (written by `python -m pallas_kernels.bench
jagged_attention --tune`)."""

from __future__ import annotations

import contextlib
import contextvars
import functools
import json
import pathlib
import warnings
from typing import NamedTuple

from pallas_kernels.jagged_attention import mosaic_dq, mosaic_pipe, mosaic_walk

FOLDER = pathlib.Path(__file__).parent / "tuning"
DEFAULT = "nvidia_h200"


class Tilings(NamedTuple):
    """How the kernels run for one head size; softmax's row sums want other steps of the forward pass than the rest.

    `backward` is with dQ fused (None for heads of 256, whose dQ is not), `backward_kv` without.
    """

    forward: mosaic_pipe.Tiling
    forward_softmax: mosaic_pipe.Tiling
    backward: mosaic_walk.Tiling | None
    backward_kv: mosaic_walk.Tiling
    dq: mosaic_dq.Tiling


def file_name(device_kind: str) -> str:
    """ "NVIDIA H200" -> "nvidia_h200"."""
    return device_kind.lower().replace(" ", "_")


@functools.cache
def _table(name: str) -> dict:
    path = FOLDER / f"{name}.json"
    if not path.exists():
        warnings.warn(f"No tile sizes were tuned for {name}; using those of {DEFAULT}.", stacklevel=2)
        path = FOLDER / f"{DEFAULT}.json"
    return json.loads(path.read_text())


_trial: contextvars.ContextVar[Tilings | None] = contextvars.ContextVar("trial", default=None)


@contextlib.contextmanager
def trial(tilings: Tilings):
    """Within it (and this thread), `tilings` are used whatever the files say: for the search."""
    token = _trial.set(tilings)
    try:
        yield
    finally:
        _trial.reset(token)


def tilings(device_kind: str, head_size: int) -> Tilings:
    """Of a device and a head size of 64, 128 or 256."""
    if (tried := _trial.get()) is not None:
        return tried
    row = _table(file_name(device_kind))[str(head_size)]
    return Tilings(
        forward=mosaic_pipe.Tiling(**row["forward"]),
        forward_softmax=mosaic_pipe.Tiling(**row["forward_softmax"]),
        backward=mosaic_walk.Tiling(**row["backward"]) if "backward" in row else None,
        backward_kv=mosaic_walk.Tiling(**row["backward_kv"]),
        dq=mosaic_dq.Tiling(**row["dq"]),
    )

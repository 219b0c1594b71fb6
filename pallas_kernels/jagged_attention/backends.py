"""What each backend can do, fastest first; see `pallas_kernels.common.dispatch` for how one is chosen."""

from __future__ import annotations

import dataclasses
from typing import Any

from pallas_kernels.common import dispatch
from pallas_kernels.common.dispatch import Backend

HEAD_DIMS = (32, 64, 128, 256)  # of the backends whose tiles lie in one history
NARROW = ("bfloat16", "float16")
SHORT = 256  # rows, up to which tiles of many histories are faster (NOTES.md: "Short histories")


@dataclasses.dataclass(frozen=True)
class Request:
    """What a backend may refuse of a call.

    Attributes:
      dtype: of q, k and v.
      head_dim: K.
      scale: of the scores.
      longest: the most rows that one example may have, of queries or of keys.
      has_bias: is there a relative bias?
      dense_keys: GDPA's keys of an example (J); None for the other operations.
    """

    dtype: Any
    head_dim: int
    scale: float
    longest: int
    has_bias: bool = False
    dense_keys: int | None = None


def _gpu_supports(request: Request) -> str | None:
    if request.has_bias:
        return "it has no relative bias."
    if str(request.dtype) not in NARROW:
        return f"it takes bfloat16 and float16, got {request.dtype}."
    if request.head_dim not in HEAD_DIMS:
        return f"it takes heads of {', '.join(map(str, HEAD_DIMS))}, got {request.head_dim}."
    return None


def mosaic_gpu_supports(request: Request) -> str | None:
    """None, or why the Hopper kernels have not this case."""
    if (reason := _gpu_supports(request)) is not None:
        return reason
    if request.scale <= 0:
        return f"it needs a positive scale, got {request.scale}."
    if request.dense_keys is not None and request.dense_keys % 8:
        return f"it needs a multiple of 8 keys an example, got {request.dense_keys}."
    return None


def triton_supports(request: Request) -> str | None:
    """None, or why the Triton kernels have not this case."""
    return _gpu_supports(request) or dispatch.package_missing("triton", "jax_triton")


def is_short(request: Request) -> bool:
    """Are an example's rows so few that a tile should hold several examples?"""
    return request.longest <= SHORT


def triton_short_supports(request: Request) -> str | None:
    """None, or why the Triton kernels for short histories have not this case."""
    if request.has_bias:
        return "it has no relative bias."
    if str(request.dtype) not in (*NARROW, "float32"):
        return f"it takes bfloat16, float16 and float32, got {request.dtype}."
    if request.head_dim % 16 or not 0 < request.head_dim <= HEAD_DIMS[-1]:
        return f"it takes heads of multiples of 16 up to {HEAD_DIMS[-1]}, got {request.head_dim}."
    return dispatch.package_missing("triton", "jax_triton")


def _everything(request: Request) -> None:
    del request


_HERE = "pallas_kernels.jagged_attention"
BACKENDS = (
    Backend("triton_short", f"{_HERE}.triton_short", dispatch.on_ampere_or_later, triton_short_supports, is_short),
    Backend("mosaic_gpu", f"{_HERE}.mosaic_gpu", dispatch.on_hopper, mosaic_gpu_supports),
    Backend("triton", f"{_HERE}.triton", dispatch.on_ampere_or_later, triton_supports),
    Backend("xla", f"{_HERE}.xla", dispatch.anywhere, _everything),
    Backend("reference", f"{_HERE}.reference", dispatch.anywhere, _everything),
)

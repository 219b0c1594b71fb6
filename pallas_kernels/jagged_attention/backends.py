"""What each backend can do, fastest first; see `pallas_kernels.common.dispatch` for how one is chosen."""

from __future__ import annotations

import dataclasses
from typing import Any

from pallas_kernels.common import dispatch
from pallas_kernels.common.dispatch import Backend

HEAD_DIMS = (32, 64, 128, 256)  # of the GPU backends
NARROW = ("bfloat16", "float16")


@dataclasses.dataclass(frozen=True)
class Request:
    """What a backend may refuse of a call.

    Attributes:
      dtype: of q, k and v.
      head_dim: K.
      scale: of the scores.
      has_bias: is there a relative bias?
      dense_keys: GDPA's keys of an example (J); None for the other operations.
    """

    dtype: Any
    head_dim: int
    scale: float
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


def _everything(request: Request) -> None:
    del request


_HERE = "pallas_kernels.jagged_attention"
BACKENDS = (
    Backend("mosaic_gpu", f"{_HERE}.mosaic_gpu", dispatch.on_hopper, mosaic_gpu_supports),
    Backend("triton", f"{_HERE}.triton", dispatch.on_ampere_or_later, triton_supports),
    Backend("xla", f"{_HERE}.xla", dispatch.anywhere, _everything),
    Backend("reference", f"{_HERE}.reference", dispatch.anywhere, _everything),
)

"""What each backend can do, the first that runs is taken; see `pallas_kernels.common.dispatch` for how one is chosen."""

from __future__ import annotations

import dataclasses
from typing import Any

from pallas_kernels.common import dispatch
from pallas_kernels.common.dispatch import Backend

WIDEST = 1024  # columns of a row, which one warp holds


@dataclasses.dataclass(frozen=True)
class Request:
    """What a backend may refuse of a call.

    Attributes:
      rows: dtype of the table's rows.
      width: D.
      grads: dtype of the gradients; None for a lookup.
    """

    rows: Any
    width: int
    grads: Any = None


def triton_supports(request: Request) -> str | None:
    """None, or why the Triton kernels have not this case."""
    for name, dtype in (("rows", request.rows), ("gradients", request.grads)):
        if dtype is not None and str(dtype) not in ("float32", "bfloat16"):
            return f"it takes {name} of float32 and bfloat16, got {dtype}."
    if not 0 < request.width <= WIDEST:
        return f"it takes rows of at most {WIDEST} columns, got {request.width}."
    return dispatch.package_missing("triton", "jax_triton")


def _everything(request: Request) -> None:
    del request


_HERE = "pallas_kernels.embedding"
BACKENDS = (
    Backend("triton", f"{_HERE}.triton", dispatch.on_ampere_or_later, triton_supports),
    Backend("xla", f"{_HERE}.xla", dispatch.anywhere, _everything),
    Backend("reference", f"{_HERE}.reference", dispatch.anywhere, _everything),
)

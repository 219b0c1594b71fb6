"""What each backend can do, fastest first; see `pallas_kernels.common.dispatch` for how one is chosen."""

from __future__ import annotations

import dataclasses
from typing import Any

from pallas_kernels.common import dispatch
from pallas_kernels.common.dispatch import Backend

MOST_COLUMNS = 4096  # of a row that a program holds
MOST_KEYS = 256  # of all groups together, which a program holds


@dataclasses.dataclass(frozen=True)
class Request:
    """What a backend may refuse of a call.

    Attributes:
      dtype: of the rows.
      width: their columns; K of `mixed_keys`.
      tokens, keys: m and G * J of `mixed_keys`.
    """

    dtype: Any
    width: int
    tokens: int = 0
    keys: int = 0


def triton_supports(request: Request) -> str | None:
    """None, or why the Triton kernels have not this case."""
    if str(request.dtype) not in ("bfloat16", "float16", "float32"):
        return f"it takes bfloat16, float16 and float32, got {request.dtype}."
    if request.width > MOST_COLUMNS:
        return f"it takes rows of at most {MOST_COLUMNS} columns, got {request.width}."
    if request.keys and (request.keys > MOST_KEYS or request.tokens > 64 or request.width > 256):
        return f"it takes at most {MOST_KEYS} keys of all groups, 64 tokens and heads of 256."
    return dispatch.package_missing("triton", "jax_triton")


def _everything(request: Request) -> None:
    del request


_HERE = "pallas_kernels.fused_rows"
BACKENDS = (
    Backend("triton", f"{_HERE}.triton", dispatch.on_ampere_or_later, triton_supports),
    Backend("xla", f"{_HERE}.xla", dispatch.anywhere, _everything),
)

"""Which backend runs a call: the fastest that can, and a warning where a faster one refuses.

An operation's folder lists its backends, fastest first. A backend says three things apart. `supported_on(device)`: does it
run on such a device at all? `is_fast(request)`: is this a size at which it is faster than those after it? What a CPU cannot
run, and what others run faster, is passed over in silence. `supports(request)`: has it this case? Where it would be the
fastest, a refusal is a slower step that the caller could often avoid (another dtype, a missing package), so it is said, once
per operation, backend and reason. Reasons are whole sentences without the backend's name.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import importlib.util
import re
import types
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import jax


def at_any_size(request: Any) -> bool:
    """`Backend.is_fast` of what is faster than those after it whatever the size."""
    del request
    return True


@dataclasses.dataclass(frozen=True)
class Backend:
    """One implementation of an operation.

    Attributes:
      name: what a caller gives to insist on it.
      module: path of the module whose functions are named as the operations are; imported on first use.
      supported_on: a device -> None, or why this backend never runs there.
      supports: a request (the operation's own description of a call) -> None, or why not this one.
      is_fast: a request -> is it of a size at which this backend is faster than those after it, as measured? A caller who
        names the backend gets it at any size.
    """

    name: str
    module: str
    supported_on: Callable[[Any], str | None]
    supports: Callable[[Any], str | None]
    is_fast: Callable[[Any], bool] = at_any_size

    def load(self) -> types.ModuleType:
        """The module, imported."""
        return importlib.import_module(self.module)


def choose(operation: str, backends: Sequence[Backend], request: Any, name: str | None = None) -> Backend:
    """The backend that runs a call on the default device.

    Args:
      operation: for the messages.
      backends: fastest first.
      request: what `supports` of each is asked.
      name: insists on one of them.

    Raises:
      ValueError: no backend has that name.
      NotImplementedError: the named one, or everyone, refuses; the message has the reason.
    """
    device = default_device()
    if name is not None:
        return _named(operation, backends, request, name, device)
    for backend in backends:
        if backend.supported_on(device) is not None or not backend.is_fast(request):
            continue
        reason = backend.supports(request)
        if reason is None:
            return backend
        _warn_once(operation, backend.name, reason)
    raise NotImplementedError(f"no backend of {operation} runs {request} on {device}.")


def _named(operation, backends, request, name, device):
    found = {backend.name: backend for backend in backends}
    if name not in found:
        raise ValueError(f"implementation must be one of {tuple(found)} or None, got {name!r}.")
    reason = found[name].supports(request) or found[name].supported_on(device)
    if reason is not None:
        raise NotImplementedError(f'implementation "{name}" cannot run this {operation}: {reason}')
    return found[name]


@functools.cache
def _warn_once(operation: str, name: str, reason: str) -> None:
    warnings.warn(f'{operation} does not run on its faster backend "{name}": {reason}', stacklevel=4)


def default_device() -> jax.Device:
    """The device that a jitted function runs on when nobody says otherwise."""
    chosen = jax.config.jax_default_device
    if chosen is None:
        return jax.devices()[0]
    return jax.devices(chosen)[0] if isinstance(chosen, str) else chosen


def compute_capability(device: Any) -> tuple[int, int] | None:
    """(major, minor) of an NVIDIA GPU; None of anything else."""
    found = re.fullmatch(r"(\d+)\.(\d+)", str(getattr(device, "compute_capability", "")))
    return (int(found[1]), int(found[2])) if found and device.platform == "gpu" else None


def anywhere(device: Any) -> None:
    """`Backend.supported_on` of what runs on every device."""
    del device


def on_hopper(device: Any) -> str | None:
    """`Backend.supported_on` of Mosaic GPU kernels written in Hopper's instructions."""
    return None if compute_capability(device) == (9, 0) else "it needs a Hopper GPU (H100, H200)."


def on_ampere_or_later(device: Any) -> str | None:
    """`Backend.supported_on` of Triton kernels."""
    if (compute_capability(device) or (0, 0)) >= (8, 0):
        return None
    return "it needs an NVIDIA GPU from Ampere on (A100, L4, H100)."


def package_missing(*names: str) -> str | None:
    """Why a backend that needs these packages cannot run: the first that is not installed, or None."""
    for name in names:
        if importlib.util.find_spec(name) is None:
            return f"it needs the package {name.replace('_', '-')}, which is not installed."
    return None

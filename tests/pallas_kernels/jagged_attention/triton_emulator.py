"""Runs the kernels of `triton_short` on a CPU in Triton's own interpreter, one program after the other, on concrete arrays.

Results start as NaN, as unkind as fresh memory may be. float16 and float32 only: the interpreter multiplies bfloat16's bits.
Triton must be imported with TRITON_INTERPRET=1, so this runs in a process of its own: see `test_triton_short.py`.
"""

from __future__ import annotations

import os
import sys
import types

os.environ["TRITON_INTERPRET"] = "1"

import jax.numpy as jnp
import numpy as np
import triton
import triton.language as tl
from triton.runtime import interpreter

from pallas_kernels.common import dispatch
from pallas_kernels.jagged_attention import triton_short_kernels

NAMES = {"float16": "fp16", "float32": "fp32", "int32": "i32", "int8": "i8"}


class OnHost(interpreter.GridExecutor):
    """Takes arrays where Triton's takes torch's tensors."""

    def _init_args_hst(self, args_dev, kwargs):
        return args_dev, kwargs

    def _restore_args_dev(self, *args):
        pass


def _pointer(array: np.ndarray):
    return types.SimpleNamespace(data_ptr=lambda: array.ctypes.data, dtype=NAMES[str(array.dtype)])


def triton_call(*arguments, kernel, out_shape, grid, num_warps, num_stages, input_output_aliases=None, **static):
    """`jax_triton.triton_call`, on concrete arrays."""
    del num_warps, num_stages
    inputs = [np.ascontiguousarray(x) for x in arguments]
    results = [np.full(x.shape, np.nan, x.dtype) for x in out_shape]
    for source, target in (input_output_aliases or {}).items():
        results[target][...] = inputs[source]
    pointers = [_pointer(x) for x in (*inputs, *results)]
    OnHost(kernel.rewrite(), kernel.arg_names, grid)(*pointers, **static)
    return tuple(jnp.asarray(x) for x in results)


def _patch_tensor(tensor, scope, patch=interpreter._patch_lang_tensor):
    patch(tensor, scope)
    # NumPy 2.5 takes no array of one number for a number, where the interpreter keeps scalars so
    scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))


@triton.jit
def _tanh(x):
    return 2.0 * tl.sigmoid(2.0 * x) - 1.0  # inline assembly has no interpreter


def emulate() -> None:
    """From here on the backend runs here, whatever the device."""
    sys.modules["jax_triton"] = types.SimpleNamespace(triton_call=triton_call)
    interpreter._patch_lang_tensor = _patch_tensor
    triton_short_kernels._tanh = _tanh
    dispatch.compute_capability = lambda device: (8, 0)
    dispatch.package_missing = lambda *names: None

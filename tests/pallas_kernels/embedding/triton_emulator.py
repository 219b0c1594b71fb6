"""Runs the table kernels on a CPU in Triton's own interpreter, one program after the other, on concrete arrays.

Results start as NaN, as unkind as fresh memory may be, but those that are an argument in place. Triton must be imported with
TRITON_INTERPRET=1, so this runs in a process of its own: see `test_triton.py`.
"""

from __future__ import annotations

import os
import sys
import types

os.environ["TRITON_INTERPRET"] = "1"

import jax.numpy as jnp
import numpy as np
from triton.runtime import interpreter

NAMES = {"float16": "fp16", "float32": "fp32", "int32": "i32", "bfloat16": "bf16"}


class OnHost(interpreter.GridExecutor):
    """Takes arrays where Triton's takes torch's tensors."""

    def _init_args_hst(self, args_dev, kwargs):
        return args_dev, kwargs

    def _restore_args_dev(self, *args):
        pass


def _pointer(array: np.ndarray):
    return types.SimpleNamespace(data_ptr=lambda: array.ctypes.data, dtype=NAMES[str(array.dtype)])


def triton_call(*arguments, kernel, out_shape, grid, num_warps, input_output_aliases=None, **static):
    """`jax_triton.triton_call`, on concrete arrays."""
    del num_warps
    several = isinstance(out_shape, tuple)
    shapes = out_shape if several else (out_shape,)
    inputs = [np.array(x) for x in arguments]
    at = {out: inside for inside, out in (input_output_aliases or {}).items()}
    results = [inputs[at[n]] if n in at else np.full(x.shape, np.nan, x.dtype) for n, x in enumerate(shapes)]
    OnHost(kernel.rewrite(), kernel.arg_names, grid)(*[_pointer(x) for x in (*inputs, *results)], **static)
    out = tuple(jnp.asarray(x) for x in results)
    return out if several else out[0]


def _patch_tensor(tensor, scope, patch=interpreter._patch_lang_tensor):
    patch(tensor, scope)
    # NumPy 2.5 takes no array of one number for a number, where the interpreter keeps scalars so
    scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))


def emulate() -> None:
    """From here on the backend runs here."""
    sys.modules["jax_triton"] = types.SimpleNamespace(triton_call=triton_call)
    interpreter._patch_lang_tensor = _patch_tensor

"""Compile Triton kernels for a GPU that is not there: prints bytes of shared memory and the matrix instruction. See the tests."""

import itertools
import sys

import jax.numpy as jnp
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from pallas_kernels.jagged_attention import (
    Mask,
    triton_in_one_kernels,
    triton_kernels,
    triton_short,
    triton_short_kernels,
)
from pallas_kernels.jagged_attention import triton as backend
from pallas_kernels.jagged_attention.triton_problem import Settings
from pallas_kernels.jagged_attention.triton_short import Places

POINTERS = {
    "forward": ("q", "k", "v", "items", "low", "high", "o", "log_sum"),
    "backward_kv": ("q", "k", "v", "do", "log_sum", "delta", "items", "low", "high", "dk", "dv"),
    "backward_q": ("q", "k", "v", "do", "log_sum", "delta", "items", "low", "high", "dq"),
}
SHORT_POINTERS = {
    "forward": ("q", "k", "v", "spans", "reach", "o", "log_sum"),
    "backward": ("q", "k", "v", "do", "o", "log_sum", "spans", "reach", "dq", "dk", "dv"),
    "backward_pair": ("q", "kv", "do", "o", "log_sum", "spans", "reach", "dq", "dkv"),
    "backward_in_one": ("x", "do", "log_sum", "spans", "reach", "into", "dx"),
}
TYPES = dict.fromkeys(("items", "low", "high", "spans", "reach"), "*i32") | dict.fromkeys(("log_sum", "delta"), "*fp32")


def compile_one(kernel, kind, pointers, static, launch, capability):
    signature = {x: TYPES.get(x, "*bf16") for x in pointers} | dict.fromkeys(static, "constexpr")
    source = ASTSource(kernel, signature, static, {(i,): [["tt.divisibility", 16]] for i in range(len(pointers))})
    options = dict(num_warps=launch.num_warps, num_stages=launch.num_stages)
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    matmul = next((x for x in ("wgmma", "mma.sync") if x in compiled.asm["ptx"]), "none")
    print(f"{kernel.__name__} {kind} shared {compiled.metadata.shared} matmul {matmul}", flush=True)


def main(capability: int, size: int):
    launches = backend.launches(size)
    for name, kind in itertools.product(POINTERS, ("silu", "softmax")):
        launch = launches[name != "forward"]
        static = dict(n=64, rows_total=4096, heads=4, kv_heads=2, scale=0.1, factor=1.0, KIND=kind, TARGETS=True)
        static |= dict(D=size, QUERIES=launch.queries, KEYS=launch.keys)
        compile_one(getattr(triton_kernels, name), kind, POINTERS[name], static, launch, capability)


def short(capability: int, size: int):
    """Self-attention and, with no mask, cross attention; and in one array, activated on the way, where that has a meaning."""
    apart, in_one = Places(4, 0, 4, 0, 0), Places(16, 8, 16, 12, 4, active=True)
    for name, kind, mask in itertools.product(SHORT_POINTERS, ("silu", "softmax"), (Mask(), None)):
        if (name == "backward_pair" and mask is not None) or (
            name == "backward_in_one" and (mask is None or kind != "silu")
        ):
            continue
        launch = triton_short.launches(size, jnp.bfloat16, own=mask is not None)[name != "forward"]
        places = in_one if name == "backward_in_one" else apart
        static = dict(q_rows=4096, kv_rows=4096, heads=4, kv_heads=4)
        static |= triton_short.static_arguments(
            jnp.bfloat16, size, Settings(kind, mask, 0.1, 1.0, False), launch, places
        )
        kernels = triton_short_kernels if name in ("forward", "backward") else triton_in_one_kernels
        compile_one(getattr(kernels, name), kind, SHORT_POINTERS[name], static, launch, capability)


if __name__ == "__main__":
    (short if sys.argv[3:] == ["short"] else main)(int(sys.argv[1]), int(sys.argv[2]))

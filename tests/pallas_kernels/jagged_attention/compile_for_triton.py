"""Compile the Triton kernels for a GPU that is not there: prints bytes of shared memory and of spills. See the test."""

import itertools
import sys

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from pallas_kernels.jagged_attention import triton as backend
from pallas_kernels.jagged_attention import triton_kernels

POINTERS = {
    "forward": ("q", "k", "v", "items", "low", "high", "o", "log_sum"),
    "backward_kv": ("q", "k", "v", "do", "log_sum", "delta", "items", "low", "high", "dk", "dv"),
    "backward_q": ("q", "k", "v", "do", "log_sum", "delta", "items", "low", "high", "dq"),
}
TYPES = dict.fromkeys(("items", "low", "high"), "*i32") | dict.fromkeys(("log_sum", "delta"), "*fp32")


def main(capability: int, size: int):
    launches = backend.launches(size)
    for name, kind in itertools.product(POINTERS, ("silu", "softmax")):
        launch = launches[name != "forward"]
        static = dict(n=64, rows_total=4096, heads=4, kv_heads=2, scale=0.1, factor=1.0, KIND=kind, TARGETS=True)
        static |= dict(D=size, QUERIES=launch.queries, KEYS=launch.keys)
        signature = {x: TYPES.get(x, "*bf16") for x in POINTERS[name]} | dict.fromkeys(static, "constexpr")
        aligned = {(i,): [["tt.divisibility", 16]] for i in range(len(POINTERS[name]))}
        source = ASTSource(getattr(triton_kernels, name), signature, static, aligned)
        options = dict(num_warps=launch.num_warps, num_stages=launch.num_stages)
        compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
        matmul = next((x for x in ("wgmma", "mma.sync") if x in compiled.asm["ptx"]), "none")
        print(f"{name} {kind} shared {compiled.metadata.shared} matmul {matmul}", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))

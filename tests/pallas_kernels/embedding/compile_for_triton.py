"""Compile the table kernels for a GPU that is not there: prints their shared memory in bytes. See the tests."""

import itertools
import sys

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from pallas_kernels.embedding import triton_kernels
from pallas_kernels.embedding.triton import BLOCK, POOLED, Launch

POINTERS = {
    "gather": ("rows", "ids", "out"),
    "pool": ("rows", "ids", "out"),
    "walk": ("w", "a", "b", "grads", "keys", "sources", "scalars", "seed", "w_out", "a_out", "b_out", "part"),
    "fold": ("keys", "part", "part_out"),
    "join": ("w", "a", "b", "keys", "part", "scalars", "seed", "w_out", "a_out", "b_out"),
}
INTEGERS = dict.fromkeys(("ids", "keys", "sources", "seed"), "*i32")
RULE = dict(L2=0.0, GROUPS=1.0, BETA1=0.9, BETA2=0.999, EPS=1e-8)


def compile_one(name, static, num_warps, capability, weights="fp32"):
    pointers = POINTERS[name]
    types = dict.fromkeys(pointers, "*fp32") | INTEGERS | dict.fromkeys(("rows", "w", "w_out"), f"*{weights}")
    signature = {x: types[x] for x in pointers} | dict.fromkeys(static, "constexpr")
    divisible = {(i,): [["tt.divisibility", 16]] for i in range(len(pointers))}
    source = ASTSource(getattr(triton_kernels, name), signature, static, divisible)
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=dict(num_warps=num_warps))
    print(name, static.get("RULE", "-"), weights, "shared", compiled.metadata.shared, flush=True)
    return compiled


def main(capability: int, size: int):
    wide = dict(V=100000, D=size, WIDE=1 << (size - 1).bit_length())
    compile_one("gather", dict(R=4096, ROWS=BLOCK, **wide), 1, capability)
    compile_one("pool", dict(BAG=32, MEAN=True, ROWS=POOLED, **wide), 1, capability)
    launch = Launch()
    compile_one("fold", dict(R=4096, TILE=launch.tile, GROUP=launch.group, **wide), launch.join_warps, capability)
    for rule, weights in itertools.product(("rowwise_adagrad", "adam", "sgd"), ("fp32", "bf16")):
        static = dict(R=4096, TILE=launch.tile, RULE=rule, ROUND=weights == "bf16", **RULE, **wide)
        compile_one("walk", static, 1, capability, weights)
        compile_one("join", static | dict(GROUP=launch.group), launch.join_warps, capability, weights)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))

"""Matmuls that begin a sum: `a @ b` of one warpgroup on the tensor core, into registers that need not hold zeros.

`plgpu.wgmma` always adds to its accumulator, so each of the scores, their gradients and dQ began with 32 or 64 registers set
to 0, an eighth of a backward step's instructions and those of the scores in front of their matmul. The instruction can
overwrite instead, which Pallas has no way to say; hence these few lines of PTX.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.experimental.mosaic.gpu import fragmented_array, mma_utils, utils
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxlib.mlir import ir
from jaxlib.mlir.dialects import llvm

from pallas_kernels.hopper.memory import swizzle_of, tiled
from pallas_kernels.hopper.program import ROWS

DEPTH = 16  # of one instruction, in elements of 16 bits


def issue(a, b, transpose_a: bool = False, transpose_b: bool = False) -> Array:
    """Begin a @ b -> float32 [64, n] in wgmma's layout, not to be touched before `arrived`.

    Args:
      a: [64, k] ([k, 64] for transpose_a): a ref in shared memory, or an array in wgmma's layout.
      b: [k, n] ([n, k] for transpose_b): a ref in shared memory, swizzled as a's.
    """
    n, dtype = b.shape[0 if transpose_b else 1], b.dtype
    in_registers = isinstance(a, jax.Array)
    swizzle = swizzle_of(b)
    ref_type = plgpu.RefType(tiled(dtype, swizzle))
    a_type = plgpu.Layout.WGMMA if in_registers else ref_type

    @plgpu.inline_mgpu(
        arg_types=(a_type, ref_type),
        return_type=plgpu.ShapeDtypeStruct((ROWS, n), jnp.float32, layout=plgpu.Layout.WGMMA),
    )
    def begin(ctx, a, b):
        del ctx
        left = _Registers(a) if in_registers else _Descriptor(a, swizzle, transpose_a, is_left=True)
        right = _Descriptor(b, swizzle, transpose_b, is_left=False)
        return _begin(left, right, n, utils.dtype_to_ir_type(dtype))

    return begin(a, b)


def arrived(product: Array, wait_n: int) -> Array:
    """What `issue` gave, once at most the last `wait_n` matmuls are under way."""
    plgpu.wgmma_wait(wait_n)
    return product


class _Descriptor:
    """An operand in shared memory: its descriptor, and what each instruction adds to that."""

    constraint = "l"

    def __init__(self, ref, swizzle, transpose, is_left):
        if transpose:
            ref = utils.memref_transpose(ref, (1, 0, 3, 2))
        (rows, columns), _ = mma_utils.tiled_memref_shape(ref)
        width = swizzle // 2  # elements of k that lie together
        depth, across = (columns, ROWS) if is_left else (rows, columns)
        group = (across, width) if is_left else (width, across)
        tile = (ROWS, width) if is_left else (width, width)
        (base, strides), (_, group_stride), fastest = mma_utils.create_descriptor(
            ref, swizzle=swizzle, large_tile=tile, group_size=group, logical_k_major=not is_left
        )
        steps = [group_stride * g + strides[1][0] * i for g in range(depth // width) for i in range(width // DEPTH)]
        self.arguments = [base]
        self.offsets = [step >> 4 for step in steps]  # descriptors count 16 bytes
        self.turned = [int(fastest != mma_utils.Dim.K)]

    def operand(self, name, places, number):
        """(PTX that makes the operand of an instruction, the operand); `places` are those of `arguments`."""
        return f"add.s64 {name}_at, {places[0]}, {self.offsets[number]};", f"{name}_at"


class _Registers:
    """A left operand in registers, four an instruction."""

    constraint = "r"
    turned: tuple[int, ...] = ()

    def __init__(self, array):
        array = fragmented_array.optimization_barrier(array)
        i32 = ir.IntegerType.get_signless(32)
        pieces = [array[:, i : i + DEPTH].registers.flat for i in range(0, array.shape[1], DEPTH)]
        self.arguments = [utils.bitcast(x, i32) for piece in pieces for x in piece]

    def operand(self, name, places, number):
        return "", "{" + ", ".join(places[4 * number : 4 * number + 4]) + "}"


def _begin(left, right, n, dtype):
    """Issue the instructions; the first overwrites."""
    f32 = ir.VectorType.get((1,), ir.F32Type.get())
    count = n // 2  # registers of the result
    places = [f"${i}" for i in range(count + len(left.arguments) + 1)]
    result, a_places, b_places = "{" + ", ".join(places[:count]) + "}", places[count:-1], places[-1:]
    flags = ", ".join(map(str, (1, 1, *left.turned, *right.turned)))
    lines = [
        ".reg .pred adds, overwrites; .reg .b64 a_at, b_at;",
        "setp.ne.b32 adds, 1, 0; setp.ne.b32 overwrites, 0, 0;",
        "wgmma.fence.sync.aligned;",
    ]
    for number in range(len(right.offsets)):
        (make_a, a), (make_b, b) = left.operand("a", a_places, number), right.operand("b", b_places, number)
        into = "adds" if number else "overwrites"
        lines += [make_a, make_b, f"wgmma.mma_async.sync.aligned.m64n{n}k{DEPTH}.f32.{dtype}.{dtype}"]
        lines += [f"{result}, {a}, {b}, {into}, {flags};"]
    lines += ["wgmma.commit_group.sync.aligned;"]
    constraints = ["=f"] * count + [left.constraint] * len(left.arguments) + [right.constraint]
    registers = llvm.inline_asm(
        llvm.StructType.get_literal([f32] * count),
        [*left.arguments, *right.arguments],
        "{ " + " ".join(lines) + " }\n",
        ",".join(constraints),
        asm_dialect=0,
        has_side_effects=True,
    )
    layout = fragmented_array.WGMMA_LAYOUT_ACC_32BIT
    values = np.empty(count, object)
    values[:] = [llvm.extractvalue(f32, registers, [i]) for i in range(count)]
    array = fragmented_array.FragmentedArray(
        _registers=values.reshape(layout.registers_shape((ROWS, n))), _layout=layout, _is_signed=None
    )
    return array.to_layout(fragmented_array.WGMMA_LAYOUT)

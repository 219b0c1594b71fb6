"""Memory of the Hopper kernels: layouts, copies, and stores that Pallas has no words for.

dQ's float32 tiles: a matmul's result lies in registers eight rows by eight columns at a time, two numbers a thread. Stored in
pairs under the copy engine's 128-byte swizzle, rows 2i and 2i + 1 of such a piece fall on the same banks, and Pallas avoids
that by exchanging registers, a select for each. Here the rows of every group of 8 are stored in another order instead,
in which the four rows of half a warp fall on all banks; they stay in that order until the sums are read.
"""

from __future__ import annotations

import math

import jax.numpy as jnp
from jax import Array, lax
from jax.experimental import pallas as pl
from jax.experimental.mosaic.gpu import utils
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxlib.mlir import ir
from jaxlib.mlir.dialects import arith, gpu, llvm

THREADS = 128  # of a warpgroup
GROUP, HALF = 8, 4  # rows; row HALF * i + j of a group is staged as row 2 * j + i
SWIZZLE = 128  # bytes


def tiled(dtype, swizzle: int = SWIZZLE):
    """Shared-memory transforms of a wgmma operand."""
    columns = swizzle // jnp.dtype(dtype).itemsize
    return plgpu.TilingTransform((8, columns)), plgpu.SwizzleTransform(swizzle)  # type: ignore[abstract]


def load_tile(source, target, full, tail, end):
    """Start a copy of a tile [rows, K] to shared memory; rows >= `end` become 0, whatever they held.

    For the copy warpgroup. A tile with such rows is waited for (on the barrier `tail`) and cleaned here:
    done by the compute warpgroups, between their matmuls, it makes the compiler serialise those.
    """
    rows = target.shape[0]

    @pl.when(end >= rows)
    def _():
        plgpu.copy_gmem_to_smem(source, target, full)

    @pl.when(end < rows)
    def _():
        plgpu.copy_gmem_to_smem(source, target, tail)
        plgpu.barrier_wait(tail)
        zero_rows_from(target, end)
        plgpu.commit_smem()
        plgpu.barrier_arrive(full)


def zero_rows_from(tile, first):
    """Zero the rows >= `first` (int32) of a tile in shared memory (of `tiled`), whatever they held.

    Without reading them: a swizzle moves bytes inside their row only, and a copy warpgroup has 24 registers.
    """
    swizzle = swizzle_of(tile)

    @plgpu.inline_mgpu(arg_types=(plgpu.RefType(tiled(tile.dtype, swizzle)), plgpu.Layout.WG_SPLAT(())))
    def zero(ctx, tile, first):
        del ctx
        kind = ir.MemRefType(tile.type)
        strides, _ = kind.get_strides_and_offset()
        width = utils.bytewidth(kind.element_type)
        down, across = (width * stride for stride in strides[:2])  # between tiles of 8 rows x swizzle bytes
        columns = kind.shape[1] * swizzle // 16  # threads a row
        rows = THREADS // columns  # at a time
        row, column = (op(_thread(), _i32(columns)) for op in (arith.divui, arith.remui))
        terms = (
            (arith.divui(row, _i32(GROUP)), down),
            (arith.remui(row, _i32(GROUP)), swizzle),
            (arith.divui(column, _i32(swizzle // 16)), across),
            (arith.remui(column, _i32(swizzle // 16)), 16),
        )
        start = llvm.ptrtoint(_int_type(32), utils.memref_ptr(tile))
        at = _sum((start, 1), *terms)
        for top in range(0, kind.shape[0] * GROUP, rows):
            beyond = arith.cmpi(arith.CmpIPredicate.sge, row, arith.subi(first.registers.item(), _i32(top)))
            offset = top // GROUP * down + top % GROUP * swizzle
            text = f"@$0 st.shared.v4.b32 [$1 + {offset}], {{$2, $2, $2, $2}};"
            _void_asm(text, "b,r,r", beyond, at, _i32(0))

    zero(tile, first)


def swizzle_of(ref) -> int:
    """Bytes, of a ref in shared memory."""
    return next(transform.swizzle for transform in ref.transforms if hasattr(transform, "swizzle"))


def store_rows(source, target, row, count, block: int):
    """Store the first `count` (rounded up to 8; may be <= 0) of `block` rows to target[row:]."""

    @pl.when(count >= block)
    def _():
        plgpu.copy_smem_to_gmem(source, target.at[pl.ds(row, block)])

    @pl.when(count < block)
    def _():
        def piece(i, carry):
            first = pl.multiple_of(i * 8, 8)
            plgpu.copy_smem_to_gmem(source.at[pl.ds(first, 8)], target.at[pl.ds(row + first, 8)])
            return carry

        lax.fori_loop(0, pl.cdiv(jnp.maximum(count, 0), 8), piece, ())


def stage(ref, values):
    """Store a matmul's float32 result [64, K] to shared memory (of `tiled`), the rows of each group in the order above."""

    @plgpu.inline_mgpu(arg_types=(plgpu.RefType(tiled(jnp.float32)), plgpu.Layout.WGMMA))
    def store(ctx, ref, values):
        del ctx
        strides, _ = ir.MemRefType(ref.type).get_strides_and_offset()
        group_bytes, tile_bytes = (4 * stride for stride in strides[:2])  # tiles of 8 rows x 32 columns
        base = utils.memref_ptr(ref)
        own = _lane_offset(group_bytes)
        pieces = values.registers.reshape(-1, 2)  # eight columns each; upper and lower rows of a warp's 16
        for number, halves in enumerate(pieces):
            tile, piece = divmod(number, 4)
            place = arith.xori(own, _i32(piece << 5))
            for half, value in enumerate(halves):
                at = arith.addi(place, _i32(tile * tile_bytes + half * group_bytes))
                llvm.store(value, utils.getelementptr(base, [at], _int_type(8)))

    store(ref, values)


def _lane_offset(group_bytes):
    """Bytes from the tile's start to this thread's pair in the first eight columns of its warp's first group."""
    thread = _thread()
    lane = arith.remui(thread, _i32(32))
    row, pair = arith.divui(lane, _i32(4)), arith.remui(lane, _i32(4))
    half, place = arith.divui(row, _i32(HALF)), arith.remui(row, _i32(HALF))
    # the swizzle adds (exclusive or) the row 2 * place + half to the number of 16 bytes, 2 * piece + pair // 2
    sixteen = arith.xori(arith.divui(pair, _i32(2)), half)
    terms = (
        (arith.divui(thread, _i32(32)), 2 * group_bytes),
        (place, 2 * 128 + 32),
        (half, 128),
        (sixteen, 16),
        (arith.remui(pair, _i32(2)), 8),
    )
    return _sum(*terms)


def in_order(staged: Array) -> Array:
    """Sums [T, ...] whose rows were staged, in the order of the sequence; T a multiple of 8."""
    groups = staged.reshape(-1, HALF, GROUP // HALF, math.prod(staged.shape[1:]))
    return groups.swapaxes(1, 2).reshape(staged.shape)


def zero_gaps(gaps, refs, programs: int):
    """Zero this program's share of the groups of 8 rows that no item of a work list covers.

    For the copy warpgroup, which has done its loads before the others have used them.

    Args:
      gaps: int32 [1 + groups] in device memory: their number, then which ones.
      refs: results [T, H, K] in device memory.
    """
    program, count = lax.axis_index("program"), gaps[0]

    def zero(i, carry):
        rows = pl.ds(pl.multiple_of(gaps[1 + program + i * programs] * GROUP, GROUP), GROUP)
        for ref in refs:
            zero_rows(ref.at[rows])
        return carry

    lax.fori_loop(0, pl.cdiv(jnp.maximum(count - program, 0), programs), zero, ())


@plgpu.inline_mgpu(arg_types=(plgpu.RefType(),))
def zero_rows(ctx, ref):
    """Zero a view of device memory that lies together, of 1 KiB or a multiple of that."""
    del ctx
    kind = ir.MemRefType(ref.type)
    size = math.prod(kind.shape) * utils.bytewidth(kind.element_type)
    own_bytes = math.gcd(size // THREADS, 16)  # at a time
    assert own_bytes >= 8, kind
    words = ir.VectorType.get((own_bytes // 4,), _int_type(32))
    zeros = arith.constant(words, ir.DenseElementsAttr.get_splat(words, ir.IntegerAttr.get(_int_type(32), 0)))
    own = arith.muli(_thread(), _i32(own_bytes))
    for piece in range(0, size, THREADS * own_bytes):
        at = arith.addi(own, _i32(piece))
        llvm.store(zeros, utils.getelementptr(utils.memref_ptr(ref), [at], _int_type(8)))


def _thread():
    """Number in the warpgroup."""
    return arith.remui(arith.index_cast(_int_type(32), gpu.thread_id(gpu.Dimension.x)), _i32(THREADS))


def _int_type(bits):
    return ir.IntegerType.get_signless(bits)


def _i32(value):
    return arith.constant(_int_type(32), value)


def _sum(*terms):
    """Of (number, factor)."""
    total = _i32(0)
    for number, factor in terms:
        total = arith.addi(total, arith.muli(number, _i32(factor)))
    return total


def _void_asm(text, constraints, *arguments):
    llvm.inline_asm(
        ir.Type.parse("!llvm.void"), list(arguments), text, constraints, asm_dialect=0, has_side_effects=True
    )

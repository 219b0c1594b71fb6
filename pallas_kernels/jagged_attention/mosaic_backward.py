"""Gradients of K and V on Hopper and, fused with them, of Q.

A program takes 128 keys of one head and walks the query tiles that see them. Per step, with scores
transposed (keys x queries): S = K Q^T, dP = V dO^T, dV += P dO, dK += dS Q, and, fused, dQ = dS^T K,
which is added to a float32 buffer in device memory by the copy engine. Without the fused dQ (see
`mosaic_dq`) nothing is summed in an order that changes from run to run.

The steps are in `mosaic_walk`. Registers bind: two float32 accumulators of 64 x K and two score tiles fill
most of the 240 that a thread has. `hidden_zero` and the choice of where dS comes from keep the compiler
from spilling.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels.hopper import memory, program
from pallas_kernels.hopper.program import ROWS, WARPGROUPS
from pallas_kernels.jagged_attention import mosaic_items as items
from pallas_kernels.jagged_attention.mosaic_problem import Problem
from pallas_kernels.jagged_attention.mosaic_walk import QUERIES, TILE, Tiling, Walk, head_and_row


@functools.partial(jax.jit, static_argnames=("problem", "tiling", "programs"))
def backward_kv(
    q,
    k,
    v,
    do,
    log_sum,
    delta,
    table,
    gaps,
    problem: Problem,
    tiling: Tiling,
    programs: int,
    dq_sum=None,
):
    """dK and dV over the items of `table` (`WorkList.by_key`).

    Args:
      q, do: [T, H, K]; k, v: [Tk, Hkv, K], bfloat16 or float16, K of 64 or 128.
      gaps: `WorkList.kv_gaps`.
      log_sum, delta: softmax's float32 [H, T] (see `forward`; row sums of o * do); else None.
      dq_sum: a `jax.Ref` float32 [T, H, K] to which dQ / `Problem.gradient_scale` is added, in no fixed
        order; None: dQ is not computed.

    Returns:
      dk, dv: [Tk, Hkv, K]; 0 in rows of no sequence.
    """
    size, group = q.shape[2], q.shape[1] // k.shape[1]
    fused, softmax = dq_sum is not None, problem.kind == "softmax"
    q_stages, do_stages = tiling.q_stages, tiling.do_stages
    own_columns = size // WARPGROUPS
    swizzle = 64 if fused and own_columns == 32 else 128  # K is sliced in whole swizzle tiles
    transforms = memory.tiled(q.dtype, swizzle)
    names = _barrier_names(fused)
    # where the sums leave room, the copy warpgroup gets what keeps it from spilling
    registers = program.REGISTERS if size == 64 else program.MOST_REGISTERS

    def runs_of(item):
        return problem.query_tiles(item, TILE, QUERIES)

    def steps_of(item):
        return runs_of(item).steps * group

    def split_refs(refs):
        inputs, refs = refs[: 6 + 2 * softmax], refs[6 + 2 * softmax :]
        dq_ref, refs = (refs[0], refs[1:]) if fused else (None, refs)
        outs = refs[:2]
        scratch = dict(zip(_memory_names(fused, softmax) + names, refs[2:], strict=True))
        return inputs, dq_ref, outs, scratch

    def jagged_attention_backward(*refs):
        inputs, dq_ref, outs, scratch = split_refs(refs)
        *tiles_of, table_ref, gaps_ref = inputs
        warpgroup = lax.axis_index("warpgroup")

        @pl.when(warpgroup < WARPGROUPS)
        def _compute():
            plgpu.set_max_registers(registers[0], action="increase")

            def body(visit):
                walk = Walk(problem, tiling, visit, runs_of(visit.item), group, dq_ref, scratch)
                loop = walk.late if tiling.late else walk.plain
                accumulator = plgpu.ACC((ROWS, size), jnp.float32)
                walk.store(pl.run_scoped(loop, accumulator, accumulator), outs)

            items.item_loop(table_ref, problem, programs, steps_of, body)
            plgpu.wait_smem_to_gmem(0)

        @pl.when(warpgroup == WARPGROUPS)
        def _copy():
            plgpu.set_max_registers(registers[1], action="decrease")

            def body(visit):
                _copy_item(tiles_of, scratch, visit, runs_of(visit.item), group, tiling)

            items.item_loop(table_ref, problem, programs, steps_of, body)
            memory.zero_gaps(gaps_ref, outs, programs)

    def smem(*shape, dtype=q.dtype, swizzle=transforms):
        return plgpu.SMEM(shape, dtype, transforms=swizzle)

    buffers = [smem(q_stages, QUERIES, size), smem(do_stages, QUERIES, size), smem(tiling.kv_stages, TILE, size)]
    if fused:
        buffers += [
            smem(2, TILE, QUERIES),
            smem(WARPGROUPS, QUERIES, own_columns, dtype=jnp.float32, swizzle=memory.tiled(jnp.float32)),
        ]
    if softmax:
        buffers += [plgpu.SMEM((q_stages + do_stages, QUERIES), jnp.float32)]
    copies = 1 + softmax
    barriers = [
        plgpu.Barrier(num_barriers=tiling.kv_stages),
        plgpu.Barrier(num_arrivals=copies, num_barriers=q_stages),
        plgpu.Barrier(num_arrivals=copies, num_barriers=do_stages),
        plgpu.Barrier(num_arrivals=WARPGROUPS, num_barriers=q_stages),
        plgpu.Barrier(num_arrivals=WARPGROUPS, num_barriers=do_stages),
        plgpu.Barrier(num_arrivals=WARPGROUPS, num_barriers=tiling.kv_stages),
        plgpu.Barrier(),
    ]
    if fused:
        barriers += [
            plgpu.Barrier(num_arrivals=WARPGROUPS, num_barriers=2),
            plgpu.Barrier(num_arrivals=WARPGROUPS),
        ]
    arguments = [q, k, v, do] + [log_sum, delta] * softmax + [table, gaps] + [dq_sum] * fused
    return program.launch(
        jagged_attention_backward,
        out_type=[jax.ShapeDtypeStruct(k.shape, k.dtype)] * 2,
        scratch_types=buffers + barriers,
        programs=programs,
    )(*arguments)


def _memory_names(fused, softmax):
    return ["q", "do", "kv"] + ["ds", "dq"] * fused + ["sums"] * softmax


def _barrier_names(fused):
    names = ["kv_full", "q_full", "do_full", "q_free", "do_free", "kv_free", "tail"]
    return names + ["ds_full", "k_read"] * fused


def _copy_item(tiles_of, scratch, visit, runs, group, tiling):
    """The copy warpgroup's part of one item."""
    q_ref, k_ref, v_ref, do_ref, *sums = tiles_of
    item, before = visit.item, visit.before

    def load(step, carry):
        head, row = head_and_row(item, step, runs, group)
        rows = pl.ds(item.q_start + row, QUERIES)
        for number, (name, stages, ref) in enumerate((("q", tiling.q_stages, q_ref), ("do", tiling.do_stages, do_ref))):
            slot = lax.rem(before + step, stages)
            full = scratch[f"{name}_full"].at[slot]

            @pl.when(before + step >= stages)
            def _(name=name, slot=slot):
                plgpu.barrier_wait(scratch[f"{name}_free"].at[slot])

            end = item.q_length - row
            memory.load_tile(ref.at[rows, head], scratch[name].at[slot], full, scratch["tail"], end)
            if sums:
                target = scratch["sums"].at[number * tiling.q_stages + slot]  # log_sum, then delta
                plgpu.copy_gmem_to_smem(sums[number].at[head, rows], target, full)
        return carry

    def load_keys(ref, place):
        number = 2 * visit.number + place  # K and V take turns in one ring of tiles
        slot = lax.rem(number, tiling.kv_stages)

        @pl.when(number >= tiling.kv_stages)
        def _():
            plgpu.barrier_wait(scratch["kv_free"].at[slot])

        tile, end = ref.at[pl.ds(item.kv_start + item.row, TILE), item.head], item.kv_length - item.row
        memory.load_tile(tile, scratch["kv"].at[slot], scratch["kv_full"].at[slot], scratch["tail"], end)

    # what need not wait for the last item's K and V to be free goes first
    ahead = tiling.kv_stages - 2
    first = jnp.minimum(visit.steps, min(tiling.q_stages, tiling.do_stages))
    for place, ref in ((0, k_ref), (1, v_ref)):
        if place == min(ahead, 1):
            lax.fori_loop(0, first, load, ())
        load_keys(ref, place)
    lax.fori_loop(first, visit.steps, load, ())

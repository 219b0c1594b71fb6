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

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels.jagged_attention import mosaic_common as common
from pallas_kernels.jagged_attention.mosaic_common import ROWS, WARPGROUPS, Problem
from pallas_kernels.jagged_attention.mosaic_walk import QUERIES, TILE, Tiling, Walk, head_and_row


def backward_kv(
    q,
    k,
    v,
    do,
    log_sum,
    delta,
    table,
    problem: Problem,
    tiling: Tiling,
    programs: int,
    dq_sum=None,
    parts: tuple[str, ...] = ("dk", "dv"),
):
    """dK and dV over the items of `table` (`Plan.by_key`).

    Args:
      q, do: [T, H, K]; k, v: [Tk, Hkv, K], bfloat16 or float16, K of 64 or 128; 256 with one part.
      log_sum, delta: softmax's float32 [H, T] (see `forward`; row sums of o * do); else None.
      dq_sum: a `jax.Ref` float32 [T, H, K] to which dQ / (scale / divide_by) is added, in no fixed
        order; None: dQ is not computed.
      parts: what to compute; one of the two at K of 256, where the sums of both need more registers
        than there are.

    Returns:
      The parts, each [Tk, Hkv, K]; unwritten in rows outside the items' sequences, 0 up to the next multiple
        of 8 rows.
    """
    size, group = q.shape[2], q.shape[1] // k.shape[1]
    fused, softmax = dq_sum is not None, problem.kind == "softmax"
    q_stages, do_stages = tiling.q_stages, tiling.do_stages
    own_columns = size // WARPGROUPS  # of dQ, per warpgroup
    swizzle = 64 if fused and own_columns == 32 else 128  # K is sliced in whole swizzle tiles
    transforms = common.tiled(q.dtype, swizzle)
    names = _barrier_names(fused)
    # where the sums leave room, the copy warpgroup gets what keeps it from spilling
    roomy = size == 64 or "dk" not in parts
    registers = common.FORWARD_REGISTERS if roomy else common.BACKWARD_REGISTERS

    def runs_of(item):
        return problem.query_tiles(item, TILE, QUERIES)

    def steps_of(item):
        return runs_of(item).steps * group

    def split_refs(refs):
        inputs, refs = refs[: 5 + 2 * softmax], refs[5 + 2 * softmax :]
        dq_ref, refs = (refs[0], refs[1:]) if fused else (None, refs)
        outs = dict(zip(parts, refs, strict=False))
        scratch = dict(zip(_memory_names(fused, softmax) + names, refs[len(parts) :], strict=True))
        return inputs, dq_ref, outs, scratch

    def jagged_attention_backward(*refs):
        inputs, dq_ref, outs, scratch = split_refs(refs)
        table_ref = inputs[-1]
        warpgroup = lax.axis_index("warpgroup")

        @pl.when(warpgroup < WARPGROUPS)
        def _compute():
            plgpu.set_max_registers(registers[0], action="increase")

            def body(item, steps, before, count):
                walk = Walk(problem, tiling, item, steps, before, runs_of(item), group, dq_ref, scratch)
                loop = walk.late if tiling.late else walk.plain
                accumulators = {part: plgpu.ACC((ROWS, size), jnp.float32) for part in parts}
                walk.store(pl.run_scoped(loop, **accumulators), outs)

            common.item_loop(table_ref, problem, programs, steps_of, body)
            plgpu.wait_smem_to_gmem(0)

        @pl.when(warpgroup == WARPGROUPS)
        def _copy():
            plgpu.set_max_registers(registers[1], action="decrease")

            def body(item, steps, before, count):
                _copy_item(inputs, scratch, item, steps, before, count, runs_of(item), group, tiling)

            common.item_loop(table_ref, problem, programs, steps_of, body)

    def smem(*shape, dtype=q.dtype, swizzle=transforms):
        return plgpu.SMEM(shape, dtype, transforms=swizzle)

    memory = [smem(q_stages, QUERIES, size), smem(do_stages, QUERIES, size), smem(TILE, size), smem(TILE, size)]
    if softmax:
        memory += [plgpu.SMEM((n, QUERIES), jnp.float32) for n in (q_stages, do_stages)]
    if fused:
        memory += [
            smem(2, TILE, QUERIES),
            smem(WARPGROUPS, QUERIES, own_columns, dtype=jnp.float32, swizzle=common.tiled(jnp.float32)),
        ]
    copies = 1 + softmax
    barriers = [
        plgpu.Barrier(),
        plgpu.Barrier(),
        plgpu.Barrier(num_arrivals=copies, num_barriers=q_stages),
        plgpu.Barrier(num_arrivals=copies, num_barriers=do_stages),
        plgpu.Barrier(num_arrivals=WARPGROUPS, num_barriers=q_stages),
        plgpu.Barrier(num_arrivals=WARPGROUPS, num_barriers=do_stages),
        plgpu.Barrier(num_arrivals=WARPGROUPS),
        plgpu.Barrier(),
    ]
    if fused:
        barriers += [
            plgpu.Barrier(num_arrivals=WARPGROUPS, num_barriers=2),
            plgpu.Barrier(num_arrivals=WARPGROUPS),
        ]
    arguments = [q, k, v, do] + [log_sum, delta] * softmax + [table] + [dq_sum] * fused
    return plgpu.kernel(
        jagged_attention_backward,
        out_type=[jax.ShapeDtypeStruct(k.shape, k.dtype)] * len(parts),
        scratch_types=memory + barriers,
        grid=(programs,),
        grid_names=("program",),
        num_threads=WARPGROUPS + 1,
        thread_name="warpgroup",
        compiler_params=common.PARAMS,
    )(*arguments)


def _memory_names(fused, softmax):
    return ["q", "do", "k", "v"] + ["log_sum", "delta"] * softmax + ["ds", "dq"] * fused


def _barrier_names(fused):
    names = ["k_full", "v_full", "q_full", "do_full", "q_free", "do_free", "kv_free", "tail"]
    return names + ["ds_full", "k_read"] * fused


def _copy_item(inputs, scratch, item, steps, before, count, runs, group, tiling):
    """The copy warpgroup's part of one item."""
    q_ref, k_ref, v_ref, do_ref, *sums, _ = inputs

    def load(step, carry):
        head, row = head_and_row(item, step, runs, group)
        rows = pl.ds(item.q_start + row, QUERIES)
        for name, stages, ref, extra in (
            ("q", tiling.q_stages, q_ref, ("log_sum", 0)),
            ("do", tiling.do_stages, do_ref, ("delta", 1)),
        ):
            slot = lax.rem(before + step, stages)
            full = scratch[f"{name}_full"].at[slot]

            @pl.when(before + step >= stages)
            def _(name=name, slot=slot):
                plgpu.barrier_wait(scratch[f"{name}_free"].at[slot])

            end = item.q_length - row
            common.load_tile(ref.at[rows, head], scratch[name].at[slot], full, scratch["tail"], end)
            if sums:
                plgpu.copy_gmem_to_smem(sums[extra[1]].at[head, rows], scratch[extra[0]].at[slot], full)
        return carry

    # the first query tiles do not wait for the last item's K and V to be free
    first = jnp.minimum(steps, min(tiling.q_stages, tiling.do_stages))
    lax.fori_loop(0, first, load, ())

    @pl.when(count > 0)
    def _():
        plgpu.barrier_wait(scratch["kv_free"])

    keys = pl.ds(item.kv_start + item.row, TILE)
    for name, ref in (("k", k_ref), ("v", v_ref)):
        tile, end = ref.at[keys, item.head], item.kv_length - item.row
        common.load_tile(tile, scratch[name], scratch[f"{name}_full"], scratch["tail"], end)
    lax.fori_loop(first, steps, load, ())

"""Gradient of Q on Hopper by itself: with `mosaic_backward` without its fused dQ, the deterministic
backward pass (7 matmuls instead of 5, every sum in a fixed order)."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels.jagged_attention import mosaic_common as common
from pallas_kernels.jagged_attention.mosaic_common import ROWS, WARPGROUPS, Problem

TILE = WARPGROUPS * ROWS


@dataclasses.dataclass(frozen=True)
class Tiling:
    """Keys a step, and tiles in flight of K, of V, and of Q and dO (1 where shared memory has no room for 2)."""

    keys: int = 64
    stages: int = 2
    v_stages: int = 2
    q_stages: int = 1


@functools.partial(jax.jit, static_argnames=("problem", "tiling", "programs"))
def backward_q(q, k, v, do, log_sum, delta, table, gaps, problem: Problem, tiling: Tiling, programs: int) -> Array:
    """dQ [T, H, K] over the items of `table` (`Plan.by_query`).

    Arguments as in `mosaic_backward.backward_kv`, but `gaps` is `Plan.q_gaps`; K of 64, 128 or 256. 0 in rows
    of no sequence.
    """
    size, group = q.shape[2], q.shape[1] // k.shape[1]
    keys, stages, v_stages, q_stages = tiling.keys, tiling.stages, tiling.v_stages, tiling.q_stages
    softmax = problem.kind == "softmax"
    transforms = common.tiled(q.dtype)
    registers = common.BACKWARD_REGISTERS if size == 256 else common.FORWARD_REGISTERS

    def runs_of(item):
        return problem.key_tiles(item, TILE, keys)

    def steps_of(item):
        return runs_of(item).steps

    def jagged_attention_dq(q_ref, k_ref, v_ref, do_ref, *refs):
        *sums, table_ref, gaps_ref, dq_ref = refs[: 3 + 2 * softmax]
        q_sm, do_sm, k_sm, v_sm, sums_sm, zeros = refs[3 + 2 * softmax : 9 + 2 * softmax]
        q_full, q_free, k_full, v_full, k_free, v_free, tail = refs[9 + 2 * softmax :]
        log_sm, delta_sm = sums_sm.at[0], sums_sm.at[1]
        warpgroup = lax.axis_index("warpgroup")

        def free_last_key(before, step):
            """The previous step's dQ is done: its K is free."""
            if stages > 1:

                @pl.when(step > 0)
                def _():
                    plgpu.barrier_arrive(k_free.at[lax.rem(before + step + stages - 1, stages)])

        def own_steps(item, runs, row):
            edges = [problem.all_hidden(item, row, ROWS, runs.tile(step) * keys, keys) for step in (0, runs.steps - 1)]
            return common.working_steps(runs.steps, row >= item.q_length, *edges)

        def score_gradient(item, runs, step, q_slot, own, row, s_acc, dp_acc, before):
            slot = lax.rem(before + step, stages)
            first = runs.tile(step) * keys
            zero = common.hidden_zero(item) * step
            own = own + zero
            plgpu.barrier_wait(k_full.at[slot])
            plgpu.wgmma(s_acc, q_sm.at[q_slot, own], k_sm.at[slot].transpose((1, 0)))
            v_slot = lax.rem(before + step, v_stages) + zero
            plgpu.barrier_wait(v_full.at[v_slot])
            plgpu.wgmma(dp_acc, do_sm.at[q_slot, own], v_sm.at[v_slot].transpose((1, 0)))
            score = plgpu.wgmma_accumulator_load(s_acc, wait_n=1)
            shape = (ROWS, keys)

            def by_row(ref):
                values = plgpu.load(ref.at[q_slot, own], layout=plgpu.Layout.WGMMA.reduce(1))
                return lax.broadcast_in_dim(values, shape, [0])

            def select(value, blank):
                return common.hide(problem, item, (value,), blank, row, ROWS, first, keys)[0]

            if softmax:
                slope = jnp.exp2(score * (problem.scale * common.LOG2_E) - by_row(log_sm))
                slope = select(slope, 0.0)
            else:
                score = select(score, common.masked_score(problem))
                slope = common.activation_and_slope(problem, score)[1]
            # the slope is held in front of the wait for dP, as in `Walk.scores`
            slope = lax.optimization_barrier(slope)
            free_last_key(before, step)
            dp = plgpu.wgmma_accumulator_load(dp_acc, wait_n=0)
            plgpu.barrier_arrive(v_free.at[v_slot])
            if softmax:
                dp = dp - by_row(delta_sm)
            return (dp * slope).astype(q.dtype)

        @pl.when(warpgroup < WARPGROUPS)
        def _compute():
            plgpu.set_max_registers(registers[0], action="increase")

            def body(visit):
                item, steps, before = visit.item, visit.steps, visit.before
                q_slot = lax.rem(visit.number, q_stages)
                own = lax.axis_index("warpgroup") + common.hidden_zero(item)
                row, runs = item.row + own * ROWS, runs_of(item)
                plgpu.barrier_wait(q_full.at[q_slot])

                def loop(dq_acc):
                    def work(step):
                        acc = plgpu.ACC((ROWS, keys), jnp.float32)
                        ds = pl.run_scoped(
                            lambda s, dp: score_gradient(item, runs, step, q_slot, own, row, s, dp, before), acc, acc
                        )
                        plgpu.wgmma(dq_acc, ds, k_sm.at[lax.rem(before + step, stages)])
                        if stages == 1:
                            plgpu.wgmma_wait(0)
                            plgpu.barrier_arrive(k_free.at[0])

                    def idle(step):
                        plgpu.barrier_wait(k_full.at[lax.rem(before + step, stages)])
                        plgpu.barrier_wait(v_full.at[lax.rem(before + step, v_stages)])
                        plgpu.wgmma_wait(0)
                        free_last_key(before, step)
                        if stages == 1:
                            plgpu.barrier_arrive(k_free.at[0])
                        plgpu.barrier_arrive(v_free.at[lax.rem(before + step, v_stages)])

                    first, end = own_steps(item, runs, row)
                    common.loop_over_steps(steps, first, end, work, idle)
                    plgpu.wgmma_wait(0)
                    if stages > 1:
                        plgpu.barrier_arrive(k_free.at[lax.rem(before + steps - 1, stages)])
                    return dq_acc[...]

                dq = pl.run_scoped(loop, plgpu.ACC((ROWS, size), jnp.float32))
                inside = common.iota((ROWS, size), 0, row) < item.q_length
                dq = jnp.where(inside, dq * problem.gradient_scale, 0.0)
                staged = q_sm.at[q_slot, own]
                staged[...] = dq.astype(q.dtype)
                plgpu.commit_smem()
                valid = jnp.clip(item.q_length - row, 0, ROWS)
                common.store_rows(staged, dq_ref.at[:, item.head], item.q_start + row, valid, ROWS)
                plgpu.wait_smem_to_gmem(0, wait_read_only=True)
                plgpu.barrier_arrive(q_free.at[q_slot])

            common.item_loop(table_ref, problem, programs, steps_of, body)
            plgpu.wait_smem_to_gmem(0)

        @pl.when(warpgroup == WARPGROUPS)
        def _copy():
            plgpu.set_max_registers(registers[1], action="decrease")

            def body(visit):
                item, steps, before = visit.item, visit.steps, visit.before
                q_slot = lax.rem(visit.number, q_stages)
                runs, kv_head = runs_of(item), lax.div(item.head, group)

                @pl.when(visit.number >= q_stages)
                def _():
                    plgpu.barrier_wait(q_free.at[q_slot])

                for w in range(WARPGROUPS):
                    rows = pl.ds(item.q_start + item.row + w * ROWS, ROWS)
                    for ref, sm in ((q_ref, q_sm), (do_ref, do_sm)):
                        plgpu.copy_gmem_to_smem(ref.at[rows, item.head], sm.at[q_slot, w], q_full.at[q_slot])
                    for ref, sm in zip(sums, (log_sm, delta_sm), strict=False):
                        plgpu.copy_gmem_to_smem(ref.at[item.head, rows], sm.at[q_slot, w], q_full.at[q_slot])

                def load(step, carry):
                    first = runs.tile(step) * keys
                    for ref, sm, full, free, count in (
                        (k_ref, k_sm, k_full, k_free, stages),
                        (v_ref, v_sm, v_full, v_free, v_stages),
                    ):
                        slot = lax.rem(before + step, count)

                        @pl.when(before + step >= count)
                        def _(free=free, slot=slot):
                            plgpu.barrier_wait(free.at[slot])

                        tile = ref.at[pl.ds(item.kv_start + first, keys), kv_head]
                        common.load_tile(tile, sm.at[slot], full.at[slot], tail, item.kv_length - first)
                    return carry

                lax.fori_loop(0, steps, load, ())

            common.item_loop(table_ref, problem, programs, steps_of, body)
            common.zero_gaps(gaps_ref, [dq_ref], zeros, programs)

    def smem(*shape):
        return plgpu.SMEM(shape, q.dtype, transforms=transforms)

    return plgpu.kernel(
        jagged_attention_dq,
        out_type=jax.ShapeDtypeStruct(q.shape, q.dtype),
        scratch_types=[
            smem(q_stages, WARPGROUPS, ROWS, size),
            smem(q_stages, WARPGROUPS, ROWS, size),
            smem(stages, keys, size),
            smem(v_stages, keys, size),
            plgpu.SMEM((2, q_stages, WARPGROUPS, ROWS), jnp.float32),
            plgpu.SMEM(common.ZEROS, q.dtype),
            plgpu.Barrier(num_arrivals=2 * (1 + softmax) * WARPGROUPS, num_barriers=q_stages),
            plgpu.Barrier(num_arrivals=WARPGROUPS, num_barriers=q_stages),
            plgpu.Barrier(num_barriers=stages),
            plgpu.Barrier(num_barriers=v_stages),
            plgpu.Barrier(num_arrivals=WARPGROUPS, num_barriers=stages),
            plgpu.Barrier(num_arrivals=WARPGROUPS, num_barriers=v_stages),
            plgpu.Barrier(),
        ],
        grid=(programs,),
        grid_names=("program",),
        num_threads=WARPGROUPS + 1,
        thread_name="warpgroup",
        compiler_params=common.PARAMS,
    )(q, k, v, do, *([log_sum, delta] if softmax else []), table, gaps)

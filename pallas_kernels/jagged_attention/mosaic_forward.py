"""Forward pass on Hopper: TMA producer warpgroup, two compute warpgroups, persistent grid.

A program takes 128 queries of one head and walks their key tiles downwards. The scores of the next
tile are issued before this tile's product with V, so the activation runs under a matmul; with three Q
buffers that holds across items too: the next item's first scores are issued before this item's last
product, and this item's result is stored while they wait. Only tiles that hold a masked pair pay for a
mask. Factors go on the accumulator, not on the scores.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels.hopper import memory, program
from pallas_kernels.hopper.program import ROWS, WARPGROUPS
from pallas_kernels.jagged_attention import mosaic_items as items
from pallas_kernels.jagged_attention.mosaic_pipe import TILE, Pipe, Scratch, Tiling
from pallas_kernels.jagged_attention.mosaic_problem import Problem


@functools.partial(jax.jit, static_argnames=("problem", "tiling", "programs"))
def forward(
    q: Array, k: Array, v: Array, table: Array, gaps: Array, problem: Problem, tiling: Tiling, programs: int
) -> tuple[Array, Array | None]:
    """Attention over the items of `table` (`WorkList.by_query`).

    Args:
      q: [T, H, K]; k, v: [Tk, Hkv, K], bfloat16 or float16, K of 64, 128 or 256.
      gaps: `WorkList.q_gaps`.

    Returns:
      o: [T, H, K]; 0 in rows of no sequence.
      log_sum: float32 [H, T], log2 of softmax's denominators (of scores times log2 e), unwritten in rows of
        no sequence; None for the other kinds.
    """
    rows, heads, size = q.shape
    keys, stages, q_stages = tiling.keys, tiling.stages, tiling.q_stages
    group = heads // k.shape[1]
    softmax = problem.kind == "softmax"
    transforms = memory.tiled(q.dtype)

    def tile_runs(item):
        return problem.key_tiles(item, TILE, keys)

    def steps_of(item):
        return tile_runs(item).steps

    def jagged_attention_forward(q_ref, k_ref, v_ref, table_ref, gaps_ref, *refs):
        outs, (q_sm, k_sm, v_sm, sum_sm), barriers = refs[: 1 + softmax], refs[1 + softmax : -7], refs[-7:]
        q_full, k_full, v_full, k_free, v_free, q_free, tail = barriers
        at = Scratch(q_sm, k_sm, v_sm, sum_sm, q_full, k_full, v_full, k_free, v_free, q_free)
        warpgroup = lax.axis_index("warpgroup")

        @pl.when(warpgroup < WARPGROUPS)
        def _compute():
            plgpu.set_max_registers(program.REGISTERS[0], action="increase")

            def pipe_of(visit):
                return Pipe(problem, tiling, at, visit, tile_runs(visit.item))

            def begin(visit):
                return pipe_of(visit).start() if tiling.early else ()

            def body(visit, following, state):
                pipe = pipe_of(visit)
                out, log_sum, state = pipe.walk(state, pipe_of(following))
                pipe.store(out, log_sum, outs)
                return state

            items.linked_item_loop(table_ref, problem, programs, steps_of, begin, body)
            plgpu.wait_smem_to_gmem(0)

        @pl.when(warpgroup == WARPGROUPS)
        def _copy():
            plgpu.set_max_registers(program.REGISTERS[1], action="decrease")

            def body(visit):
                item, steps, before = visit.item, visit.steps, visit.before
                q_slot = lax.rem(visit.number, q_stages)
                runs, kv_head = tile_runs(item), lax.div(item.head, group)

                @pl.when(visit.number >= q_stages)
                def _():
                    plgpu.barrier_wait(q_free.at[q_slot])

                for w in range(WARPGROUPS):
                    own = pl.ds(item.q_start + item.row + w * ROWS, ROWS)
                    plgpu.copy_gmem_to_smem(q_ref.at[own, item.head], q_sm.at[q_slot, w], q_full.at[q_slot])

                def load(step, carry):
                    slot = lax.rem(before + step, stages)
                    first = runs.tile(steps - 1 - step) * keys
                    tile = pl.ds(item.kv_start + first, keys), kv_head

                    @pl.when(before + step >= stages)
                    def _():
                        plgpu.barrier_wait(k_free.at[slot])

                    plgpu.copy_gmem_to_smem(k_ref.at[tile], k_sm.at[slot], k_full.at[slot])

                    @pl.when(before + step >= stages)
                    def _():
                        plgpu.barrier_wait(v_free.at[slot])

                    end = item.kv_length - first  # masked keys weigh 0, but 0 * NaN is NaN
                    memory.load_tile(v_ref.at[tile], v_sm.at[slot], v_full.at[slot], tail, end)
                    return carry

                lax.fori_loop(0, steps, load, ())

            items.item_loop(table_ref, problem, programs, steps_of, body)
            memory.zero_gaps(gaps_ref, outs[:1], programs)

    def smem(*shape):
        return plgpu.SMEM(shape, q.dtype, transforms=transforms)

    sums = jax.ShapeDtypeStruct((heads, rows), jnp.float32)
    out = program.launch(
        jagged_attention_forward,
        out_type=[jax.ShapeDtypeStruct(q.shape, q.dtype)] + [sums] * softmax,
        scratch_types=[
            smem(q_stages, WARPGROUPS, ROWS, size),
            smem(stages, keys, size),
            smem(stages, keys, size),
            plgpu.SMEM((WARPGROUPS, ROWS), jnp.float32),
            plgpu.Barrier(num_arrivals=WARPGROUPS, num_barriers=q_stages),
            plgpu.Barrier(num_barriers=stages),
            plgpu.Barrier(num_barriers=stages),
            plgpu.Barrier(num_arrivals=WARPGROUPS, num_barriers=stages),
            plgpu.Barrier(num_arrivals=WARPGROUPS, num_barriers=stages),
            plgpu.Barrier(num_arrivals=WARPGROUPS, num_barriers=q_stages),
            plgpu.Barrier(),
        ],
        programs=programs,
    )(q, k, v, table, gaps)
    return (out[0], out[1]) if softmax else (out[0], None)

"""Forward pass on Hopper: TMA producer warpgroup, two compute warpgroups, persistent grid.

A program takes 128 queries of one head and walks their key tiles downwards. The scores of the next
tile are issued before this tile's product with V, so the activation runs under a matmul. Only tiles
that hold a masked pair pay for a mask. Factors go on the accumulator, not on the scores.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels.jagged_attention import mosaic_common as common
from pallas_kernels.jagged_attention.mosaic_common import ROWS, WARPGROUPS, Problem

TILE = WARPGROUPS * ROWS
LOWEST = -1e30  # a masked softmax score; finite, so that a tile with no visible key makes no NaN


@dataclasses.dataclass(frozen=True)
class Tiling:
    """Tile sizes: keys a step, K/V tiles in flight, and Q tiles in flight (2: the next item's early)."""

    keys: int = 128
    stages: int = 2
    q_stages: int = 2


def forward(
    q: Array, k: Array, v: Array, table: Array, problem: Problem, tiling: Tiling, programs: int
) -> tuple[Array, Array | None]:
    """Attention over the items of `table` (`Plan.by_query`).

    Args:
      q: [T, H, K]; k, v: [Tk, Hkv, K], bfloat16 or float16, K of 64, 128 or 256.

    Returns:
      o: [T, H, K]; unwritten (any bits) in rows outside the items' sequences, 0 up to the next multiple
        of 8 rows.
      log_sum: float32 [H, T], log2 of softmax's denominators (of scores times log2 e); None for the
        other kinds.
    """
    rows, heads, size = q.shape
    keys, stages, q_stages = tiling.keys, tiling.stages, tiling.q_stages
    group = heads // k.shape[1]
    softmax = problem.kind == "softmax"
    transforms = common.tiled(q.dtype)

    def tile_runs(item):
        return problem.key_tiles(item, TILE, keys)

    def steps_of(item):
        return tile_runs(item).steps

    def jagged_attention_forward(q_ref, k_ref, v_ref, table_ref, *refs):
        outs, (q_sm, k_sm, v_sm, sum_sm), barriers = refs[: 1 + softmax], refs[1 + softmax : -7], refs[-7:]
        q_full, k_full, v_full, k_free, v_free, q_free, tail = barriers
        warpgroup = lax.axis_index("warpgroup")

        @pl.when(warpgroup < WARPGROUPS)
        def _compute():
            plgpu.set_max_registers(common.FORWARD_REGISTERS[0], action="increase")

            def body(item, steps, before, count):
                own = lax.axis_index("warpgroup") + common.hidden_zero(item)
                q_slot = lax.rem(count, q_stages)
                q_own = q_sm.at[q_slot, own]
                row = item.row + own * ROWS
                plgpu.barrier_wait(q_full.at[q_slot])
                tiles = _Tiles(q_own, k_sm, v_sm, k_full, v_full, k_free, v_free)
                pipe = _Pipe(problem, item, row, steps, before, tile_runs(item), tiling, tiles)
                accumulator = plgpu.ACC((ROWS, size), jnp.float32)
                out = pl.run_scoped(pipe.softmax if softmax else pipe.elementwise, accumulator)
                if softmax:
                    out, log_sum = out
                    sum_sm.at[own][...] = log_sum
                inside = common.iota((ROWS, size), 0, row) < item.q_length
                q_own[...] = jnp.where(inside, out, 0.0).astype(q.dtype)
                plgpu.commit_smem()
                to, valid = item.q_start + row, jnp.clip(item.q_length - row, 0, ROWS)
                common.store_rows(q_own, outs[0].at[:, item.head], to, valid, ROWS)
                if softmax:
                    common.store_rows(sum_sm.at[own], outs[1].at[item.head], to, valid, ROWS)
                plgpu.wait_smem_to_gmem(0, wait_read_only=True)
                plgpu.barrier_arrive(q_free.at[q_slot])

            common.item_loop(table_ref, problem, programs, steps_of, body)
            plgpu.wait_smem_to_gmem(0)

        @pl.when(warpgroup == WARPGROUPS)
        def _copy():
            plgpu.set_max_registers(common.FORWARD_REGISTERS[1], action="decrease")

            def body(item, steps, before, count):
                q_slot = lax.rem(count, q_stages)
                runs, kv_head = tile_runs(item), lax.div(item.head, group)

                @pl.when(count >= q_stages)
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
                    common.load_tile(v_ref.at[tile], v_sm.at[slot], v_full.at[slot], tail, end)
                    return carry

                lax.fori_loop(0, steps, load, ())

            common.item_loop(table_ref, problem, programs, steps_of, body)

    def smem(*shape):
        return plgpu.SMEM(shape, q.dtype, transforms=transforms)

    sums = jax.ShapeDtypeStruct((heads, rows), jnp.float32)
    out = plgpu.kernel(
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
        grid=(programs,),
        grid_names=("program",),
        num_threads=WARPGROUPS + 1,
        thread_name="warpgroup",
        compiler_params=common.PARAMS,
    )(q, k, v, table)
    return (out[0], out[1]) if softmax else (out[0], None)


class _Tiles(NamedTuple):
    """Shared memory that one warpgroup reads, and its barriers: full (copied) and free (read)."""

    q: Any
    k: Any
    v: Any
    k_full: Any
    v_full: Any
    k_free: Any
    v_free: Any


class _Pipe:
    """One warpgroup's walk over the key tiles of an item."""

    def __init__(self, problem: Problem, item: common.Item, row, steps, before, runs, tiling: Tiling, at: _Tiles):
        self.problem, self.item, self.row = problem, item, row
        self.steps, self.before, self.runs, self.tiling = steps, before, runs, tiling
        self.at = at

    def slot(self, step):
        return lax.rem(self.before + step, self.tiling.stages)

    def issue_scores(self, scores, step):
        slot = self.slot(step)
        plgpu.barrier_wait(self.at.k_full.at[slot])
        plgpu.wgmma(scores, self.at.q, self.at.k.at[slot].transpose((1, 0)))

    def take_scores(self, scores, step, *, wait_n, blank):
        """The scores of a step, `blank` where masked; its K tile is free afterwards."""
        score = plgpu.wgmma_accumulator_load(scores, wait_n=wait_n)
        plgpu.barrier_arrive(self.at.k_free.at[self.slot(step)])
        keys = self.tiling.keys
        first = self.runs.tile(self.steps - 1 - step) * keys

        def masked():
            query = common.iota((ROWS, keys), 0, self.row)
            key = common.iota((ROWS, keys), 1, first)
            return jnp.where(self.problem.visible(self.item, query, key), score, blank)

        everything = self.problem.all_visible(self.item, self.row, ROWS, first, keys)
        return lax.cond(everything, lambda: score, masked)

    def wait_values(self, step):
        plgpu.barrier_wait(self.at.v_full.at[self.slot(step)])

    def issue_values(self, out, weights, step):
        plgpu.wgmma(out, weights, self.at.v.at[self.slot(step)])

    def finish_values(self, step):
        plgpu.wgmma_wait(0)
        plgpu.barrier_arrive(self.at.v_free.at[self.slot(step)])

    def elementwise(self, out):
        """-> o, float32 [ROWS, K]."""
        problem, dtype = self.problem, self.at.q.dtype
        blank = common.masked_score(problem)
        acc = plgpu.ACC((ROWS, self.tiling.keys), jnp.float32)

        def first(scores):
            self.issue_scores(scores, 0)
            score = self.take_scores(scores, 0, wait_n=0, blank=blank)
            return common.activation(problem, score).astype(dtype)

        def body(step, weights):
            def overlapped(scores):
                self.issue_scores(scores, step)
                self.wait_values(step - 1)
                self.issue_values(out, weights, step - 1)
                score = self.take_scores(scores, step, wait_n=1, blank=blank)
                following = common.activation(problem, score).astype(dtype)
                self.finish_values(step - 1)
                return following

            return pl.run_scoped(overlapped, acc)

        weights = pl.run_scoped(first, acc)
        weights = lax.fori_loop(1, self.steps, body, weights)
        self.wait_values(self.steps - 1)
        self.issue_values(out, weights, self.steps - 1)
        self.finish_values(self.steps - 1)
        return out[...] * (1.0 / problem.divide_by)

    def softmax(self, out):
        """-> o, float32 [ROWS, K], and log2 of the denominators, float32 [ROWS]."""
        dtype, shape = self.at.q.dtype, (ROWS, self.tiling.keys)
        factor = self.problem.scale * common.LOG2_E
        acc = plgpu.ACC(shape, jnp.float32)

        def by_row(x, like):
            return lax.broadcast_in_dim(x, like, [0])

        def weigh(score, top):
            """-> weights, new row maxima (of scores times factor)."""
            top = jnp.maximum(top, score.max(axis=1) * factor)
            return jnp.exp2(score * factor - by_row(top, shape)), top

        def first(scores):
            self.issue_scores(scores, 0)
            score = self.take_scores(scores, 0, wait_n=0, blank=LOWEST)
            # far above LOWEST: with equal values, a fused multiply-add's residue would be exp2's argument
            lowest = jnp.full((ROWS,), 0.5 * LOWEST * factor, jnp.float32)
            weights, top = weigh(score, plgpu.layout_cast(lowest, plgpu.Layout.WGMMA.reduce(1)))
            return weights.astype(dtype), top, weights.sum(axis=1)

        def body(step, carry):
            weights, top, total = carry

            def overlapped(scores):
                self.issue_scores(scores, step)
                self.wait_values(step - 1)
                self.issue_values(out, weights, step - 1)
                score = self.take_scores(scores, step, wait_n=1, blank=LOWEST)
                following, new_top = weigh(score, top)
                shrink = jnp.exp2(top - new_top)
                new_total = total * shrink + following.sum(axis=1)
                narrow = following.astype(dtype)
                self.finish_values(step - 1)
                out[...] = out[...] * by_row(shrink, out.shape)
                return narrow, new_top, new_total

            return pl.run_scoped(overlapped, acc)

        carry = pl.run_scoped(first, acc)
        weights, top, total = lax.fori_loop(1, self.steps, body, carry)
        self.wait_values(self.steps - 1)
        self.issue_values(out, weights, self.steps - 1)
        self.finish_values(self.steps - 1)
        return out[...] / by_row(total, out.shape), top + jnp.log(total) * common.LOG2_E

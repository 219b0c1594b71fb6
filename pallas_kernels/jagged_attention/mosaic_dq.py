"""Gradient of Q on Hopper by itself: with `mosaic_backward` without its fused dQ, the deterministic
backward pass (7 matmuls instead of 5, every sum in a fixed order).

A program takes 128 queries of one head and walks the key tiles that they see: S = Q K^T, dP = dO V^T, dQ += dS K.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels.hopper import matmul, memory, program
from pallas_kernels.hopper.program import ROWS, WARPGROUPS
from pallas_kernels.jagged_attention import mosaic_items as items
from pallas_kernels.jagged_attention import mosaic_problem as scores
from pallas_kernels.jagged_attention.mosaic_problem import Problem, Visit

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
    """dQ [T, H, K] over the items of `table` (`WorkList.by_query`).

    Arguments as in `mosaic_backward.backward_kv`, but `gaps` is `WorkList.q_gaps`; K of 64, 128 or 256. 0 in rows
    of no sequence.
    """
    size, group = q.shape[2], q.shape[1] // k.shape[1]
    keys, stages, v_stages, q_stages = tiling.keys, tiling.stages, tiling.v_stages, tiling.q_stages
    softmax = problem.kind == "softmax"
    transforms = memory.tiled(q.dtype)
    registers = program.MOST_REGISTERS if size == 256 else program.REGISTERS

    def runs_of(item):
        return problem.key_tiles(item, TILE, keys)

    def steps_of(item):
        return runs_of(item).steps

    def jagged_attention_dq(q_ref, k_ref, v_ref, do_ref, *refs):
        *sums, table_ref, gaps_ref, dq_ref = refs[: 3 + 2 * softmax]
        at = _Scratch(*refs[3 + 2 * softmax :])
        warpgroup = lax.axis_index("warpgroup")

        @pl.when(warpgroup < WARPGROUPS)
        def _compute():
            plgpu.set_max_registers(registers[0], action="increase")

            def body(visit):
                walk = _Walk(problem, tiling, at, visit, runs_of(visit.item))
                walk.store(pl.run_scoped(walk.run, plgpu.ACC((ROWS, size), jnp.float32)), dq_ref)

            items.item_loop(table_ref, problem, programs, steps_of, body)
            plgpu.wait_smem_to_gmem(0)

        @pl.when(warpgroup == WARPGROUPS)
        def _copy():
            plgpu.set_max_registers(registers[1], action="decrease")

            def body(visit):
                _copy_item((q_ref, k_ref, v_ref, do_ref, *sums), at, visit, runs_of(visit.item), group, tiling)

            items.item_loop(table_ref, problem, programs, steps_of, body)
            memory.zero_gaps(gaps_ref, [dq_ref], programs)

    def smem(*shape):
        return plgpu.SMEM(shape, q.dtype, transforms=transforms)

    return program.launch(
        jagged_attention_dq,
        out_type=jax.ShapeDtypeStruct(q.shape, q.dtype),
        scratch_types=[
            smem(q_stages, WARPGROUPS, ROWS, size),
            smem(q_stages, WARPGROUPS, ROWS, size),
            smem(stages, keys, size),
            smem(v_stages, keys, size),
            plgpu.SMEM((2, q_stages, WARPGROUPS, ROWS), jnp.float32),
            plgpu.Barrier(num_arrivals=2 * (1 + softmax) * WARPGROUPS, num_barriers=q_stages),
            plgpu.Barrier(num_arrivals=WARPGROUPS, num_barriers=q_stages),
            plgpu.Barrier(num_barriers=stages),
            plgpu.Barrier(num_barriers=v_stages),
            plgpu.Barrier(num_arrivals=WARPGROUPS, num_barriers=stages),
            plgpu.Barrier(num_arrivals=WARPGROUPS, num_barriers=v_stages),
            plgpu.Barrier(),
        ],
        programs=programs,
    )(q, k, v, do, *([log_sum, delta] if softmax else []), table, gaps)


class _Scratch(NamedTuple):
    """Shared memory (`sums`: log_sum, delta), and its barriers: full (copied) and free (read)."""

    q: Any
    do: Any
    k: Any
    v: Any
    sums: Any
    q_full: Any
    q_free: Any
    k_full: Any
    v_full: Any
    k_free: Any
    v_free: Any
    tail: Any


def _copy_item(tiles_of, at, visit, runs, group, tiling):
    """The copy warpgroup's part of one item."""
    q_ref, k_ref, v_ref, do_ref, *sums = tiles_of
    item, steps, before = visit.item, visit.steps, visit.before
    q_slot, kv_head = lax.rem(visit.number, tiling.q_stages), lax.div(item.head, group)

    @pl.when(visit.number >= tiling.q_stages)
    def _():
        plgpu.barrier_wait(at.q_free.at[q_slot])

    for w in range(WARPGROUPS):
        rows = pl.ds(item.q_start + item.row + w * ROWS, ROWS)
        for ref, sm in ((q_ref, at.q), (do_ref, at.do)):
            plgpu.copy_gmem_to_smem(ref.at[rows, item.head], sm.at[q_slot, w], at.q_full.at[q_slot])
        for number, ref in enumerate(sums):
            plgpu.copy_gmem_to_smem(ref.at[item.head, rows], at.sums.at[number, q_slot, w], at.q_full.at[q_slot])

    def load(step, carry):
        first = runs.tile(step) * tiling.keys
        for ref, sm, full, free, count in (
            (k_ref, at.k, at.k_full, at.k_free, tiling.stages),
            (v_ref, at.v, at.v_full, at.v_free, tiling.v_stages),
        ):
            slot = lax.rem(before + step, count)

            @pl.when(before + step >= count)
            def _(free=free, slot=slot):
                plgpu.barrier_wait(free.at[slot])

            tile = ref.at[pl.ds(item.kv_start + first, tiling.keys), kv_head]
            memory.load_tile(tile, sm.at[slot], full.at[slot], at.tail, item.kv_length - first)
        return carry

    lax.fori_loop(0, steps, load, ())


class _Walk:
    """One warpgroup's walk over the key tiles of an item."""

    def __init__(self, problem: Problem, tiling: Tiling, at: _Scratch, visit: Visit, runs):
        self.problem, self.tiling, self.at, self.runs = problem, tiling, at, runs
        self.item, self.steps, self.before, self.number = visit
        self.zero = program.hidden_zero(self.item.head)
        self.warpgroup = lax.axis_index("warpgroup") + self.zero
        self.row = self.item.row + self.warpgroup * ROWS
        self.q_slot = lax.rem(self.number, tiling.q_stages)
        self.shape = ROWS, tiling.keys

    def own(self, name, step):
        """This warpgroup's rows, at an address that looks as if it depended on the step (see `program.hidden_zero`)."""
        return getattr(self.at, name).at[self.q_slot, self.warpgroup + self.zero * step]

    def k_slot(self, step):
        return lax.rem(self.before + step + self.tiling.stages, self.tiling.stages)

    def v_slot(self, step):
        return lax.rem(self.before + step, self.tiling.v_stages)

    def own_steps(self):
        tiles = [self.runs.tile(step) * self.tiling.keys for step in (0, self.steps - 1)]
        edges = [self.problem.all_hidden(self.item, self.row, ROWS, key, self.tiling.keys) for key in tiles]
        return program.working_steps(self.steps, self.row >= self.item.q_length, *edges)

    def run(self, dq):
        """-> dQ, unscaled; `dq` is its accumulator."""
        plgpu.barrier_wait(self.at.q_full.at[self.q_slot])

        def work(step):
            ds = self.score_gradient(step)
            plgpu.wgmma(dq, ds, self.at.k.at[self.k_slot(step)])
            if self.tiling.stages == 1:
                plgpu.wgmma_wait(0)
                self.free_key(step)

        first, end = self.own_steps()
        program.loop_over_steps(self.steps, first, end, work, self.pass_by)
        plgpu.wgmma_wait(0)
        if self.tiling.stages > 1:
            self.free_key(self.steps - 1)
        return dq[...]

    def score_gradient(self, step):
        """S and dP of a step -> dS (dtype of q)."""
        v_slot = self.v_slot(step) + self.zero * step
        plgpu.barrier_wait(self.at.k_full.at[self.k_slot(step)])
        score = matmul.issue(self.own("q", step), self.at.k.at[self.k_slot(step)], transpose_b=True)
        plgpu.barrier_wait(self.at.v_full.at[v_slot])
        dp = matmul.issue(self.own("do", step), self.at.v.at[v_slot], transpose_b=True)
        self.free_last_queries(step)
        # the slope is held in front of the wait for dP, as in `Walk.scores`
        slope = lax.optimization_barrier(self.slope(matmul.arrived(score, 1), step))
        self.free_last_key(step)
        dp = matmul.arrived(dp, 0)
        plgpu.barrier_arrive(self.at.v_free.at[v_slot])
        if self.problem.kind == "softmax":
            dp = dp - self.by_row(1, step)
        return (dp * slope).astype(self.at.q.dtype)

    def slope(self, score, step):
        """What dS takes of a score: twice the activation's slope, or P for softmax; 0 where it is hidden."""
        first = self.runs.tile(step) * self.tiling.keys

        def select(value, blank):
            return scores.hide(self.problem, self.item, (value,), blank, self.row, ROWS, first, self.tiling.keys)[0]

        if self.problem.kind == "softmax":
            weight = jnp.exp2(score * (self.problem.scale * scores.LOG2_E) - self.by_row(0, step))
            return select(weight, 0.0)
        return scores.activation_and_slope(self.problem, select(score, scores.masked_score(self.problem)))[1]

    def by_row(self, number, step):
        """log_sum (0) or delta (1), for each score."""
        own = self.at.sums.at[number, self.q_slot, self.warpgroup + self.zero * step]
        return lax.broadcast_in_dim(plgpu.load(own, layout=plgpu.Layout.WGMMA.reduce(1)), self.shape, [0])

    def pass_by(self, step):
        """A step in which this warpgroup sees nothing."""
        plgpu.barrier_wait(self.at.k_full.at[self.k_slot(step)])
        plgpu.barrier_wait(self.at.v_full.at[self.v_slot(step)])
        plgpu.wgmma_wait(0)
        self.free_last_queries(step)
        self.free_last_key(step)
        if self.tiling.stages == 1:
            self.free_key(step)
        plgpu.barrier_arrive(self.at.v_free.at[self.v_slot(step)])

    def free_key(self, step):
        plgpu.barrier_arrive(self.at.k_free.at[self.k_slot(step)])

    def free_last_key(self, step):
        """The previous step's dQ is done: its K is free."""
        if self.tiling.stages > 1:
            pl.when(step > 0)(lambda: self.free_key(step - 1))

    def free_last_queries(self, step):
        """In the first step: give back Q and dO of the item before, once its dQ has left their tile."""
        stages = self.tiling.q_stages
        if stages == 1:
            return

        @pl.when((step == 0) & (self.number > 0))
        def _():
            plgpu.wait_smem_to_gmem(0, wait_read_only=True)
            plgpu.barrier_arrive(self.at.q_free.at[lax.rem(self.number + stages - 1, stages)])

    def store(self, dq, ref):
        """Write this warpgroup's rows through its Q buffer."""
        item = self.item
        inside = program.iota(dq.shape, 0, self.row) < item.q_length
        dq = jnp.where(inside, dq * self.problem.gradient_scale, 0.0)
        staged = self.own("q", 0)
        staged[...] = dq.astype(self.at.q.dtype)
        plgpu.commit_smem()
        valid = jnp.clip(item.q_length - self.row, 0, ROWS)
        memory.store_rows(staged, ref.at[:, item.head], item.q_start + self.row, valid, ROWS)
        if self.tiling.q_stages == 1:
            plgpu.wait_smem_to_gmem(0, wait_read_only=True)
            plgpu.barrier_arrive(self.at.q_free.at[self.q_slot])

"""What a compute warpgroup does in the backward kernel: the steps of `mosaic_backward`."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels.hopper import matmul, memory, program
from pallas_kernels.hopper.program import ROWS, WARPGROUPS
from pallas_kernels.jagged_attention import mosaic_problem as scores

TILE = WARPGROUPS * ROWS
QUERIES = 64  # queries a step


@dataclasses.dataclass(frozen=True)
class Tiling:
    """How the kernel runs.

    Attributes:
      q_stages, do_stages: tiles of Q and dO in flight.
      kv_stages: tiles in the ring that K and V of successive items share (at least 2; 3: the next item's K
        arrives while this item runs; 4: its V, too).
      late: compute dQ of a step in the next one, under its activation (K of 64: there the other
        matmuls are too short to hide it).
      shared_ds: take dS of dK = dS Q from shared memory, not registers (fewer registers; fused only).
    """

    q_stages: int = 2
    do_stages: int = 2
    kv_stages: int = 2
    late: bool = False
    shared_ds: bool = False

    @property
    def two_items(self) -> bool:
        """Do K and V of two items have room, so that this item's results may leave while the next one runs?"""
        return self.kv_stages >= 4


def head_and_row(item, step, runs, group):
    """Query head and first query of a step: all tiles of one head, then of the next one."""
    if group == 1:
        return item.head, runs.tile(step) * QUERIES
    per_head = runs.steps
    number = lax.div(step, per_head)
    return item.head * group + number, runs.tile(step - number * per_head) * QUERIES


class Walk:
    """One warpgroup's walk over the query tiles of an item; `at[name]` are scratch refs and barriers."""

    def __init__(self, problem, tiling, visit, runs, group, dq_ref, scratch):
        item = visit.item
        self.problem, self.tiling, self.item = problem, tiling, item
        self.steps, self.before, self.runs, self.group = visit.steps, visit.before, runs, group
        self.number = visit.number
        self.kv_slots = {"k": self.kv_slot(0), "v": self.kv_slot(1)}
        self.dq_ref, self.at = dq_ref, scratch
        self.zero = program.hidden_zero(item.head)
        self.warpgroup = lax.axis_index("warpgroup") + self.zero
        self.key = item.row + self.warpgroup * ROWS
        self.dtype = scratch["q"].dtype
        self.queries, self.first_query = QUERIES, 0  # whose scores this warpgroup computes, in a step's tile
        self.size = scratch["q"].shape[-1]

    def kv_slot(self, place):
        """In the ring in which K and V of successive items take turns; negative places are of the item before."""
        return lax.rem(2 * self.number + place + self.tiling.kv_stages, self.tiling.kv_stages)

    def q_slot(self, step):
        return lax.rem(self.before + step + self.tiling.q_stages, self.tiling.q_stages)

    def do_slot(self, step):
        return lax.rem(self.before + step, self.tiling.do_stages)

    def who(self, step):
        """This warpgroup's number, made to look as if it depended on the step."""
        return self.warpgroup + self.zero * step

    def own(self, name, step):
        return self.at["kv"].at[self.kv_slots[name], pl.ds(self.who(step) * ROWS, ROWS)]

    def row(self, step):
        return head_and_row(self.item, step, self.runs, self.group)[1]

    def own_steps(self):
        rows = [self.runs.tile(step) * QUERIES for step in (0, self.steps - 1)]
        edges = [self.problem.all_hidden(self.item, row, QUERIES, self.key, ROWS) for row in rows]
        if self.group > 1:  # one head's edges lie between those of others
            edges = [False, False]
        return program.working_steps(self.steps, self.key >= self.item.kv_length, *edges)

    # loads ------------------------------------------------------------------------------------

    def wait_keys(self, name):
        plgpu.barrier_wait(self.at["kv_full"].at[self.kv_slots[name]])

    def wait(self, name, slot):
        plgpu.barrier_wait(self.at[f"{name}_full"].at[slot])

    # matmuls ----------------------------------------------------------------------------------

    def issue_scores(self, step):
        return matmul.issue(self.own("k", step), self.at["q"].at[self.q_slot(step)], transpose_b=True)

    def issue_dp(self, step):
        return matmul.issue(self.own("v", step), self.at["do"].at[self.do_slot(step)], transpose_b=True)

    def issue_dv(self, acc, weights, step):
        plgpu.wgmma(acc, weights, self.at["do"].at[self.do_slot(step)])

    def issue_dk(self, acc, ds, step):
        if self.tiling.shared_ds:
            ds = self.at["ds"].at[lax.rem(self.before + step, 2), pl.ds(self.warpgroup * ROWS, ROWS)]
        plgpu.wgmma(acc, ds, self.at["q"].at[self.q_slot(step)])

    def issue_dq(self, step):
        columns = self.size // WARPGROUPS
        own = self.at["kv"].at[self.kv_slots["k"], :, pl.ds(self.who(step) * columns, columns)]
        return matmul.issue(self.at["ds"].at[lax.rem(self.before + step, 2)], own, transpose_a=True)

    # elementwise ------------------------------------------------------------------------------

    def weigh(self, score, step):
        """-> P (dtype of q), and what dS takes of it: the slope, or P for softmax."""
        row = self.row(step) + self.first_query

        def hide(*values, blank=0.0):
            return scores.hide(self.problem, self.item, values, blank, row, self.queries, self.key, ROWS, query_axis=1)

        if self.problem.kind == "softmax":
            log_sum = self.by_query(self.q_slot(step))
            (weight,) = hide(jnp.exp2(score * (self.problem.scale * scores.LOG2_E) - log_sum))
            # Kept narrow: float32 would spill. The barrier keeps LLVM from narrowing values one by one (F2F, which runs at
            # the rate of exp2) because each is widened again by itself; two at a time go at full rate.
            weight = lax.optimization_barrier(weight.astype(self.dtype))
            return weight, weight
        if self.tiling.late:
            # Hidden scores are dropped after the activation: ptxas orders instructions inside basic blocks only,
            # and without this branch between would wait for the running matmul before the activation is done.
            weight, slope = hide(*scores.activation_and_slope(self.problem, score))
        else:  # fewer registers
            (score,) = hide(score, blank=scores.masked_score(self.problem))
            weight, slope = scores.activation_and_slope(self.problem, score)
        return weight.astype(self.dtype), slope

    def by_query(self, slot):
        own = self.at["sums"].at[slot, pl.ds(self.first_query, self.queries)]
        values = plgpu.load(own, layout=plgpu.Layout.WGMMA.reduce(0))
        return lax.broadcast_in_dim(values, (ROWS, self.queries), [1])

    def score_gradient(self, dp, kept, step):
        if self.problem.kind == "softmax":
            dp = dp - self.by_query(self.tiling.q_stages + self.do_slot(step))
        return (dp * kept.astype(jnp.float32)).astype(self.dtype)

    # dS and dQ --------------------------------------------------------------------------------

    def share_ds(self, ds, step):
        slot = lax.rem(self.before + step, 2)
        self.at["ds"].at[slot, pl.ds(self.who(step) * ROWS, ROWS)][...] = ds
        plgpu.commit_smem()
        plgpu.barrier_arrive(self.at["ds_full"].at[slot])

    def share_no_ds(self, step):
        self.share_ds(plgpu.layout_cast(jnp.zeros((ROWS, QUERIES), self.dtype), plgpu.Layout.WGMMA), step)

    def add_late_dq(self, step):
        """dQ of a step whose dS is shared, with no other work beside it."""
        self.wait_ds(step)
        dq = self.issue_dq(step)
        self.claim_staging()
        self.add_dq(matmul.arrived(dq, 0), step)

    def wait_ds(self, step):
        plgpu.barrier_wait(self.at["ds_full"].at[lax.rem(self.before + step, 2)])

    def claim_staging(self):
        """Wait until the last tile of dQ has left shared memory; called under the matmul of the next one."""
        plgpu.wait_smem_to_gmem(0, wait_read_only=True)

    def add_dq(self, dq, step):
        """dQ's tile: this warpgroup's columns of all 64 queries, through shared memory that `claim_staging` found free."""
        staged = self.at["dq"].at[self.who(step)]
        memory.stage(staged, dq)
        plgpu.commit_smem()
        head, row = head_and_row(self.item, step, self.runs, self.group)
        columns = self.size // WARPGROUPS
        to = self.dq_ref.at[pl.ds(self.item.q_start + row, QUERIES), head, pl.ds(self.warpgroup * columns, columns)]
        plgpu.copy_smem_to_gmem(staged, to, reduction_op="add")

    # the two loops ----------------------------------------------------------------------------

    def over_steps(self, work, idle):
        """work(step) in the steps that are this warpgroup's, idle(step) in the others."""
        first, end = self.own_steps()
        self.wait_keys("k")
        pl.when(first > 0)(self.begin)  # else the first step's work does
        program.loop_over_steps(self.steps, first, end, work, idle)

    def begin(self):
        """What the first step waits for besides its own loads."""
        self.wait_keys("v")
        if self.tiling.two_items:
            self.free_last_keys()

    def pass_by(self, step):
        """Wait for the loads of an idle step, and give back the Q of the step before."""
        self.wait("q", self.q_slot(step))
        self.wait("do", self.do_slot(step))
        plgpu.wgmma_wait(0)
        self.free_last_q(step)

    def plain(self, dk, dv):
        """-> dK and dV, unscaled; dQ inside the step, warpgroups in lockstep."""

        def work(step):
            self.wait("q", self.q_slot(step))
            ds = self.scores(dv, step)
            do_free = self.at["do_free"].at[self.do_slot(step)]
            if self.dq_ref is None:
                self.issue_dk(dk, ds, step)
                plgpu.wgmma_wait(1)
                plgpu.barrier_arrive(do_free)
                return
            self.share_ds(ds, step)
            self.issue_dk(dk, ds, step)  # needs nothing of the other warpgroup
            self.wait_ds(step)
            dq = self.issue_dq(step)
            self.claim_staging()
            dq = matmul.arrived(dq, 0)
            plgpu.barrier_arrive(do_free)
            self.add_dq(dq, step)

        def idle(step):
            self.pass_by(step)
            if self.dq_ref is not None:
                self.share_no_ds(step)
                self.add_late_dq(step)
            plgpu.barrier_arrive(self.at["do_free"].at[self.do_slot(step)])

        self.over_steps(work, idle)
        return self.finish(dk, dv)

    def scores(self, dv, step):
        """S, dP and dV of a step -> dS (dtype of q)."""
        score = self.issue_scores(step)

        pl.when(step == 0)(self.begin)
        self.wait("do", self.do_slot(step))
        dp = self.issue_dp(step)
        score = matmul.arrived(score, 1)
        # The activation is held in front of the wait for dP: LLVM minds the barrier, ptxas the end of a basic block that
        # the branch in `free_last_q` makes.
        weights, kept = lax.optimization_barrier(self.weigh(score, step))
        self.free_last_q(step)
        self.issue_dv(dv, weights, step)
        return self.score_gradient(matmul.arrived(dp, 1), kept, step)

    def free_last_q(self, step):
        """The previous step's dK is done: its Q is free."""

        @pl.when(step > 0)
        def _():
            plgpu.barrier_arrive(self.at["q_free"].at[self.q_slot(step - 1)])

    def late(self, dk, dv):
        """-> dK and dV, unscaled; dQ of a step inside the next one."""
        self.wait_keys("k")

        def first_weights():
            score = self.issue_scores(0)
            self.wait_keys("v")
            self.wait("do", self.do_slot(0))
            dp = self.issue_dp(0)
            return *self.weigh(matmul.arrived(score, 1), 0), dp

        def weights_and_dq(step):
            """P of a step, under its dP and the step before's dQ."""
            score = self.issue_scores(step)
            self.wait("do", self.do_slot(step))
            dp = self.issue_dp(step)
            self.wait_ds(step - 1)
            dq = self.issue_dq(step - 1)
            self.claim_staging()
            score = matmul.arrived(score, 2)
            # dK of the previous step is done: its Q is free
            plgpu.barrier_arrive(self.at["q_free"].at[self.q_slot(step - 1)])
            weights, kept = lax.optimization_barrier(self.weigh(score, step))
            return weights, kept, dp, matmul.arrived(dq, 0)

        def step_body(step, first):
            self.wait("q", self.q_slot(step))
            weights, kept, dp, *dq = first_weights() if first else weights_and_dq(step)
            ds = self.score_gradient(matmul.arrived(dp, 0), kept, step)
            if not first:
                self.add_dq(dq[0], step - 1)
            self.share_ds(ds, step)
            self.issue_dv(dv, weights, step)
            self.issue_dk(dk, ds, step)
            plgpu.wgmma_wait(1)
            plgpu.barrier_arrive(self.at["do_free"].at[self.do_slot(step)])

        def body(step, carry):
            step_body(step, False)
            return carry

        step_body(0, True)
        if self.tiling.two_items:
            self.free_last_keys()
        lax.fori_loop(1, self.steps, body, ())
        self.add_late_dq(self.steps - 1)
        return self.finish(dk, dv)

    def finish(self, dk, dv):
        plgpu.wgmma_wait(0)
        plgpu.barrier_arrive(self.at["q_free"].at[self.q_slot(self.steps - 1)])
        return dk[...], dv[...]

    def store(self, sums, outs):
        """Write this warpgroup's rows of dK and dV, through the shared memory of K and V."""
        problem, item = self.problem, self.item
        valid = jnp.clip(item.kv_length - self.key, 0, ROWS)
        staged = self.own("k", 0), self.own("v", 0)
        staged[1][...] = (sums[1] * (1.0 / problem.divide_by)).astype(self.dtype)
        if self.dq_ref is not None:  # the other warpgroup may still read these rows of K for its dQ
            plgpu.barrier_arrive(self.at["k_read"])
            plgpu.barrier_wait(self.at["k_read"])
        staged[0][...] = (sums[0] * problem.gradient_scale).astype(self.dtype)
        plgpu.commit_smem()
        for tile, out in zip(staged, outs, strict=True):
            memory.store_rows(tile, out.at[:, item.head], item.kv_start + self.key, valid, ROWS)
        if not self.tiling.two_items:
            plgpu.wait_smem_to_gmem(0, wait_read_only=True)
            self.free_keys(*self.kv_slots.values())

    def free_last_keys(self):
        """Give back K and V of the item before, once its results have left their tiles."""
        plgpu.wait_smem_to_gmem(0, wait_read_only=True)
        pl.when(self.number > 0)(lambda: self.free_keys(self.kv_slot(-2), self.kv_slot(-1)))

    def free_keys(self, *slots):
        for slot in slots:
            plgpu.barrier_arrive(self.at["kv_free"].at[slot])

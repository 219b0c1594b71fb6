"""What a compute warpgroup does in the forward kernel: the steps of `mosaic_forward`."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels.hopper import matmul, memory, program
from pallas_kernels.hopper.program import ROWS, WARPGROUPS
from pallas_kernels.jagged_attention import mosaic_problem as scores
from pallas_kernels.jagged_attention.mosaic_problem import Problem, Visit

TILE = WARPGROUPS * ROWS
LOWEST = -1e30  # a masked softmax score; finite, so that a tile with no visible key makes no NaN


@dataclasses.dataclass(frozen=True)
class Tiling:
    """How the kernel runs.

    Attributes:
      keys: keys a step.
      stages: K and V tiles in flight.
      q_stages: Q tiles in flight (3: items overlap).
      hold: the activation is held to run under this warpgroup's own matmul (see `Pipe.held`).
    """

    keys: int = 128
    stages: int = 2
    q_stages: int = 3
    hold: bool = True

    @property
    def early(self) -> bool:
        """Is the next item's first step begun before this one's result is stored? The result is staged in
        its Q buffer, so that takes one buffer for each of two items and one for the loads ahead."""
        return self.q_stages >= 3


class Scratch(NamedTuple):
    """Shared memory, and its barriers: full (copied) and free (read)."""

    q: Any
    k: Any
    v: Any
    sums: Any
    q_full: Any
    k_full: Any
    v_full: Any
    k_free: Any
    v_free: Any
    q_free: Any


class Pipe:
    """One warpgroup's walk over the key tiles of an item.

    `state` is what a step hands to the next one: its weights (dtype of q) and, for softmax, the row maxima
    and sums so far. `q` are its queries in registers, or () where it does not hold them (`holds_q`) and every step reads
    them from shared memory.
    """

    def __init__(self, problem: Problem, tiling: Tiling, at: Scratch, visit: Visit, runs):
        self.problem, self.tiling, self.at = problem, tiling, at
        self.item, self.steps, self.before, self.number = visit
        self.runs, item = runs, visit.item
        self.warpgroup = lax.axis_index("warpgroup") + program.hidden_zero(item.head)
        self.row = item.row + self.warpgroup * ROWS
        self.q_slot = lax.rem(visit.number, tiling.q_stages)
        self.q = at.q.at[self.q_slot, self.warpgroup]
        self.dtype = at.q.dtype
        self.shape = ROWS, tiling.keys
        self.size = at.q.shape[-1]
        self.holds_q = self.size == 64  # in registers: at 128 that spills
        self.softmax = problem.kind == "softmax"
        self.factor = problem.scale * scores.LOG2_E
        self.first_step, self.last_step = self.own_steps()

    def own_steps(self):
        """(first, last) step in which this warpgroup sees anything: a window's outermost step may be the other
        warpgroup's alone. Elsewhere leaving one out did not pay (NOTES.md)."""
        last = self.steps - 1
        if not self.skips:
            return 0, last

        def hidden(step):
            key = self.runs.tile(last - step) * self.tiling.keys
            return self.problem.all_hidden(self.item, self.row, ROWS, key, self.tiling.keys)

        has_rows = self.row < self.item.q_length
        first = jnp.where(has_rows & hidden(0) & (last > 0), 1, 0)
        return first, jnp.where(has_rows & hidden(last) & (last > first), last - 1, last)

    @property
    def skips(self) -> bool:
        return self.problem.two_edges and self.tiling.keys < TILE

    def slot(self, step):
        return lax.rem(self.before + step, self.tiling.stages)

    # pieces of a step -------------------------------------------------------------------------

    def load_q(self):
        return plgpu.load(self.q, layout=plgpu.Layout.WGMMA) if self.holds_q else ()

    def issue_scores(self, q, step):
        return matmul.issue(q if self.holds_q else self.q, self.at.k.at[self.slot(step)], transpose_b=True)

    def wait_keys(self, step):
        plgpu.barrier_wait(self.at.k_full.at[self.slot(step)])

    def wait_values(self, step):
        plgpu.barrier_wait(self.at.v_full.at[self.slot(step)])

    def issue_values(self, out, state, step):
        self.wait_values(step)
        plgpu.wgmma(out, state[0], self.at.v.at[self.slot(step)])

    def finish_values(self, step):
        plgpu.wgmma_wait(0)
        plgpu.barrier_arrive(self.at.v_free.at[self.slot(step)])

    def masked(self, score, step):
        keys = self.tiling.keys
        first = self.runs.tile(self.steps - 1 - step) * keys
        blank = LOWEST if self.softmax else scores.masked_score(self.problem)
        (score,) = scores.hide(self.problem, self.item, (score,), blank, self.row, ROWS, first, keys)
        return score

    def by_row(self, values, shape):
        return lax.broadcast_in_dim(values, shape, [0])

    def weigh(self, score, state=None):
        """-> (state after these scores, its weights still float32, and what the sum so far shrinks by or None)."""
        if not self.softmax:
            return (scores.activation(self.problem, score),), None
        if state is None:
            # far above LOWEST: with equal values, a fused multiply-add's residue would be exp2's argument
            lowest = jnp.full((ROWS,), 0.5 * LOWEST * self.factor, jnp.float32)
            before = plgpu.layout_cast(lowest, plgpu.Layout.WGMMA.reduce(1))
        else:
            before = state[1]
        top = jnp.maximum(before, score.max(axis=1) * self.factor)  # of scores times factor
        weights = jnp.exp2(score * self.factor - self.by_row(top, self.shape))
        total = weights.sum(axis=1)
        if state is None:
            return (weights, top, total), None
        shrink = jnp.exp2(before - top)
        return (weights, top, state[2] * shrink + total), shrink

    def held(self, state, step):
        """state, computed before the wait for the running product that follows.

        Left alone, LLVM and ptxas move that wait up and the activation behind it. LLVM minds the barrier here, ptxas
        only the ends of basic blocks: the wait for the next step's K makes one.
        """
        if self.tiling.hold:
            state = lax.optimization_barrier(state)
            pl.when(step + 1 < self.steps)(lambda: self.wait_keys(step + 1))
        return state

    def narrow(self, state):
        return state[0].astype(self.dtype), *state[1:]

    # the walk ---------------------------------------------------------------------------------

    def start(self, out=None, last: Pipe | None = None, state=None):
        """-> q, and state after step 0. `last`: the item before, whose last product (from `state`) is done meanwhile;
        then this item may be missing (`steps` 0), and the state means nothing."""
        self.when_here(lambda: plgpu.barrier_wait(self.at.q_full.at[self.q_slot]), last)
        if self.skips:
            pl.when(self.first_step > 0)(lambda: self.pass_by(0))
        self.when_here(lambda: self.wait_keys(self.first_step), last)
        q = self.load_q()
        score = self.issue_scores(q, self.first_step)
        if last is not None:
            last.issue_values(out, state, last.last_step)
        score = matmul.arrived(score, 0 if last is None else 1)
        self.when_here(lambda: plgpu.barrier_arrive(self.at.k_free.at[self.slot(self.first_step)]), last)
        begun, _ = self.weigh(self.masked(score, self.first_step))
        begun = self.held(begun, self.first_step)
        if last is not None:
            last.finish_all()
        return q, self.narrow(begun)

    def when_here(self, action, last):
        if last is None:
            action()
        else:
            pl.when(self.steps > 0)(action)

    def step(self, out, q, state, step):
        """The scores of a step over the product of the one before -> state."""
        if not self.tiling.hold:
            self.wait_keys(step)
        score = self.issue_scores(q, step)
        self.issue_values(out, state, step - 1)
        score = matmul.arrived(score, 1)
        plgpu.barrier_arrive(self.at.k_free.at[self.slot(step)])
        following, shrink = self.weigh(self.masked(score, step), state)
        following = self.held(following, step)
        self.finish_values(step - 1)
        if shrink is not None:
            out[...] = out[...] * self.by_row(shrink, out.shape)
        return self.narrow(following)

    def finish_all(self):
        self.finish_values(self.last_step)
        if self.skips:
            pl.when(self.last_step < self.steps - 1)(lambda: self.pass_by(self.steps - 1))

    def pass_by(self, step):
        """K and V of a first or last step that is the other warpgroup's alone."""
        if self.tiling.hold:
            pl.when(step == 0)(lambda: self.wait_keys(step))  # the step before the last has waited
        else:
            self.wait_keys(step)
        plgpu.barrier_arrive(self.at.k_free.at[self.slot(step)])
        self.wait_values(step)
        plgpu.barrier_arrive(self.at.v_free.at[self.slot(step)])

    def skip(self, step, carry):
        """A step of the copy warpgroup's that this one has no rows for."""
        # each K and V once, in turn; the first step of all has waited for the K after it
        pl.when(step > self.first_step + int(self.tiling.hold))(lambda: self.wait_keys(step))
        plgpu.barrier_arrive(self.at.k_free.at[self.slot(step)])
        self.wait_values(step - 1)
        plgpu.barrier_arrive(self.at.v_free.at[self.slot(step - 1)])
        return carry

    def walk(self, begun, following: Pipe):
        """-> o float32 [ROWS, K], log_sum float32 [ROWS] or None, and what the next item's `start` gave (see
        `Tiling.early`), as `begun` is of this one."""
        early = self.tiling.early
        q, state = begun if early else self.start()

        def loop(out):
            idle = self.row >= self.item.q_length  # a sequence's last tile may have rows of one warpgroup only
            worked = jnp.where(idle, 1, self.last_step + 1)
            end = lax.fori_loop(self.first_step + 1, worked, lambda step, state: self.step(out, q, state, step), state)
            lax.fori_loop(worked, jnp.where(idle, self.steps, worked), self.skip, ())
            if early:
                begun = following.start(out, self, end)
            else:
                self.issue_values(out, end, self.last_step)
                self.finish_all()
                begun = ()
            return out[...], end[1:], begun

        out, sums, begun = pl.run_scoped(loop, plgpu.ACC((ROWS, self.size), jnp.float32))
        if not self.softmax:
            return out * (1.0 / self.problem.divide_by), None, begun
        top, total = sums
        return out / self.by_row(total, out.shape), top + jnp.log(total) * scores.LOG2_E, begun

    def inside(self, out):
        """out in the dtype of q, with 0 in the rows beyond the sequence."""

        def cut():
            inside = program.iota(out.shape, 0, self.row) < self.item.q_length
            return jnp.where(inside, out, 0.0).astype(self.dtype)

        return lax.cond(self.row + ROWS <= self.item.q_length, lambda: out.astype(self.dtype), cut)

    def store(self, out, log_sum, refs):
        """Write this warpgroup's rows through its Q buffer."""
        item, early = self.item, self.tiling.early
        if early:  # the item before: its Q buffer is long read, and the shared memory of its sums too
            plgpu.wait_smem_to_gmem(0, wait_read_only=True)
            stages = self.tiling.q_stages
            pl.when(self.number > 0)(
                lambda: plgpu.barrier_arrive(self.at.q_free.at[lax.rem(self.number + stages - 1, stages)])
            )
        self.q[...] = self.inside(out)
        sums = self.at.sums.at[self.warpgroup]
        if log_sum is not None:
            sums[...] = log_sum
        plgpu.commit_smem()
        to, valid = item.q_start + self.row, jnp.clip(item.q_length - self.row, 0, ROWS)
        memory.store_rows(self.q, refs[0].at[:, item.head], to, valid, ROWS)
        if log_sum is not None:
            memory.store_rows(sums, refs[1].at[item.head], to, valid, ROWS)
        if not early:
            plgpu.wait_smem_to_gmem(0, wait_read_only=True)
            plgpu.barrier_arrive(self.at.q_free.at[self.q_slot])

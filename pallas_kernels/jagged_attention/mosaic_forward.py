"""Forward pass on Hopper: TMA producer warpgroup, two compute warpgroups, persistent grid.

A program takes 128 queries of one head and walks their key tiles downwards. The scores of the next
tile are issued before this tile's product with V, so the activation runs under a matmul; with three Q
buffers that holds across items too: the next item's first scores are issued before this item's last
product, and this item's result is stored while they wait. Only tiles that hold a masked pair pay for a
mask. Factors go on the accumulator, not on the scores.
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

from pallas_kernels.jagged_attention import mosaic_common as common
from pallas_kernels.jagged_attention.mosaic_common import ROWS, WARPGROUPS, Problem

TILE = WARPGROUPS * ROWS
LOWEST = -1e30  # a masked softmax score; finite, so that a tile with no visible key makes no NaN


@dataclasses.dataclass(frozen=True)
class Tiling:
    """How the kernel runs.

    Attributes:
      keys: keys a step.
      stages: K and V tiles in flight.
      q_stages: Q tiles in flight (3: items overlap).
      hold: the activation is held to run under this warpgroup's own matmul (see `_Pipe.held`).
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


@functools.partial(jax.jit, static_argnames=("problem", "tiling", "programs"))
def forward(
    q: Array, k: Array, v: Array, table: Array, gaps: Array, problem: Problem, tiling: Tiling, programs: int
) -> tuple[Array, Array | None]:
    """Attention over the items of `table` (`Plan.by_query`).

    Args:
      q: [T, H, K]; k, v: [Tk, Hkv, K], bfloat16 or float16, K of 64, 128 or 256.
      gaps: `Plan.q_gaps`.

    Returns:
      o: [T, H, K]; 0 in rows of no sequence.
      log_sum: float32 [H, T], log2 of softmax's denominators (of scores times log2 e), unwritten in rows of
        no sequence; None for the other kinds.
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

    def jagged_attention_forward(q_ref, k_ref, v_ref, table_ref, gaps_ref, *refs):
        outs, (q_sm, k_sm, v_sm, sum_sm, zeros), barriers = refs[: 1 + softmax], refs[1 + softmax : -7], refs[-7:]
        q_full, k_full, v_full, k_free, v_free, q_free, tail = barriers
        at = _Scratch(q_sm, k_sm, v_sm, sum_sm, q_full, k_full, v_full, k_free, v_free, q_free)
        warpgroup = lax.axis_index("warpgroup")

        @pl.when(warpgroup < WARPGROUPS)
        def _compute():
            plgpu.set_max_registers(common.FORWARD_REGISTERS[0], action="increase")

            def pipe_of(visit):
                return _Pipe(problem, tiling, at, visit, tile_runs(visit.item))

            def begin(visit):
                return pipe_of(visit).start() if tiling.early else ()

            def body(visit, following, state):
                pipe = pipe_of(visit)
                out, log_sum, state = pipe.walk(state, pipe_of(following))
                pipe.store(out, log_sum, outs)
                return state

            common.linked_item_loop(table_ref, problem, programs, steps_of, begin, body)
            plgpu.wait_smem_to_gmem(0)

        @pl.when(warpgroup == WARPGROUPS)
        def _copy():
            plgpu.set_max_registers(common.FORWARD_REGISTERS[1], action="decrease")

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
                    common.load_tile(v_ref.at[tile], v_sm.at[slot], v_full.at[slot], tail, end)
                    return carry

                lax.fori_loop(0, steps, load, ())

            common.item_loop(table_ref, problem, programs, steps_of, body)
            common.zero_gaps(gaps_ref, outs[:1], zeros, programs)

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
            plgpu.SMEM(common.ZEROS, q.dtype),
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
    )(q, k, v, table, gaps)
    return (out[0], out[1]) if softmax else (out[0], None)


class _Scratch(NamedTuple):
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


class _Pipe:
    """One warpgroup's walk over the key tiles of an item.

    `state` is what a step hands to the next one: its weights (dtype of q) and, for softmax, the row maxima
    and sums so far. `q` are its queries in registers, or () where it does not hold them (`holds_q`) and every step reads
    them from shared memory.
    """

    def __init__(self, problem: Problem, tiling: Tiling, at: _Scratch, visit: common.Visit, runs):
        self.problem, self.tiling, self.at = problem, tiling, at
        self.item, self.steps, self.before, self.number = visit
        self.runs, item = runs, visit.item
        self.warpgroup = lax.axis_index("warpgroup") + common.hidden_zero(item)
        self.row = item.row + self.warpgroup * ROWS
        self.q_slot = lax.rem(visit.number, tiling.q_stages)
        self.q = at.q.at[self.q_slot, self.warpgroup]
        self.dtype = at.q.dtype
        self.shape = ROWS, tiling.keys
        self.size = at.q.shape[-1]
        self.holds_q = self.size == 64  # in registers: at 128 that spills
        self.softmax = problem.kind == "softmax"
        self.factor = problem.scale * common.LOG2_E

    def slot(self, step):
        return lax.rem(self.before + step, self.tiling.stages)

    # pieces of a step -------------------------------------------------------------------------

    def load_q(self):
        return plgpu.load(self.q, layout=plgpu.Layout.WGMMA) if self.holds_q else ()

    def issue_scores(self, scores, q, step):
        slot = self.slot(step)
        plgpu.wgmma(scores, q if self.holds_q else self.q, self.at.k.at[slot].transpose((1, 0)))

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
        blank = LOWEST if self.softmax else common.masked_score(self.problem)
        (score,) = common.hide(self.problem, self.item, (score,), blank, self.row, ROWS, first, keys)
        return score

    def by_row(self, values, shape):
        return lax.broadcast_in_dim(values, shape, [0])

    def weigh(self, score, state=None):
        """-> (state after these scores, its weights still float32, and what the sum so far shrinks by or None)."""
        if not self.softmax:
            return (common.activation(self.problem, score),), None
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

    def start(self, out=None, last: _Pipe | None = None, state=None):
        """-> q, and state after step 0. `last`: the item before, whose last product (from `state`) is done meanwhile;
        then this item may be missing (`steps` 0), and the state means nothing."""

        def run(scores):
            self.when_here(lambda: plgpu.barrier_wait(self.at.q_full.at[self.q_slot]), last)
            self.when_here(lambda: self.wait_keys(0), last)
            q = self.load_q()
            self.issue_scores(scores, q, 0)
            if last is not None:
                last.issue_values(out, state, last.steps - 1)
            score = plgpu.wgmma_accumulator_load(scores, wait_n=0 if last is None else 1)
            self.when_here(lambda: plgpu.barrier_arrive(self.at.k_free.at[self.slot(0)]), last)
            begun, _ = self.weigh(self.masked(score, 0))
            begun = self.held(begun, 0)
            if last is not None:
                last.finish_values(last.steps - 1)
            return q, self.narrow(begun)

        return pl.run_scoped(run, plgpu.ACC(self.shape, jnp.float32))

    def when_here(self, action, last):
        if last is None:
            action()
        else:
            pl.when(self.steps > 0)(action)

    def step(self, out, q, state, step):
        """The scores of a step over the product of the one before -> state."""

        def run(scores):
            if not self.tiling.hold:
                self.wait_keys(step)
            self.issue_scores(scores, q, step)
            self.issue_values(out, state, step - 1)
            score = plgpu.wgmma_accumulator_load(scores, wait_n=1)
            plgpu.barrier_arrive(self.at.k_free.at[self.slot(step)])
            following, shrink = self.weigh(self.masked(score, step), state)
            following = self.held(following, step)
            self.finish_values(step - 1)
            if shrink is not None:
                out[...] = out[...] * self.by_row(shrink, out.shape)
            return self.narrow(following)

        return pl.run_scoped(run, plgpu.ACC(self.shape, jnp.float32))

    def skip(self, step, carry):
        """A step of the copy warpgroup's that this one has no rows for."""
        # each K and V once, in turn; the first step of all has waited for the K after it
        pl.when(step > int(self.tiling.hold))(lambda: self.wait_keys(step))
        plgpu.barrier_arrive(self.at.k_free.at[self.slot(step)])
        self.wait_values(step - 1)
        plgpu.barrier_arrive(self.at.v_free.at[self.slot(step - 1)])
        return carry

    def walk(self, begun, following: _Pipe):
        """-> o float32 [ROWS, K], log_sum float32 [ROWS] or None, and what the next item's `start` gave (see
        `Tiling.early`), as `begun` is of this one."""
        early = self.tiling.early
        q, state = begun if early else self.start()

        def loop(out):
            idle = self.row >= self.item.q_length  # a sequence's last tile may have rows of one warpgroup only
            worked = jnp.where(idle, 1, self.steps)
            end = lax.fori_loop(1, worked, lambda step, state: self.step(out, q, state, step), state)
            lax.fori_loop(worked, self.steps, self.skip, ())
            if early:
                begun = following.start(out, self, end)
            else:
                self.issue_values(out, end, self.steps - 1)
                self.finish_values(self.steps - 1)
                begun = ()
            return out[...], end[1:], begun

        out, sums, begun = pl.run_scoped(loop, plgpu.ACC((ROWS, self.size), jnp.float32))
        if not self.softmax:
            return out * (1.0 / self.problem.divide_by), None, begun
        top, total = sums
        return out / self.by_row(total, out.shape), top + jnp.log(total) * common.LOG2_E, begun

    def inside(self, out):
        """out in the dtype of q, with 0 in the rows beyond the sequence."""

        def cut():
            inside = common.iota(out.shape, 0, self.row) < self.item.q_length
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
        common.store_rows(self.q, refs[0].at[:, item.head], to, valid, ROWS)
        if log_sum is not None:
            common.store_rows(sums, refs[1].at[item.head], to, valid, ROWS)
        if not early:
            plgpu.wait_smem_to_gmem(0, wait_read_only=True)
            plgpu.barrier_arrive(self.at.q_free.at[self.q_slot])

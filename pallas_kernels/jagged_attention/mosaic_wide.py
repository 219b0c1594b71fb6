"""Gradients of K and V for heads of 256 on Hopper, in four matmuls (`mosaic_dq` adds three for dQ).

dK and dV of 64 keys fill 256 registers of a thread, so here both warpgroups work on the same 64 keys and each
keeps one half of the head's columns. For a tile of 64 queries each computes the scores of 32 of them; P and dS
are exchanged through shared memory. dQ fused with this was slower than by itself: staging it took the shared memory
of the second dO tile, and its two halves had nothing to run under.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels.hopper import matmul, memory, program
from pallas_kernels.hopper.program import ROWS, WARPGROUPS
from pallas_kernels.jagged_attention import mosaic_items as items
from pallas_kernels.jagged_attention.mosaic_problem import Problem, Visit
from pallas_kernels.jagged_attention.mosaic_walk import QUERIES, TILE, Tiling, Walk, head_and_row

HALVES = TILE // ROWS  # an item of the work list is done in two parts of 64 keys
NAMES = ("q", "do", "k", "v", "p", "ds", "sums")
BARRIERS = ("k_full", "v_full", "q_full", "do_full", "q_free", "do_free", "kv_free", "tail", "shared")


@functools.partial(jax.jit, static_argnames=("problem", "tiling", "programs"))
def backward_kv(q, k, v, do, log_sum, delta, table, gaps, problem: Problem, tiling: Tiling, programs: int, dq_sum=None):
    """dK and dV, as `mosaic_backward.backward_kv` computes them for narrower heads."""
    size, group = q.shape[2], q.shape[1] // k.shape[1]
    softmax = problem.kind == "softmax"

    def runs_of(item):
        return problem.query_tiles(item, ROWS, QUERIES)

    def parts_of(item):
        """[(item of 64 keys, its steps)] of an item of 128."""
        parts = [item._replace(row=item.row + half * ROWS) for half in range(HALVES)]
        return [(x, jnp.where(x.row < x.kv_length, runs_of(x).steps * group, 0)) for x in parts]

    def steps_of(item):
        return sum(steps for _, steps in parts_of(item))

    def by_half(visit, action):
        """action(visit of a part) for the parts that have keys."""
        parts = parts_of(visit.item)

        def run(half, before):
            steps = jnp.where(half == 0, parts[0][1], parts[1][1])
            item = visit.item._replace(row=visit.item.row + half * ROWS)
            pl.when(steps > 0)(lambda: action(Visit(item, steps, before, visit.number * HALVES + half)))
            return before + steps

        lax.fori_loop(0, HALVES, run, visit.before)

    def jagged_attention_wide_backward(*refs):
        inputs, refs = refs[: 6 + 2 * softmax], refs[6 + 2 * softmax :]
        outs, scratch = refs[:2], dict(zip(NAMES + BARRIERS, refs[2:], strict=True))
        *tiles_of, table_ref, gaps_ref = inputs
        warpgroup = lax.axis_index("warpgroup")

        @pl.when(warpgroup < WARPGROUPS)
        def _compute():
            plgpu.set_max_registers(program.REGISTERS[0], action="increase")

            def part(visit):
                walk = _WideWalk(problem, tiling, visit, runs_of(visit.item), group, None, scratch)
                half = plgpu.ACC((ROWS, size // WARPGROUPS), jnp.float32)
                walk.store(pl.run_scoped(walk.wide, half, half), outs)

            items.item_loop(table_ref, problem, programs, steps_of, lambda visit: by_half(visit, part))
            plgpu.wait_smem_to_gmem(0)

        @pl.when(warpgroup == WARPGROUPS)
        def _copy():
            plgpu.set_max_registers(program.REGISTERS[1], action="decrease")

            def part(visit):
                _copy_part(tiles_of, scratch, visit, runs_of(visit.item), group, tiling)

            items.item_loop(table_ref, problem, programs, steps_of, lambda visit: by_half(visit, part))
            memory.zero_gaps(gaps_ref, outs, programs)

    def smem(*shape):
        # P and dS are written in slices of 32 columns, whole tiles of a 64-byte swizzle; a matmul's operands share one
        return plgpu.SMEM(shape, q.dtype, transforms=memory.tiled(q.dtype, 64))

    q_stages, do_stages, copies = tiling.q_stages, tiling.do_stages, 1 + softmax
    arguments = [q, k, v, do] + [log_sum, delta] * softmax + [table, gaps]
    return program.launch(
        jagged_attention_wide_backward,
        out_type=[jax.ShapeDtypeStruct(k.shape, k.dtype)] * 2,
        scratch_types=[
            smem(q_stages, QUERIES, size),
            smem(do_stages, QUERIES, size),
            smem(ROWS, size),
            smem(ROWS, size),
            smem(2, ROWS, QUERIES),
            smem(2, ROWS, QUERIES),
            plgpu.SMEM((q_stages + do_stages, QUERIES), jnp.float32),
            plgpu.Barrier(),
            plgpu.Barrier(),
            plgpu.Barrier(num_arrivals=copies, num_barriers=q_stages),
            plgpu.Barrier(num_arrivals=copies, num_barriers=do_stages),
            plgpu.Barrier(num_arrivals=WARPGROUPS, num_barriers=q_stages),
            plgpu.Barrier(num_arrivals=WARPGROUPS, num_barriers=do_stages),
            plgpu.Barrier(num_arrivals=WARPGROUPS),
            plgpu.Barrier(),
            plgpu.Barrier(num_arrivals=WARPGROUPS),
        ],
        programs=programs,
    )(*arguments)


def _copy_part(tiles_of, scratch, visit, runs, group, tiling):
    """The copy warpgroup's share of a part of 64 keys."""
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

            memory.load_tile(ref.at[rows, head], scratch[name].at[slot], full, scratch["tail"], item.q_length - row)
            if sums:
                target = scratch["sums"].at[number * tiling.q_stages + slot]
                plgpu.copy_gmem_to_smem(sums[number].at[head, rows], target, full)
        return carry

    first = jnp.minimum(visit.steps, min(tiling.q_stages, tiling.do_stages))
    lax.fori_loop(0, first, load, ())
    pl.when(before > 0)(lambda: plgpu.barrier_wait(scratch["kv_free"]))
    keys = pl.ds(item.kv_start + item.row, ROWS)
    for name, ref in (("k", k_ref), ("v", v_ref)):
        tile, end = ref.at[keys, item.head], item.kv_length - item.row
        memory.load_tile(tile, scratch[name], scratch[f"{name}_full"], scratch["tail"], end)
    lax.fori_loop(first, visit.steps, load, ())


class _WideWalk(Walk):
    """One warpgroup's share of a walk: 32 queries of each tile's scores, half of the columns of each sum."""

    def __init__(self, problem, tiling, visit, runs, group, dq_ref, scratch):
        super().__init__(problem, tiling, visit, runs, group, dq_ref, scratch)
        self.key = visit.item.row
        self.queries = QUERIES // WARPGROUPS
        self.first_query = self.warpgroup * self.queries
        self.columns = self.size // WARPGROUPS

    def own_columns(self, step):
        return pl.ds(self.who(step) * self.columns, self.columns)

    def keys(self, name, step):
        """K or V, at an address that looks as if it depended on the step (see `program.hidden_zero`)."""
        return self.at[name].at[pl.ds(self.zero * step * ROWS, ROWS)]

    def wide(self, dk, dv):
        """-> dK and dV of this warpgroup's columns, unscaled."""
        plgpu.barrier_wait(self.at["k_full"])
        plgpu.barrier_wait(self.at["v_full"])

        def body(step, carry):
            slot = lax.rem(self.before + step, 2)
            q, do = self.at["q"].at[self.q_slot(step)], self.at["do"].at[self.do_slot(step)]
            self.share(q, do, slot, step)
            plgpu.wgmma(dv, self.at["p"].at[slot], do.at[:, self.own_columns(step)])
            plgpu.wgmma(dk, self.at["ds"].at[slot], q.at[:, self.own_columns(step)])
            plgpu.wgmma_wait(0)
            plgpu.barrier_arrive(self.at["q_free"].at[self.q_slot(step)])
            plgpu.barrier_arrive(self.at["do_free"].at[self.do_slot(step)])
            return carry

        lax.fori_loop(0, self.steps, body, ())
        return dk[...], dv[...]

    def share(self, q, do, slot, step):
        """P and dS of this warpgroup's queries to shared memory; returns when both have done so."""
        own = pl.ds(self.who(step) * self.queries, self.queries)
        self.wait("q", self.q_slot(step))
        score = matmul.issue(self.keys("k", step), q.at[own], transpose_b=True)
        self.wait("do", self.do_slot(step))
        dp = matmul.issue(self.keys("v", step), do.at[own], transpose_b=True)
        weights, kept = self.weigh(matmul.arrived(score, 1), step)
        self.at["p"].at[slot, :, own][...] = weights
        self.at["ds"].at[slot, :, own][...] = self.score_gradient(matmul.arrived(dp, 0), kept, step)
        plgpu.commit_smem()
        self.meet()

    def meet(self):
        plgpu.barrier_arrive(self.at["shared"])
        plgpu.barrier_wait(self.at["shared"])

    def store(self, sums, outs):
        """Write this warpgroup's columns of dK and dV, through the shared memory of K and V."""
        problem, item = self.problem, self.item
        dk, dv = sums
        self.meet()  # the other warpgroup may still read K and V
        scales = problem.gradient_scale, 1.0 / problem.divide_by
        for name, value, scale in (("k", dk, scales[0]), ("v", dv, scales[1])):
            self.at[name].at[:, self.own_columns(0)][...] = (value * scale).astype(self.dtype)
        plgpu.commit_smem()
        self.meet()
        valid = jnp.clip(item.kv_length - self.key, 0, ROWS)
        for number, (name, out) in enumerate(zip(("k", "v"), outs, strict=True)):
            to = item.kv_start + self.key

            @pl.when(self.warpgroup == number)
            def _(name=name, out=out, to=to):
                memory.store_rows(self.at[name], out.at[:, item.head], to, valid, ROWS)

        plgpu.wait_smem_to_gmem(0, wait_read_only=True)
        plgpu.barrier_arrive(self.at["kv_free"])

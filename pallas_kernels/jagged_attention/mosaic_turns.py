"""The backward kernel's steps with dQ in turns: of one step by one warpgroup, of the next step by the other one.

Each computes all columns of its dQ, after its part of the step that follows. So neither waits for the other's scores of
the same step, one multiplies while the other stores, and dS is read once for dQ instead of twice.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels.jagged_attention.mosaic_walk import QUERIES, Walk, head_and_row


class TurnsWalk(Walk):
    """One warpgroup's walk over the query tiles of an item; `number` counts the steps of all items."""

    def number(self, step):
        return self.before + step

    def ds_slot(self, step):
        return lax.rem(self.number(step), 2)

    def own_turn(self, step):
        return self.ds_slot(step) == self.warpgroup

    def in_turns(self, dk, dv):
        """-> dK and dV, unscaled."""

        def work(step):
            self.wait("q", self.q_slot(step))
            ds = pl.run_scoped(lambda s, dp: self.scores(s, dp, dv, step), self.score, self.score)
            self.wait_ds_free(step)
            self.share_ds(ds, step)
            self.issue_dk(dk, ds, step)
            plgpu.wgmma_wait(1)
            plgpu.barrier_arrive(self.at["do_free"].at[self.do_slot(step)])
            self.last_dq(step)

        def idle(step):
            self.pass_by(step)
            self.under_scores(step)
            self.wait_ds_free(step)
            self.share_no_ds(step)
            plgpu.barrier_arrive(self.at["do_free"].at[self.do_slot(step)])
            self.last_dq(step)

        self.over_steps(work, idle)
        last = self.steps - 1
        pl.when(self.own_turn(last))(lambda: self.whole_dq(last))
        pl.when((last > 0) | self.own_turn(last))(self.free_staging)  # which it used in this step or the one before
        return self.finish(dk, dv)

    def last_dq(self, step):
        pl.when((step > 0) & self.own_turn(step - 1))(lambda: self.whole_dq(step - 1))

    def wait_ds_free(self, step):
        """The dQ of two steps ago, if the other warpgroup's, has read the dS that this step's takes the place of."""
        waits = (self.number(step) >= 2) & ~self.own_turn(step)
        pl.when(waits)(lambda: plgpu.barrier_wait(self.at["ds_free"].at[self.ds_slot(step)]))

    def under_scores(self, step):
        """Hand on the staging memory of dQ, which this warpgroup used in the step before."""
        pl.when((step > 1) & self.own_turn(step))(self.free_staging)

    def free_staging(self):
        plgpu.wait_smem_to_gmem(0, wait_read_only=True)
        plgpu.barrier_arrive(self.at["staging_free"].at[self.warpgroup])

    def whole_dq(self, step):
        """dQ of a step's queries, all columns; stored once the other warpgroup's last dQ has left the staging memory."""
        head, row = head_and_row(self.item, step, self.runs, self.group)
        hidden = self.zero * step
        ds, keys = self.at["ds"].at[self.ds_slot(step) + hidden], self.at["kv"].at[self.kv_slots["k"] + hidden]

        def run(acc):
            self.wait_ds(step)
            plgpu.wgmma(acc, ds.transpose((1, 0)), keys)

            @pl.when(self.number(step) > 0)
            def _():
                plgpu.barrier_wait(self.at["staging_free"].at[1 - self.warpgroup])

            staged = self.at["dq"].at[hidden]
            staged[...] = plgpu.wgmma_accumulator_load(acc, wait_n=0)
            plgpu.barrier_arrive(self.at["ds_free"].at[self.ds_slot(step)])
            plgpu.commit_smem()
            to = self.dq_ref.at[pl.ds(self.item.q_start + row, QUERIES), head]
            plgpu.copy_smem_to_gmem(staged, to, reduction_op="add")

        pl.run_scoped(run, plgpu.ACC((QUERIES, self.size), jnp.float32))

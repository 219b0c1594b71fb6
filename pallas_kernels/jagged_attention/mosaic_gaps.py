"""Zeroing, in place, the rows of a result that belong to no sequence and that no program wrote."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels.jagged_attention import mosaic_common as common


def zero_gaps(x: Array, gaps: Array, programs: int) -> Array:
    """x [T, H, K] with 0 in the groups of 8 rows listed in `gaps` (see `plan.Plan`).

    About 3 us where there is nothing to do (a tightly packed batch).
    """

    def jagged_attention_zero_gaps(gaps_ref, x_ref, zeros):
        program, count = lax.axis_index("program"), gaps_ref[0]

        @pl.when(program < count)
        def _():
            blank = jnp.zeros(zeros.shape, zeros.dtype)
            zeros[...] = plgpu.layout_cast(blank, plgpu.Layout.WGMMA)
            plgpu.commit_smem()

            def store(i, carry):
                group = gaps_ref[1 + program + i * programs]
                for head in range(x.shape[1]):
                    rows = x_ref.at[pl.ds(pl.multiple_of(group * 8, 8), 8), head]
                    plgpu.copy_smem_to_gmem(zeros.at[pl.ds(0, 8)], rows)
                return carry

            lax.fori_loop(0, pl.cdiv(count - program, programs), store, ())
            plgpu.wait_smem_to_gmem(0)

    ref = jax.new_ref(x)
    plgpu.kernel(
        jagged_attention_zero_gaps,
        out_type=(),
        scratch_types=[plgpu.SMEM((common.ROWS, x.shape[2]), x.dtype, transforms=common.tiled(x.dtype))],
        grid=(programs,),
        grid_names=("program",),
        compiler_params=common.PARAMS,
    )(gaps, ref)
    return ref[...]

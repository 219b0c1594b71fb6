"""The shape of a Hopper program: two warpgroups that compute, a third one that moves data, one program per multiprocessor."""

from __future__ import annotations

import jax.numpy as jnp
from jax import lax
from jax.experimental.pallas import mosaic_gpu as plgpu

WARPGROUPS = 2  # compute warpgroups of a program, 64 rows each; a third one moves data
ROWS = 64  # rows of a warpgroup: those of a wgmma's result
# Registers a thread of (compute, copy) warpgroups: the usual split, and the one where the sums need most. A program of three
# warpgroups starts with 3 * 168; asking for more than those 504 in all hangs.
REGISTERS = 232, 40
MOST_REGISTERS = 240, 24
PARAMS = plgpu.CompilerParams(
    approx_math=True,
    # No warpgroup barrier around every store to shared memory (four of a backward step's seven). Safe, since what a
    # warpgroup stores there other threads read only after `commit_smem` and a barrier, and it stores there again
    # only after they have arrived at another.
    unsafe_no_auto_barriers=True,
    lowering_semantics=plgpu.LoweringSemantics.Lane,
    reduction_scratch_bytes=0,  # row reductions of a wgmma accumulator stay inside a warp
)


def launch(body, *, out_type, scratch_types, programs: int):
    """`plgpu.kernel` for `body(*inputs, *outputs, *scratch)`, run by `programs` persistent programs of three warpgroups.

    Inside, `lax.axis_index("program")` and `lax.axis_index("warpgroup")` say which one runs. The kernel's name is the body's.
    """
    return plgpu.kernel(
        body,
        out_type=out_type,
        scratch_types=scratch_types,
        grid=(programs,),
        grid_names=("program",),
        num_threads=WARPGROUPS + 1,
        thread_name="warpgroup",
        compiler_params=PARAMS,
    )


def iota(shape, axis: int, start=0):
    """int32 places along an axis of a wgmma's result, counted from `start`."""
    return start + plgpu.broadcasted_iota(jnp.int32, shape, axis, layout=plgpu.Layout.WGMMA)


def working_steps(steps, nothing, first_hidden, last_hidden):
    """(first, end) of the steps in which a warpgroup has work; in the others it only keeps the barriers going.

    At a mask's edges a step may be the other warpgroup's alone, and the last rows of a sequence may fill one.

    Args:
      steps: of the item, for both.
      nothing: has this warpgroup no rows in the sequence?
      first_hidden, last_hidden: does it see nothing in the first, in the last step?
    """
    first = jnp.where(nothing, steps, jnp.where(first_hidden, 1, 0))
    return first, jnp.maximum(first, steps - jnp.where(last_hidden, 1, 0))


def loop_over_steps(steps, first, end, work, idle):
    """work(step) from `first` to `end`, idle(step) before and after: three loops, so that the middle one has no branch."""

    def plain(action):
        def body(step, carry):
            action(step)
            return carry

        return body

    lax.fori_loop(0, first, plain(idle), ())
    lax.fori_loop(first, end, plain(work), ())
    lax.fori_loop(end, steps, plain(idle), ())


def hidden_zero(number):
    """0 that the compiler cannot see, made of an int32 scalar in [0, 2^24) (a head, say).

    Addresses that include it are recomputed where they are used; otherwise dozens of shared-memory descriptors are
    hoisted out of the loops and spilled (444 bytes of spills in attention's backward kernel cost 30 % of its speed).
    """
    return lax.shift_right_logical(number, 24)

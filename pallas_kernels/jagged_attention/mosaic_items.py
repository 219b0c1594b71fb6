"""The loops of a persistent Hopper program over its share of the work list."""

from __future__ import annotations

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from pallas_kernels.jagged_attention.mosaic_problem import Item, Problem, Visit


def _reader(table, problem: Problem, programs: int):
    """number -> this program's item of that number (the last one beyond the table).

    Fields that the problem cannot tell apart are read once, to save registers.
    """
    rounds = table.shape[1] // programs
    program = lax.axis_index("program")

    def read(number):
        column = jnp.minimum(number, rounds - 1) * programs + program
        q_start, q_length = table[0, column], table[1, column]
        kv_start, kv_length = q_start, q_length
        if problem.mask is None:
            kv_start, kv_length = table[2, column], table[3, column]
        history = table[4, column] if problem.has_targets else q_length
        return Item(q_start, q_length, kv_start, kv_length, history, table[5, column], table[6, column])

    return read, rounds


def item_loop(table, problem: Problem, programs: int, steps_of, body):
    """body(visit) for each item of this program; the next one's row of the table is read before."""
    read, rounds = _reader(table, problem, programs)

    def step(number, carry):
        item, before = carry
        following = read(number + 1)
        steps = jnp.where(item.q_length > 0, steps_of(item), 0)
        pl.when(steps > 0)(lambda: body(Visit(item, steps, before, number)))
        return following, before + steps

    lax.fori_loop(0, rounds, step, (read(0), jnp.int32(0)))


def linked_item_loop(table, problem: Problem, programs: int, steps_of, begin, body):
    """As `item_loop`, for items that overlap: state = begin(first visit), then state = body(visit, next visit,
    state) for each; the visit after the last one has 0 steps.

    A loop of its own, since the compiler serialises the matmuls of the other kernels in this form, and these
    in the other.
    """
    read, rounds = _reader(table, problem, programs)

    def visit_of(number, before):
        item = read(number)
        exists = (number < rounds) & (item.q_length > 0)  # empty columns come last
        return Visit(item, jnp.where(exists, steps_of(item), 0), before, number)

    def step(carry):
        visit, state = carry
        following = visit_of(visit.number + 1, visit.before + visit.steps)
        return following, body(visit, following, state)

    first = visit_of(jnp.int32(0), jnp.int32(0))

    @pl.when(first.steps > 0)
    def _():
        lax.while_loop(lambda carry: carry[0].steps > 0, step, (first, begin(first)))

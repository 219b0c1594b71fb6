"""Benchmark cases and rows of table lookups and updates; run through `python -m pallas_kernels.bench embedding`.

Milliseconds of a whole call, sort included. Bytes are those that must move once: gradients, touched rows and state read, and
these written; a lookup's are its distinct rows and the result. The share is of the rate of an array's copy in the same run.
Beside each row stands the XLA backend's time ("peer"). How a call is timed: `pallas_kernels.common.timing`.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.common import dispatch, timing
from pallas_kernels.embedding import Rule, Step, lookup, update
from pallas_kernels.embedding.rules import SLOTS, Kind

BAG = 32
COPIED = 1 << 28  # float32 numbers


@dataclasses.dataclass(frozen=True)
class Case:
    """A measured call; `bag` 1 is a call without pooling."""

    operation: str  # "lookup" or "update"
    num_rows: int
    lookups: int
    bag: int
    distinct: int = 0  # ids that lookups are drawn from, evenly; 0: log-uniform over the table
    rule: Kind = "rowwise_adagrad"
    rows: str = "float32"
    width: int = 128

    def ids(self) -> jax.Array:
        """int32 [B, bag], or [R] of a call without pooling."""
        rng = np.random.default_rng(0)
        if self.distinct:
            chosen = np.sort(rng.choice(self.num_rows, self.distinct, replace=False))
            ids = chosen[rng.integers(0, self.distinct, self.lookups)]
        else:
            ids = np.exp(rng.random(self.lookups) * np.log(self.num_rows))
        ids = jnp.asarray(np.clip(ids, 0, self.num_rows - 1), jnp.int32)
        return ids.reshape(-1, self.bag) if self.bag > 1 else ids

    def num_bytes(self, distinct: int) -> int:
        """That must move once."""
        row = self.width * jnp.dtype(self.rows).itemsize
        vectors = self.lookups // self.bag * self.width
        if self.operation == "lookup":
            return distinct * row + vectors * jnp.dtype(self.rows).itemsize + 4 * self.lookups
        slot = {"row": 4, "number": 4 * self.width}
        state = row + sum(slot[per] for per in SLOTS[self.rule])
        return 2 * distinct * state + 4 * vectors + 8 * self.lookups


ROWS, LOOKUPS = 20_000_000, 65_536 * BAG
UNPOOLED: dict[str, Any] = dict(num_rows=10_000_000, lookups=1 << 20, bag=1, distinct=375_000)
CASES = (
    Case("update", ROWS, LOOKUPS, BAG),
    Case("lookup", ROWS, LOOKUPS, BAG),
    Case("update", ROWS, LOOKUPS, BAG, rows="bfloat16"),
    Case("update", **UNPOOLED, rule="adam"),
    Case("update", **UNPOOLED, rule="adam", rows="bfloat16"),
    Case("lookup", **UNPOOLED),
)


def rows(commit: str = "", shapes: Any = None, cases: tuple[Case, ...] = CASES) -> Iterator[dict]:
    """Measured rows: the copy rate, then the cases with the XLA backend beside them."""
    if shapes is not None:
        raise SystemExit("--shapes is for jagged_attention: the tables' cases do not depend on a model.")
    machine = timing.machine(commit)
    numbers = jnp.ones(COPIED, jnp.float32)
    copy = 8 * COPIED / timing.milliseconds(*timing.warm(jax.jit(lambda x: x + 1), numbers)) / 1e6
    del numbers
    yield dict(op="copy", gb_s=round(copy), **machine)
    sorts: dict[int, float] = {}
    for case in cases:
        if case.operation == "update" and case.lookups not in sorts:
            sorts[case.lookups] = timing.milliseconds(*timing.warm(_sort, case.ids().reshape(-1)))
        yield _row(case, copy, sorts.get(case.lookups, 0.0) if case.operation == "update" else 0.0) | machine


def _row(case: Case, copy: float, sort: float) -> dict:
    ids = case.ids()
    distinct = len(np.unique(np.asarray(ids)))
    ms, peer_ms = (_time(case, ids, name) for name in (_kernels(), "xla"))
    rate = case.num_bytes(distinct) / 1e6
    return dict(
        op=f"table_{case.operation}",
        **{name: value for name, value in dataclasses.asdict(case).items() if name not in ("operation", "distinct")},
        distinct=distinct,
        ms=round(ms, 4),
        sort_ms=round(sort, 4),
        gb_s=round(rate / ms),
        share_of_copy=round(rate / ms / copy, 3),
        share_without_sort=round(rate / (ms - sort) / copy, 3),
        peer="xla",
        peer_ms=round(peer_ms, 4),
    )


def _kernels() -> str | None:
    """The kernels' backend where the device has it, else what is chosen."""
    return "triton" if dispatch.on_ampere_or_later(dispatch.default_device()) is None else None


@functools.partial(jax.jit, static_argnums=(0, 1))
def _normal(shape, dtype):
    return jax.random.normal(jax.random.key(0), shape, dtype)


@jax.jit
def _sort(ids):
    return jax.lax.sort((ids, jnp.arange(ids.size, dtype=jnp.int32)), num_keys=1, is_stable=False)


def _time(case: Case, ids: jax.Array, implementation: str | None) -> float:
    table = _normal((case.num_rows, case.width), case.rows)
    if case.operation == "lookup":
        read = jax.jit(functools.partial(lookup, implementation=implementation))
        return timing.milliseconds(*timing.warm(read, table, ids))
    rule = Rule(kind=case.rule)
    shapes = {"row": (case.num_rows,), "number": (case.num_rows, case.width)}
    state = table, tuple(jnp.zeros(shapes[per], jnp.float32) for per in rule.slots)
    grads = _normal((case.lookups // case.bag, case.width), "float32")

    @functools.partial(jax.jit, donate_argnums=0)
    def call(state, ids, grads):
        step = Step(learning_rate=0.01)
        return update(*state, ids, grads, rule=rule, step=step, implementation=implementation)

    return _chained(call, state, ids, grads)


def _chained(call: Callable, state: Any, *arguments: Any) -> float:
    """Median milliseconds of a call that writes its first argument in place."""
    held = [call(state, *arguments)]
    jax.block_until_ready(held)

    def sample(calls: int) -> float:
        start = time.perf_counter()
        for _ in range(calls):
            held[0] = call(held[0], *arguments)
        jax.block_until_ready(held)
        return (time.perf_counter() - start) / calls * 1e3

    return timing.median(sample)


def line(row: dict) -> str:
    """A row for the terminal."""
    if row["op"] == "copy":
        return f"copy: {row['gb_s']} GB/s"
    described = f"{row['op']:12} {row['rule'] if row['op'] == 'table_update' else '':15} {row['rows']:8}"
    sizes = f"{row['num_rows']} x {row['width']}, {row['lookups']} lookups by {row['bag']} of {row['distinct']}"
    rate = (
        f"{row['gb_s']:5} GB/s, {row['share_of_copy']:.0%} of a copy ({row['share_without_sort']:.0%} without the sort)"
    )
    return f"{described} {sizes}: {row['ms']:.3f} ms (sort {row['sort_ms']:.3f}), {rate}; {row['peer']} {row['peer_ms']:.3f} ms"


def table(measured: list[dict]) -> str:
    """The rows of a results file as a Markdown table."""
    head = "| call | rule | rows | V x D | lookups by bag | distinct | ms | sort | GB/s | of a copy | without sort | XLA ms |"
    lines = [head, "|" + "---|" * 12]
    for row in measured:
        if row["op"] == "copy":
            continue
        cells = (
            row["op"].removeprefix("table_"),
            row["rule"] if row["op"] == "table_update" else "",
            row["rows"],
            f"{row['num_rows']} x {row['width']}",
            f"{row['lookups']} by {row['bag']}",
            row["distinct"],
            f"{row['ms']:.3f}",
            f"{row['sort_ms']:.3f}" if row["sort_ms"] else "",
            row["gb_s"],
            f"{row['share_of_copy']:.0%}",
            f"{row['share_without_sort']:.0%}" if row["sort_ms"] else "",
            f"{row['peer_ms']:.2f}",
        )
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)

"""What every backend must do: cases, their float64 truth, and the checks that all share.

Shape letters: V rows, D columns, R lookups, N rows of gradients.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.embedding import Rule, Step, lookup, update

RULES = {
    "rowwise_adagrad": Rule(),
    "adam": Rule(kind="adam"),
    "sgd": Rule(kind="sgd"),
    "penalty": Rule(l2=0.01, groups=4),
}
EPS = 1e-8
STEP = Step(learning_rate=0.1, count=3, seed=5)


@dataclasses.dataclass(frozen=True)
class Case:
    """A table and its lookups."""

    rule: str = "rowwise_adagrad"
    ids: str = "skewed"
    width: int = 16
    num_rows: int = 40
    lookups: int = 150
    bag: int = 0  # lookups that share a gradient; 0: sources are given
    rows: str = "float32"
    spread: float = 0.0  # of the gradients' sizes, powers of e

    def arrays(self) -> dict:
        """rows, slots, ids, sources (of each id), grads; gradients that no id in the table has are NaN."""
        rng = np.random.default_rng(len(self.ids) + self.width)
        ids, count = self._ids(rng), max(self.lookups // (self.bag or 3), 1)
        sources = np.arange(self.lookups) // self.bag if self.bag else rng.integers(0, count, self.lookups)
        grads = rng.normal(size=(count, self.width)) * np.exp(self.spread * rng.normal(size=(count, 1)))
        inside = (ids >= 0) & (ids < self.num_rows)
        grads[np.setdiff1d(np.arange(count), sources[inside])] = np.nan
        shape = {"row": (self.num_rows,), "number": (self.num_rows, self.width)}
        slots = tuple(rng.uniform(0.1, 1, shape[per]).astype(np.float32) for per in RULES[self.rule].slots)
        rows = rng.normal(size=(self.num_rows, self.width))
        return dict(
            rows=jnp.asarray(rows, self.rows),
            slots=tuple(map(jnp.asarray, slots)),
            ids=jnp.asarray(ids, jnp.int32),
            sources=jnp.asarray(sources, jnp.int32),
            grads=jnp.asarray(grads, jnp.float32),
        )

    def _ids(self, rng) -> np.ndarray:
        v, size = self.num_rows, self.lookups
        if self.ids == "skewed":  # an id with 4 % of the lookups and more, absent ones, and ones outside
            ids = rng.integers(0, v, size)
            ids[rng.random(size) < 0.3] = 7
            ids[rng.random(size) < 0.1] = -1
            ids[rng.random(size) < 0.1] = rng.choice([v, v + 1, 2**31 - 1, -2, -(2**31)])
            return ids
        if self.ids == "one":
            return np.full(size, v - 1)
        if self.ids == "absent":
            return rng.choice([-1, v], size)
        if self.ids == "distinct":
            return rng.permutation(v)[:size]
        assert self.ids == "pairs", self.ids
        return np.repeat(np.arange(v), 2)[:size]


CASES = (
    *(Case(rule, lookups=200) for rule in RULES),
    Case(ids="one"),
    Case(ids="absent"),
    Case(ids="distinct", num_rows=64, lookups=64),
    Case(ids="pairs", num_rows=70, lookups=130),
    Case(lookups=1),
    Case(width=20, lookups=128, bag=4),
    Case("adam", width=3, lookups=66, bag=2),
    Case(num_rows=1, ids="one", lookups=65),
)


def truth(case: Case, rows, slots, ids, sources, grads) -> tuple[np.ndarray, list[np.ndarray]]:
    """Rows and slots after `STEP` in float64, by a loop over the lookups."""
    rule = RULES[case.rule]
    w = np.asarray(rows, np.float64)
    state = [np.asarray(slot, np.float64) for slot in slots]
    sums: dict[int, np.ndarray] = {}
    each = np.asarray(grads, np.float64)
    for row, source in zip(np.asarray(ids).tolist(), np.asarray(sources).tolist(), strict=True):
        if 0 <= row < len(w):
            sums[row] = sums.get(row, 0.0) + each[source]
    for row, g in sums.items():
        g = g + rule.l2 * w[row]
        if rule.kind == "sgd":
            w[row] -= STEP.learning_rate * g
        elif rule.kind == "adam":
            state[0][row] = rule.beta1 * state[0][row] + (1 - rule.beta1) * g
            state[1][row] = rule.beta2 * state[1][row] + (1 - rule.beta2) * g**2
            mean, square = (
                slot[row] / (1 - beta ** (STEP.count + 1))
                for slot, beta in zip(state, (rule.beta1, rule.beta2), strict=True)
            )
            w[row] -= STEP.learning_rate * mean / (np.sqrt(square) + EPS)
        else:
            state[0][row] += np.mean(g**2)
            w[row] -= STEP.learning_rate * g / (np.sqrt(state[0][row] / rule.groups) + EPS)
    return w, state


def run(case: Case, implementation, **changed):
    arrays = case.arrays() | changed
    if case.bag and not changed:
        arrays["ids"] = arrays["ids"].reshape(-1, case.bag)
        arrays.pop("sources")
    step = functools.partial(update, rule=RULES[case.rule], step=STEP, implementation=implementation)
    return step(**arrays) if implementation == "triton" else jax.jit(step)(**arrays)  # its interpreter takes no tracers


def check_update(case: Case, implementation) -> None:
    """Against float64; untouched rows to the bit. k float32 additions err by k 2^-24 of their sum of sizes."""
    arrays = case.arrays()
    rows, slots = run(case, implementation)
    expected, expected_slots = truth(case, **arrays)
    bound = 2.0**-24 * (case.lookups + 32)
    for name, value, wanted in zip(("rows", "a", "b"), (rows, *slots), (expected, *expected_slots), strict=False):
        value = np.asarray(value, np.float64)
        error = np.abs(value - wanted) / np.maximum(np.abs(wanted), 1)
        assert np.all(error < bound), (case, name, error.max(), bound)
    ids = np.asarray(arrays["ids"])
    untouched = np.setdiff1d(np.arange(case.num_rows), ids)
    for value, old in zip((rows, *slots), (arrays["rows"], *arrays["slots"]), strict=True):
        np.testing.assert_array_equal(np.asarray(value)[untouched], np.asarray(old)[untouched])


def check_any_order(case: Case, implementation) -> None:
    """The same bits when the (id, gradient) pairs come in another order, whatever the gradients' sizes."""
    arrays = case.arrays()
    order = np.random.default_rng(1).permutation(case.lookups)
    one = run(case, implementation, sources=arrays["sources"])
    other = run(case, implementation, ids=arrays["ids"][order], sources=arrays["sources"][order])
    jax.tree.map(np.testing.assert_array_equal, one, other)


def check_lookup(implementation, rows_dtype="float32", dtype="float32") -> None:
    """Pooled and plain, against float64, with absent ids, ids outside, and an empty bag."""
    rng = np.random.default_rng(0)
    rows = jnp.asarray(rng.normal(size=(40, 20)), rows_dtype)
    ids = rng.integers(-2, 43, (9, 11)).astype(np.int32)
    ids[3], ids[4] = -1, 2**31 - 1
    ids = jnp.asarray(ids)
    inside = np.asarray((ids >= 0) & (ids < 40))
    each = np.where(inside[..., None], np.asarray(rows, np.float64)[np.where(inside, ids, 0)], 0)
    count = np.maximum(np.asarray(ids >= 0).sum(1), 1)[:, None]
    wanted = {"sum": each.sum(1), "mean": each.sum(1) / count}
    unit = 2.0 ** (-8 if "bfloat16" in dtype else -23)
    for pooling, expected in wanted.items():
        value = lookup(rows, ids, pooling=pooling, dtype=dtype, implementation=implementation)
        assert value.dtype == dtype
        size = np.abs(each).sum(1)
        assert np.all(np.abs(np.asarray(value, np.float64) - expected) <= unit * (size + 1e-30) * 6), pooling
    plain = lookup(rows, ids.reshape(-1), implementation=implementation)
    np.testing.assert_array_equal(np.asarray(plain, np.float64), each.reshape(-1, 20))


def check_rounding(implementation) -> None:
    """bfloat16 rows: each is one of the two neighbours of the float32 result, right on average, by the seed and the row alone."""
    width, count = 64, 50
    rows = jnp.ones((count, width), jnp.bfloat16)
    grads = jnp.full((count, width), -(2.0**-9), jnp.float32)  # a quarter of the step between 1 and its upper neighbour
    ids = jnp.arange(count, dtype=jnp.int32)

    def step(seed, ids):
        after = Step(learning_rate=1.0, seed=seed)
        new = update(rows, (), ids, grads, rule=Rule(kind="sgd"), step=after, implementation=implementation)
        return np.asarray(new[0], np.float32)

    new = step(1, ids)
    assert set(np.unique(new)) == {1.0, 1.0 + 2.0**-7}
    share = (new > 1).mean()
    assert abs(share - 0.25) < 4 * np.sqrt(0.25 * 0.75 / new.size), share
    np.testing.assert_array_equal(new, step(1, ids[::-1]))
    assert (new != step(2, ids)).any()

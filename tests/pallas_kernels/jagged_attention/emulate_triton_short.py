"""The contract of `triton_short` in Triton's interpreter: forward and backward against the float64 reference."""

from __future__ import annotations

from tests.pallas_kernels.jagged_attention import triton_emulator  # before anything imports Triton

import jax  # isort: skip
import jax.numpy as jnp  # isort: skip
import numpy as np  # isort: skip

from pallas_kernels.jagged_attention import Mask, gated, gdpa, seed_attention, seed_attention_pair, triton_short
from tests.pallas_kernels.jagged_attention import cases
from tests.pallas_kernels.jagged_attention.cases import MASKS, Case
from tests.pallas_kernels.jagged_attention.test_contract import attention
from tests.pallas_kernels.jagged_attention.test_gated import check_gated

LENGTHS = (0, 1, 7, 30, 65, 0, 40, 3, 0)


def check(case: Case) -> None:
    arrays = case.arrays()
    starts, lengths = jnp.asarray(case.offsets[:-1]), jnp.asarray(case.lengths, jnp.int32)
    targets = None if case.targets is None else jnp.asarray(case.targets)
    options = dict(max_len=case.longest, kind=case.kind, mask=case.mask, scale=case.size**-0.5)

    def forward(q, k, v):
        unused = dict(deterministic=False, work_list=None)
        return triton_short.jagged_attention(q, k, v, starts, lengths, targets, None, **options, **unused)

    out, pull = jax.vjp(forward, *arrays[:3])
    truth = cases.in_float64(attention(case, "reference"), *arrays)
    for name, value, expected in zip(("o", "dq", "dk", "dv"), (out, *pull(arrays[3])), truth, strict=True):
        value = np.asarray(value, np.float64)
        assert np.all(np.isfinite(value)) and np.all(value[~case.valid()] == 0), (case, name)
        error = cases.relative_error(value, expected)
        assert error < cases.tolerance(case.dtype, case.longest), (case, name, error)


def check_dense(case: Case, dense_rows: int, kind: str) -> None:
    """GDPA and seed attention against the float64 reference."""
    rng = np.random.default_rng(2)
    layout = jnp.asarray(case.offsets), jnp.asarray(case.lengths, jnp.int32)
    rows = [x for x in case.arrays()[:3]]
    dense = [
        jnp.asarray(rng.normal(size=(len(case.lengths), dense_rows, case.heads, case.size)).astype(case.dtype))
        for _ in range(2)
    ]

    def keys(q, k, v, implementation):
        return gdpa(q, k, v, *layout, max_len=case.longest, activation=kind, implementation=implementation)

    def seeds(q, k, v, implementation):
        options = dict(kind="softmax" if kind == "gelu" else kind, implementation=implementation)
        return seed_attention(q, k, v, *layout, max_len=case.longest, **options)

    for run, arrays, grad in ((keys, (rows[0], *dense), rows[1]), (seeds, (dense[0], *rows[:2]), dense[1])):
        out, pull = jax.vjp(lambda *x, run=run: run(*x, "triton_short"), *arrays)
        with jax.enable_x64(True):
            wide = [jnp.asarray(np.nan_to_num(np.asarray(x, np.float64))) for x in (*arrays, grad)]
            truth, pull_truth = jax.vjp(lambda *x, run=run: run(*x, "reference"), *wide[:3])
            expected = truth, *pull_truth(wide[3])
        for name, value, true in zip(("o", "dq", "dk", "dv"), (out, *pull(grad)), expected, strict=True):
            value = np.asarray(value, np.float64)
            assert np.all(np.isfinite(value)), (case, kind, run.__name__, name)
            if len(value) == case.num_rows:
                assert np.all(value[~case.valid()] == 0), (case, kind, run.__name__, name)
            error = cases.relative_error(value, np.asarray(true))
            assert error < cases.tolerance(case.dtype, case.longest), (case, kind, run.__name__, name, error)


def check_pair(case: Case, seeds: int) -> None:
    """Seed attention with keys and values in one array equals that with two."""
    rng = np.random.default_rng(1)
    q = jnp.asarray(rng.normal(size=(len(case.lengths), seeds, case.heads, case.size)).astype(case.dtype))
    kv = rng.normal(size=(case.num_rows, 2, case.heads, case.size)).astype(case.dtype)
    kv[~case.valid()] = np.nan
    grad, kv = jnp.asarray(rng.normal(size=q.shape).astype(case.dtype)), jnp.asarray(kv)
    options = dict(max_len=case.longest, implementation="triton_short")
    layout = jnp.asarray(case.offsets), jnp.asarray(case.lengths, jnp.int32)
    one, pull_one = jax.vjp(lambda q, kv: seed_attention_pair(q, kv, *layout, **options), q, kv)
    two, pull_two = jax.vjp(lambda q, k, v: seed_attention(q, k, v, *layout, **options), q, kv[:, 0], kv[:, 1])
    (dq, dkv), (dq_two, dk, dv) = pull_one(grad), pull_two(grad)
    for a, b in ((one, two), (dq, dq_two), (dkv, jnp.stack([dk, dv], axis=1))):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


if __name__ == "__main__":
    triton_emulator.emulate()
    for kind in ("silu", "softmax"):
        for mask in MASKS.values():
            check(Case(LENGTHS, size=16, kind=kind, mask=mask, dtype="float16"))
        check(Case(LENGTHS, size=48, kind=kind))
        grouped = dict(heads=4, kv_heads=2, size=32, mask=Mask(window=20, prefix=3), num_targets=9)
        check(Case(LENGTHS, kind=kind, dtype="float16", **grouped))
    check(Case(LENGTHS, kv_heads=1, size=32, num_targets=100, dtype="float16"))
    gated.TRITON_GATE = ("xla",)  # the gate's kernels around XLA's attention, which runs here
    for implementation in ("triton_short", "xla"):
        check_gated(Case(LENGTHS, heads=2, size=16, dtype="float32"), implementation)
        check_gated(Case(LENGTHS, heads=3, size=16, mask=Mask(window=20), dtype="float16"), implementation)
    check_pair(Case(LENGTHS, heads=2, size=16, dtype="float16"), 3)
    check_pair(Case(LENGTHS, heads=2, size=16, dtype="float16"), 40)
    for kind in ("silu", "softmax", "gelu"):
        check_dense(Case(LENGTHS, heads=2, size=16, dtype="float16"), 5, kind)
        check_dense(
            Case(LENGTHS, heads=1, kv_heads=1, size=48, dtype="float32"), 16, "silu" if kind == "gelu" else kind
        )
        check_dense(Case(LENGTHS, heads=2, size=16, dtype="float16"), 40, kind)

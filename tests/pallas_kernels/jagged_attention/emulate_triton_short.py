"""The contract of `triton_short` in Triton's interpreter: forward and backward against the float64 reference."""

from __future__ import annotations

from tests.pallas_kernels.jagged_attention import triton_emulator  # before anything imports Triton

import jax  # isort: skip
import jax.numpy as jnp  # isort: skip
import numpy as np  # isort: skip

from pallas_kernels.jagged_attention import Mask, triton_short
from tests.pallas_kernels.jagged_attention import cases
from tests.pallas_kernels.jagged_attention.cases import MASKS, Case
from tests.pallas_kernels.jagged_attention.test_contract import attention

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


if __name__ == "__main__":
    triton_emulator.emulate()
    for kind in ("silu", "softmax"):
        for mask in MASKS.values():
            check(Case(LENGTHS, size=16, kind=kind, mask=mask, dtype="float16"))
        check(Case(LENGTHS, size=48, kind=kind))
        grouped = dict(heads=4, kv_heads=2, size=32, mask=Mask(window=20, prefix=3), num_targets=9)
        check(Case(LENGTHS, kind=kind, dtype="float16", **grouped))
    check(Case(LENGTHS, kv_heads=1, size=32, num_targets=100, dtype="float16"))

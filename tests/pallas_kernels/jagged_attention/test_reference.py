"""The dense reference against an independent float64 loop over tokens."""

import numpy as np
import pytest

from pallas_kernels.jagged_attention import jagged_attention
from tests.pallas_kernels.jagged_attention.cases import MASKS, Case, in_float64, oracle

LENGTHS = (0, 1, 7, 70)


@pytest.mark.parametrize("kind", ["silu", "softmax"])
@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize("num_targets", [None, 4])
def test_matches_oracle(name, kind, num_targets):
    case = Case(LENGTHS, heads=2, kv_heads=1, size=8, kind=kind, mask=MASKS[name], num_targets=num_targets)
    q, k, v, _ = case.arrays()

    def reference(q, k, v):
        return jagged_attention(
            q,
            k,
            v,
            case.offsets,
            np.array(LENGTHS),
            max_len=case.longest,
            kind=kind,
            mask=case.mask,
            num_targets=case.targets,
            scale=0.3,
            implementation="reference",
        )

    out = in_float64(reference, q, k, v)
    np.testing.assert_allclose(out, oracle(case, q, k, v, 0.3), rtol=1e-10, atol=1e-12)

"""The emulator finds what it is there to find: the contract fails on kernels with one wait or one step left out."""

import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.hopper import memory
from pallas_kernels.jagged_attention import mosaic_pipe, mosaic_problem, mosaic_walk
from tests.pallas_kernels.jagged_attention import emulator
from tests.pallas_kernels.jagged_attention.cases import Case
from tests.pallas_kernels.jagged_attention.test_contract import EMULATED, assert_contract


def _free_at_once(walk):
    emulator.when(walk.number > 0)(lambda: walk.free_keys(walk.kv_slot(-2), walk.kv_slot(-1)))


FAULTS = {
    "V is given back before the product has read it": (
        mosaic_pipe.Pipe,
        "finish_values",
        lambda self, step: emulator.barrier_arrive(self.at.v_free.at[self.slot(step)]),
    ),
    "a sequence's end is not cleaned": (emulator, "zero_rows_from", lambda tile, first: None),
    "gaps are not zeroed": (memory, "zero_gaps", lambda *arguments: None),
    "K and V are given back before the last results have left their tiles": (
        mosaic_walk.Walk,
        "free_last_keys",
        _free_at_once,
    ),
    "dQ is staged before the last one has left": (mosaic_walk.Walk, "claim_staging", lambda self: None),
    "dQ does not wait for the other warpgroup": (mosaic_walk.Walk, "wait_ds", lambda self, step: None),
    "nothing is masked": (mosaic_problem.Problem, "edges", lambda self, *where: (jnp.bool_(False),) * 2),
    "one step too many is skipped": (mosaic_problem.Problem, "all_hidden", lambda self, *where: jnp.bool_(True)),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_found(fault, monkeypatch):
    owner, name, wrong = FAULTS[fault]
    monkeypatch.setattr(owner, name, wrong)
    monkeypatch.setattr(emulator, "PATIENCE_S", 1.0)
    size = 64 if name == "free_last_keys" else 128
    with pytest.raises(AssertionError):
        assert_contract(Case((130, 0, 300), heads=4, kv_heads=4, size=size, dtype="bfloat16"), EMULATED)


def test_views_end_at_the_array():
    ref = emulator.Ref(np.arange(12.0).reshape(6, 2))
    tile = ref.at[emulator.real_pl.ds(4, 4)]
    np.testing.assert_array_equal(tile.read(), [[8, 9], [10, 11], [0, 0], [0, 0]])
    tile.write(np.full((4, 2), 7.0))
    np.testing.assert_array_equal(ref.base[3:], [[6, 7], [7, 7], [7, 7]])
    with pytest.raises(AssertionError):
        ref.at[7]

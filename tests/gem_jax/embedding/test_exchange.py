"""Routes of addresses: distinct, grouped by owner, whether or not an address fits one int32."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gem_jax.embedding.exchange import route
from gem_jax.embedding.placement import Addresses

NUM_SHARDS, SLOTS = 5, 9


@pytest.mark.parametrize("slots", [SLOTS, 2**31 - 1], ids=["one key", "two keys"])
@pytest.mark.parametrize("present", [0.0, 0.7, 1.0])
def test_routes(slots, present):
    rng = np.random.default_rng(0)
    owner, slot = rng.integers(0, NUM_SHARDS, 60), slots - 1 - rng.integers(0, SLOTS, 60)
    absent = rng.random(60) >= present
    owner, slot = np.where(absent, 0, owner), np.where(absent, -1, slot)
    addresses = Addresses(owner=jnp.asarray(owner, jnp.int32), slot=jnp.asarray(slot, jnp.int32))
    routes = jax.tree.map(np.asarray, jax.jit(route, static_argnums=(1, 2))(addresses, NUM_SHARDS, slots))

    expected = sorted({(o, s) for o, s in zip(owner.tolist(), slot.tolist(), strict=True) if s >= 0})
    found = list(zip(routes.distinct.owner.tolist(), routes.distinct.slot.tolist(), strict=True))
    assert found == expected + [(NUM_SHARDS, -1)] * (60 - len(expected))
    for number, (o, s) in enumerate(zip(owner.tolist(), slot.tolist(), strict=True)):
        assert routes.lookup[number] == (expected.index((o, s)) if s >= 0 else 60)
    np.testing.assert_array_equal(routes.count, [sum(o == shard for o, _ in expected) for shard in range(NUM_SHARDS)])
    np.testing.assert_array_equal(routes.start, np.cumsum(routes.count) - routes.count)
    # Equal addresses stand in the order of their ids, so that their gradients are summed in it.
    present_order = [
        i for _, _, i in sorted((o, s, i) for i, (o, s) in enumerate(zip(owner, slot, strict=True)) if s >= 0)
    ]
    np.testing.assert_array_equal(routes.order[: len(present_order)], present_order)

"""The table kernels' update and the stores' own are one: slots, penalties and groups mean the same."""

import jax.numpy as jnp
import numpy as np
import pytest

from gem_jax.embedding.learning import learn
from gem_jax.embedding.row_optimizers import Adam, RowwiseAdagrad, Sgd, StepContext, mean_of_columns
from gem_jax.embedding.stores.device import DeviceStore
from pallas_kernels import embedding

OPTIMIZERS = (RowwiseAdagrad(l2=0.1), Adam(l2=0.1, beta1=0.8, beta2=0.99), Sgd(l2=0.1))


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=lambda x: type(x).__name__)
@pytest.mark.parametrize("shared", [False, True])
def test_kernels_take_the_same_step(optimizer, shared, monkeypatch):
    rng = np.random.default_rng(0)
    store = DeviceStore()
    shapes = {"row": (30,), "number": (30, 8)}
    slots = {x.name: jnp.asarray(rng.uniform(0.1, 1, shapes[x.per]), jnp.float32) for x in optimizer.slots}
    state = store.init(jnp.asarray(rng.normal(size=(30, 8)), jnp.float32), slots)
    rows = jnp.asarray(rng.integers(-1, 32, 50), jnp.int32)
    sources = jnp.asarray(rng.integers(0, 12, 50), jnp.int32) if shared else None
    grads = jnp.asarray(rng.normal(size=(12 if shared else 50, 8)), jnp.float32)
    context = StepContext(learning_rate=0.1, step=4, groups=2)
    expected = learn(store, optimizer, state, rows, grads, sources, context)
    calls = []

    def update(*arguments, **options):
        calls.append(options)
        return embedding.api.update(*arguments, **options)

    monkeypatch.setattr(embedding, "is_fused", lambda rows, grads: True)
    monkeypatch.setattr(embedding, "update", update)
    found = learn(store, optimizer, state, rows, grads, sources, context)
    assert calls and found.keys() == expected.keys()
    for name, value in found.items():  # the two write Adam's corrections differently: 1 - beta^t loses digits
        np.testing.assert_allclose(value, expected[name], rtol=2e-5, atol=2e-6)
        assert not np.array_equal(value, state[name])


def test_rows_cut_by_columns_keep_their_own_way(monkeypatch):
    """Their Adagrad needs a mean over columns of other devices, which the kernels do not know."""
    monkeypatch.setattr(embedding, "is_fused", lambda rows, grads: True)
    monkeypatch.setattr(embedding, "update", None)
    state = DeviceStore().init(jnp.ones((4, 2)), {"accumulator": jnp.ones(4)})
    context = StepContext(learning_rate=0.1, row_mean=lambda x: mean_of_columns(x) * 2)
    new = learn(DeviceStore(), RowwiseAdagrad(), state, jnp.zeros(1, jnp.int32), jnp.ones((1, 2)), None, context)
    np.testing.assert_array_equal(new["accumulator"], [3, 1, 1, 1])

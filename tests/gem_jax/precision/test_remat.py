"""What layers keep for the backward pass, by tag."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax._src.ad_checkpoint import saved_residuals  # jax.ad_checkpoint only prints them
from jax.ad_checkpoint import checkpoint_name

from gem_jax.errors import UserError
from gem_jax.models import table_width
from gem_jax.models.wukong import WukongLayer
from gem_jax.nn.parameters import numbered
from gem_jax.precision import remat, tags
from gem_jax.precision.policy import Policy
from tests.gem_jax.models.batches import FULL, embed, random_batch
from tests.gem_jax.models.test_models import CONFIGS
from tests.gem_jax.nn.running import normal, quick_jit, randomised

LAYERED = ("gem", "wukong", "interformer", "hstu", "sasrec")


def test_an_unknown_tag_is_refused_by_name():
    with pytest.raises(UserError, match="recompute names 'norms'; the tags are norm, activation, attention"):
        Policy(recompute=("norms",))
    with pytest.raises(UserError, match="'gathered'"):
        Policy(recompute=(tags.GATHERED,))


def test_casts():
    policy = Policy(compute="bfloat16")
    x = jnp.ones(3)
    assert policy.cast(x).dtype == jnp.bfloat16
    assert policy.to_reduce(policy.cast(x)).dtype == jnp.float32
    assert policy.travel_dtype(exact=True) == jnp.float32 and policy.travel_dtype(exact=False) == jnp.bfloat16


def loss_of(name, policy):
    config = dataclasses.replace(CONFIGS[name], dropout=0.1)
    batch = jax.tree.map(jnp.asarray, random_batch(FULL, 6))
    embedded = embed(FULL, batch, table_width(config, FULL))[1]
    graphdef, state = nnx.split(randomised(lambda: config.build(FULL, policy=policy, rngs=nnx.Rngs(0))))

    def loss(state):
        return jnp.sin(nnx.merge(graphdef, state)(batch, embedded, jax.random.key(0)).logits).sum()

    return loss, state


@pytest.mark.parametrize("name", [n if n == "gem" else pytest.param(n, marks=pytest.mark.slow) for n in LAYERED])
def test_gradients_are_the_same_whatever_is_recomputed(name):
    plain, state = loss_of(name, Policy())
    recomputing, _ = loss_of(name, Policy(recompute=tags.RECOMPUTABLE))
    expected = quick_jit(jax.grad(plain))(state)
    got = quick_jit(jax.grad(recomputing))(state)
    # The same operations in the same order; only XLA's fusion of them may round another way.
    scale = max(float(np.abs(x).max()) for x in jax.tree.leaves(expected))
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6 * scale)


def test_no_recomputation_is_no_checkpoint():
    def layer(x):
        return x

    assert remat.checkpointed(layer, Policy()) is layer
    for name in LAYERED:
        plain, state = loss_of(name, Policy())
        recomputing, _ = loss_of(name, Policy(recompute=(tags.NORM,)))
        assert "remat" not in str(jax.make_jaxpr(plain)(state))
        assert "remat" in str(jax.make_jaxpr(recomputing)(state))


@pytest.mark.parametrize("recompute", [(tags.NORM,), (tags.ACTIVATION, tags.NORM), (tags.PROJECTION,)])
def test_a_layer_keeps_named_values_only_and_not_those_recomputed(recompute):
    """The values before a tag must not be kept in the tagged ones' place, or nothing would be saved."""
    policy = Policy(recompute=recompute)
    sizes = dict(fmb_tokens=2, lcb_tokens=3, rank=3, hidden=(6,))
    layer = WukongLayer(numbered("token", 5), 4, **sizes, policy=policy, rngs=nnx.Rngs(0))
    graphdef, state = nnx.split(layer)
    x = jnp.asarray(normal(3, 5, 4))

    def loss(state, x):
        y = remat.checkpointed(nnx.merge(graphdef, state), policy)(x)
        return jnp.sin(y).sum()

    kept = [source for _, source in saved_residuals(loss, state, x)]
    inside = [source for source in kept if "argument" not in source and "output of cos" not in source]
    kept_names = {tag for tag in tags.RECOMPUTABLE for source in inside if f"named '{tag}'" in source}
    assert kept_names and not kept_names & set(recompute), kept
    unnamed = [
        source for source in inside if "named '" not in source and "constant" not in source and "cos" not in source
    ]
    assert not unnamed, unnamed


def test_regather_drops_gathered_parameters_and_keeps_the_rest():
    weight = normal(16)
    x = normal(3, 4)

    def unit(weight, x):
        gathered = checkpoint_name(weight * 1.0, tags.GATHERED)  # a stand-in for the gather
        kernel = checkpoint_name(gathered.reshape(4, 4).astype(jnp.bfloat16), tags.PARAMETER)
        hidden = checkpoint_name(jnp.sin(x.astype(jnp.bfloat16) @ kernel), tags.ACTIVATION)
        return (hidden @ kernel).sum().astype(jnp.float32)

    sources = " ".join(source for _, source in saved_residuals(remat.regather(unit), weight, x))
    assert "'gathered'" not in sources and "'parameter'" not in sources
    assert "'activation'" in sources
    plain = " ".join(source for _, source in saved_residuals(unit, weight, x))
    assert "'parameter'" in plain
    np.testing.assert_array_equal(jax.grad(remat.regather(unit))(weight, x), jax.grad(unit)(weight, x))

"""Norms, MLPs, gates, rotary positions, dropout and feature interactions against float64 NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from gem_jax.nn.dropout import STEPS, dropout, split_key
from gem_jax.nn.gates import Gate
from gem_jax.nn.interactions import (
    DHEN,
    CrossNetwork,
    Interaction,
    LinearCompress,
    MixtureCrossNetwork,
    pairwise_dots,
)
from gem_jax.nn.mlp import MLP
from gem_jax.nn.norms import LayerNorm, RMSNorm
from gem_jax.nn.parameters import numbered
from gem_jax.nn.rope import rotate
from gem_jax.precision.policy import Policy
from tests.gem_jax.nn import numpy_reference as ref
from tests.gem_jax.nn.numpy_reference import f64
from tests.gem_jax.nn.running import FLOAT32, normal, randomised, run

CLOSE = dict(rtol=2e-5, atol=2e-5)
TOKENS = numbered("token", 5)


@pytest.mark.parametrize("affine", [True, False])
def test_norms(affine):
    x = normal(4, 7) + 3
    layer = randomised(lambda: LayerNorm(7, affine=affine, eps=1e-3))
    np.testing.assert_allclose(run(layer, x), ref.layer_norm(f64(x), layer if affine else None, 1e-3), **CLOSE)
    rms = randomised(lambda: RMSNorm(7, affine=affine, eps=1e-3))
    np.testing.assert_allclose(run(rms, x), ref.rms_norm(f64(x), rms if affine else None, 1e-3), **CLOSE)


def test_norms_compute_in_float32():
    x = jnp.asarray(normal(4, 64) + 100).astype(jnp.bfloat16)  # a bfloat16 mean of these would be off by 0.1
    for layer, expected in ((LayerNorm(64), ref.layer_norm(f64(x))), (RMSNorm(64), ref.rms_norm(f64(x)))):
        y = layer(x)
        assert y.dtype == jnp.bfloat16
        np.testing.assert_allclose(f64(y), expected, rtol=2**-8, atol=2**-8)


@pytest.mark.parametrize("norm", [False, True])
def test_mlp(norm):
    module = randomised(lambda: MLP(5, (6, 4), 3, norm=norm, policy=FLOAT32, rngs=nnx.Rngs(0)))
    x = normal(9, 5)
    h = f64(x)
    for i in range(2):
        h = ref.linear(module.layers[i], h)
        h = ref.relu(ref.layer_norm(h, module.norms[i]) if norm else h)
    np.testing.assert_allclose(run(module, x), ref.linear(module.layers[2], h), **CLOSE)


def test_mlp_of_learned_slopes_without_a_last_layer():
    module = randomised(lambda: MLP(5, (6, 4), None, activation="prelu", policy=FLOAT32, rngs=nnx.Rngs(0)))
    x = normal(9, 5)
    y = run(module, x)
    assert y.shape == (9, 4) and len(module.layers) == 2
    h = ref.linear(module.layers[0], f64(x))
    h = np.where(h > 0, h, f64(module.activations[0].slope) * h)
    h = ref.linear(module.layers[1], h)
    np.testing.assert_allclose(y, np.where(h > 0, h, f64(module.activations[1].slope) * h), **CLOSE)


def test_mlp_keeps_the_scale_and_the_dtype():
    module = MLP(64, (64, 64), 64, policy=Policy(compute="bfloat16"), rngs=nnx.Rngs(0))
    y = module(jnp.asarray(normal(256, 64)))
    assert y.dtype == jnp.bfloat16
    assert all(p.dtype == jnp.float32 for p in jax.tree.leaves(nnx.state(module)))
    assert 0.5 < f64(y).std() < 2


def test_dropout_is_off_without_a_key_and_unbiased_with_one():
    x = jnp.ones((200, 50))
    assert dropout(x, 0.3, None) is x
    y = np.asarray(dropout(x, 0.3, jax.random.key(0)))
    dropped = round(0.3 * STEPS)
    assert set(np.unique(y)) == {np.float32(0), np.float32(STEPS / (STEPS - dropped))}
    kept = (y > 0).mean()
    assert abs(kept - 0.7) < 4 * np.sqrt(0.3 * 0.7 / x.size)
    assert split_key(None, 3) == [None] * 3
    module = MLP(5, (64,), 3, dropout_rate=0.5, policy=FLOAT32, rngs=nnx.Rngs(0))
    outputs = [module(jnp.ones((2, 5)), jax.random.key(seed)) for seed in (1, 1, 2)]
    np.testing.assert_array_equal(outputs[0], outputs[1])
    assert not np.allclose(outputs[0], outputs[2])


@pytest.mark.parametrize("shape", [(), (1,), (3, 5, 7), (0, 4)])
def test_dropout_of_any_size(shape):
    assert dropout(jnp.ones(shape, jnp.bfloat16), 0.5, jax.random.key(0)).shape == shape
    assert dropout(jnp.ones(shape, jnp.bfloat16), 0.5, jax.random.key(0)).dtype == jnp.bfloat16


def test_dropout_at_the_ends_of_its_rate():
    x, key = jnp.ones(1000), jax.random.key(0)
    assert dropout(x, 0.0, key) is x and dropout(x, 0.4 / STEPS, key) is x
    assert not dropout(x, 1.0, key).any()
    np.testing.assert_array_equal(jax.grad(lambda x: dropout(x, 0.3, key).sum())(x), dropout(x, 0.3, key))


def test_dropout_of_two_entries_that_share_a_word_is_independent():
    """Entries i and i + size / 2; each count is binomial, and 5 of its standard deviations are allowed."""
    size, rate = 400_000, 0.25
    kept = np.asarray(dropout(jnp.ones(size), rate, jax.random.key(7)) > 0)
    pairs = np.bincount(kept[: size // 2] * 2 + kept[size // 2 :], minlength=4)
    shares = np.outer([rate, 1 - rate], [rate, 1 - rate]).ravel()
    assert (abs(pairs - shares * size / 2) < 5 * np.sqrt(shares * (1 - shares) * size / 2)).all()


@pytest.mark.parametrize("form", ["gated", "sigmoid", "tanh", "identity"])
def test_gate(form):
    module = randomised(lambda: Gate(4, form, policy=FLOAT32, rngs=nnx.Rngs(0)))
    x = normal(3, 2, 4)
    y = ref.linear(module.linear, f64(x))
    expected = {
        "gated": f64(x) * ref.sigmoid(y),
        "sigmoid": ref.sigmoid(f64(x) * y),
        "tanh": np.tanh(f64(x) * y),
        "identity": f64(x) * y,
    }[form]
    np.testing.assert_allclose(run(module, x), expected, **CLOSE)


def test_rotation():
    q, k = jnp.asarray(normal(6, 2, 8)), jnp.asarray(normal(6, 2, 8, seed=2))
    positions = jnp.array([0, 1, 2, 5, 40, 3000])
    np.testing.assert_allclose(rotate(q, positions), ref.rope(f64(q), positions), rtol=1e-3, atol=1e-3)
    np.testing.assert_array_equal(rotate(q, jnp.zeros(6)), q)
    # Scores depend on differences of positions only.
    scores, shifted = (
        np.einsum("ihk,jhk->hij", rotate(q, positions + shift), rotate(k, positions + shift)) for shift in (0, 17)
    )
    np.testing.assert_allclose(scores, shifted, rtol=1e-3, atol=1e-4)


def cross_network(module, x):
    crossed = x
    for layer, up in enumerate(module.up):
        inner = ref.linear(module.down[layer], crossed) if len(module.down) else crossed
        crossed = x * ref.linear(up, inner) + crossed
    return crossed


@pytest.mark.parametrize("rank", [None, 2])
def test_cross_network(rank):
    module = randomised(lambda: CrossNetwork(5, 3, rank=rank, policy=FLOAT32, rngs=nnx.Rngs(0)))
    x = normal(7, 5)
    np.testing.assert_allclose(run(module, x), cross_network(module, f64(x)), **CLOSE)


def mixture_cross_network(module, x):
    """Eq 3 and 4, expert by expert."""
    crossed = x
    for gate, down, between, up in zip(module.gate, module.down, module.between, module.up, strict=True):
        gates, total = ref.softmax(ref.linear(gate, crossed)), 0.0
        rank = between.weight.shape[-1]
        for i in range(module.num_experts):
            span = slice(i * rank, (i + 1) * rank)
            inner = np.tanh(crossed @ f64(down.kernel)[:, span])
            inner = np.tanh(inner @ f64(between.weight)[i])
            total += gates[:, [i]] * x * (inner @ f64(up.kernel)[span] + f64(up.bias))
        crossed = total + crossed
    return crossed


def test_mixture_cross_network():
    module = randomised(lambda: MixtureCrossNetwork(5, 3, rank=2, num_experts=3, policy=FLOAT32, rngs=nnx.Rngs(0)))
    x = normal(7, 5)
    np.testing.assert_allclose(run(module, x), mixture_cross_network(module, f64(x)), **CLOSE)


def dots(x):
    pairs = [(i, j) for i in range(x.shape[1]) for j in range(i + 1, x.shape[1])]
    return np.stack([(x[:, i] * x[:, j]).sum(-1) for i, j in pairs], axis=1)


def interaction(module, x, tokens_out):
    flat = x.reshape(len(x), -1)
    y = dots(x) if module.cross is None else cross_network(module.cross, flat)
    return ref.mlp(module.mlp, y).reshape(len(x), tokens_out, -1)


def test_pairwise_dots_and_linear_compress():
    x = normal(3, 5, 4)
    np.testing.assert_allclose(pairwise_dots(jnp.asarray(x)), dots(f64(x)), **CLOSE)
    module = randomised(lambda: LinearCompress(TOKENS, TOKENS[:2], policy=FLOAT32, rngs=nnx.Rngs(0)))
    np.testing.assert_allclose(run(module, x), np.einsum("nm,bnd->bmd", f64(module.weight), f64(x)), **CLOSE)


@pytest.mark.parametrize("kind", ["dot", "dcnv2"])
def test_interaction(kind):
    module = randomised(lambda: Interaction(kind, TOKENS, TOKENS[:3], 4, hidden=(6,), policy=FLOAT32, rngs=nnx.Rngs(0)))
    x = normal(3, 5, 4)
    np.testing.assert_allclose(run(module, x), interaction(module, f64(x), 3), **CLOSE)


def test_dhen():
    module = randomised(lambda: DHEN(TOKENS, TOKENS[:3], 4, hidden=(6,), policy=FLOAT32, rngs=nnx.Rngs(0)))
    x = normal(3, 5, 4)
    y = sum(interaction(i, f64(x), 3) for i in module.interactions)
    y += np.einsum("nm,bnd->bmd", f64(module.shortcut.weight), f64(x))
    np.testing.assert_allclose(run(module, x), ref.layer_norm(y, module.norm), **CLOSE)

"""What every complete model must do; and the baselines' equations."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from gem_jax.errors import UserError
from gem_jax.models import GemConfig, table_width
from gem_jax.models.dcnv2 import DCNv2Config
from gem_jax.models.deepfm import DeepFMConfig
from gem_jax.models.din import DINConfig
from gem_jax.models.dlrm import DLRMConfig
from gem_jax.models.esmm import ESMMConfig
from gem_jax.models.finalmlp import FinalMLPConfig
from gem_jax.models.hstu import HSTUConfig
from gem_jax.models.interformer import InterFormerConfig
from gem_jax.models.logistic_regression import LogisticRegressionConfig
from gem_jax.models.mmoe import MMoEConfig
from gem_jax.models.sasrec import SASRecConfig
from gem_jax.models.wukong import WukongConfig
from gem_jax.precision.policy import Policy
from tests.gem_jax.models.batches import BARE, FULL, embed, lookup, poison_padding, random_batch
from tests.gem_jax.nn import numpy_reference as ref
from tests.gem_jax.nn.numpy_reference import f64
from tests.gem_jax.nn.running import FLOAT32, quick_jit, randomised
from tests.gem_jax.nn.test_layers import cross_network, dots

SMALL = dict(embedding_dim=8, head_hidden=(16,))
CONFIGS = {
    "wukong": WukongConfig(fmb_tokens=(4, 2), lcb_tokens=(4, 2), rank=4, fmb_hidden=(16,), dense_hidden=(), **SMALL),
    "interformer": InterFormerConfig(num_layers=1, num_heads=2, num_cls=2, interaction_hidden=(16,), **SMALL),
    "hstu": HSTUConfig(num_layers=1, width=16, head_dim=8, **SMALL),
    "sasrec": SASRecConfig(num_layers=1, width=16, **SMALL),
    "logistic_regression": LogisticRegressionConfig(),
    "dlrm": DLRMConfig(embedding_dim=8, bottom_hidden=(8,), top_hidden=(16,)),
    "dcnv2": DCNv2Config(embedding_dim=8, hidden=(16,)),
    "din": DINConfig(attention_hidden=(8,), **SMALL),
    "deepfm": DeepFMConfig(embedding_dim=8, hidden=(16,)),
    "finalmlp": FinalMLPConfig(embedding_dim=8, gate_hidden=(8,), first_hidden=(16,), second_hidden=(8,)),
    "mmoe": MMoEConfig(embedding_dim=8, num_experts=3, expert_hidden=(16,), tower_hidden=(8,)),
    "esmm": ESMMConfig(embedding_dim=8, tower_hidden=(16,)),
    "gem": GemConfig(
        embedding_dim=8, num_layers=1, fmb_tokens=4, lcb_tokens=4, rank=4, fmb_hidden=(16,), head_hidden=16
    ),
}
OF_HISTORIES = ("interformer", "hstu", "sasrec", "din", "dlrm", "mmoe", "esmm")
"""All models of histories but GEM, which has `likeness` from the start."""
NUM_STEPS = 60


@pytest.mark.parametrize("name", CONFIGS)
def test_model_fits_examples_and_ignores_padding(name):
    config = CONFIGS[name]
    batch = random_batch(FULL, 64, filled=60)
    width = table_width(config, FULL)
    tables, embedded = embed(FULL, batch, width)

    def make():  # XLA compiles this generator's code in a tenth of the time of the default one's
        return config.build(FULL, policy=FLOAT32, rngs=nnx.Rngs(jax.random.key(0, impl="unsafe_rbg")))

    graphdef, _ = nnx.split(nnx.eval_shape(make))
    state = quick_jit(lambda: nnx.state(make()))()
    assert all(isinstance(p, nnx.Param) for _, p in nnx.to_flat_state(state))
    assert all(p.dtype == jnp.float32 for p in jax.tree.leaves(state))

    optimizer = optax.adam(0.03)

    def loss(params, batch, noise):
        state, tables = params
        embedded = jax.tree.map(jnp.add, lookup(FULL, tables, batch), noise)
        logits = nnx.merge(graphdef, state)(batch, embedded).logits
        losses = optax.sigmoid_binary_cross_entropy(logits, jnp.nan_to_num(batch.labels))
        return jnp.mean(losses * batch.weight[:, None]), logits

    @quick_jit
    def step(params, moments, batch, noise):
        (value, logits), gradient = jax.value_and_grad(loss, has_aux=True)(params, batch, noise)
        updates, moments = optimizer.update(gradient, moments)
        return optax.apply_updates(params, updates), moments, value, logits

    no_noise = jax.tree.map(jnp.zeros_like, embedded)
    params = (state, tables)
    moments = optimizer.init(params)
    losses = []
    for _ in range(NUM_STEPS):
        params, moments, value, _ = step(params, moments, batch, no_noise)
        losses.append(float(value))
    assert losses[-1] < 0.5 * losses[0]

    _, _, _, logits = step(params, moments, batch, no_noise)
    assert logits.shape == (64, 2) and logits.dtype == jnp.float32
    poisoned, _, _, same = step(params, moments, *poison_padding(batch, no_noise))
    np.testing.assert_array_equal(same, logits)
    assert all(np.isfinite(p).all() for p in jax.tree.leaves(poisoned))

    changed = {name: x.at[59].add(1.0) for name, x in no_noise.features.items()}
    _, _, _, moved = step(params, moments, batch, dataclasses.replace(no_noise, features=changed))
    np.testing.assert_allclose(moved[:59], logits[:59], rtol=1e-5, atol=1e-5)
    assert not np.allclose(moved[59], logits[59])


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("schema", [FULL, BARE], ids=["full", "bare"])
def test_model_builds_for_any_schema_in_bfloat16_with_dropout(name, schema):
    config = CONFIGS[name]
    if name != "logistic_regression":
        config = dataclasses.replace(config, dropout=0.1)
    batch = random_batch(schema, 6)
    _, embedded = embed(schema, batch, table_width(config, schema))
    embedded = jax.tree.map(lambda x: x.astype(jnp.bfloat16), embedded)

    def forward(batch, embedded):
        model = config.build(schema, policy=Policy(compute="bfloat16"), rngs=nnx.Rngs(0))
        outputs = model(batch, embedded, jax.random.key(0))
        return outputs.logits, outputs.representations

    logits, representations = jax.eval_shape(forward, batch, embedded)
    assert logits.shape == (6, len(schema.tasks)) and logits.dtype == jnp.float32
    of_some = {"gem": {"first", "hidden"}, **dict.fromkeys(("interformer", "dlrm", "dcnv2"), {"hidden"})}
    assert set(representations) == {"last"} | of_some.get(name, set())
    assert all(x.ndim == 2 and len(x) == 6 for x in representations.values())


@pytest.mark.parametrize("change", [dict(interaction="dot"), dict(personalise="gdpa"), dict(residual=False)])
def test_interformer_choices_build(change):
    config = dataclasses.replace(CONFIGS["interformer"], **change)
    batch = random_batch(FULL, 6)
    _, embedded = embed(FULL, batch, config.embedding_dim)
    logits = jax.eval_shape(lambda *a: config.build(FULL, policy=FLOAT32, rngs=nnx.Rngs(0))(*a).logits, batch, embedded)
    assert logits.shape == (6, 2)


def run_baseline(config):
    batch = random_batch(FULL, 6)
    _, embedded = embed(FULL, batch, table_width(config, FULL))
    model = randomised(lambda: config.build(FULL, policy=FLOAT32, rngs=nnx.Rngs(0)))
    graphdef, state = nnx.split(model)
    logits = quick_jit(lambda state, *a: nnx.merge(graphdef, state)(*a).logits)(state, batch, embedded)
    features = np.stack([f64(embedded.features[f.name]) for f in FULL.categoricals], axis=1)
    return model, batch, embedded, features, logits


def tokens_of(module, batch, features):
    dense = ref.mlp(module.dense, f64(batch.dense))
    image = ref.linear(module.vector_linears["image"], f64(batch.vectors["image"]))
    return np.concatenate([features, dense[:, None], image[:, None]], axis=1)


def test_logistic_regression_equation():
    model, batch, _, features, logits = run_baseline(LogisticRegressionConfig())
    inputs = np.concatenate([f64(batch.dense), f64(batch.vectors["image"])], axis=1)
    expected = np.einsum("bfn,fn->bn", features, f64(model.scale)) + ref.linear(model.linear, inputs)
    np.testing.assert_allclose(logits, expected, rtol=2e-5, atol=2e-5)


def test_dlrm_equation():
    model, batch, embedded, features, logits = run_baseline(CONFIGS["dlrm"])
    tokens = tokens_of(model.tokens, batch, features)
    bags = []
    for sequence in FULL.sequences:
        events = batch.sequences[sequence.name]
        for attribute in sequence.attributes:
            rows = f64(embedded.events[sequence.name][attribute.name])
            spans = [slice(o, o + n) for o, n in zip(events.offsets[:-1], events.lengths, strict=True)]
            bags.append([rows[s].mean(0) if s.stop > s.start else np.zeros(8) for s in spans])
    products = dots(np.concatenate([tokens, np.stack(bags, axis=1)], axis=1))
    expected = ref.mlp(model.head.mlp, np.concatenate([products, tokens[:, 4]], axis=1))
    np.testing.assert_allclose(logits, expected, rtol=5e-5, atol=5e-5)


@pytest.mark.parametrize("structure", ["parallel", "stacked"])
def test_dcnv2_equation(structure):
    config = dataclasses.replace(CONFIGS["dcnv2"], structure=structure)
    model, batch, _, features, logits = run_baseline(config)
    x = tokens_of(model.tokens, batch, features).reshape(6, -1)
    crossed = cross_network(model.cross, x)
    if structure == "parallel":
        expected = ref.mlp(model.head.mlp, x) + ref.linear(model.cross_head, crossed)
    else:
        expected = ref.mlp(model.head.mlp, crossed)
    # Cubes of x under random weights reach thousands; float32 errors scale with them.
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


def test_config_errors_say_what_to_change():
    with pytest.raises(UserError, match="one entry per layer"):
        WukongConfig(fmb_tokens=(4,), lcb_tokens=(4, 2))

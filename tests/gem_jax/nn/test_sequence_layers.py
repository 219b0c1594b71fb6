"""Attention, pooling, tokens and events against float64 NumPy, history by history; padding rows hold NaN."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from gem_jax.data.schema import Categorical
from gem_jax.errors import UserError
from gem_jax.nn.attention import JaggedSelfAttention
from gem_jax.nn.candidate import candidate_features, counterparts
from gem_jax.nn.events import LOG_YEAR, EventEncoder, MergedHistory, time_features
from gem_jax.nn.jagged import Layout
from gem_jax.nn.pooling import PMA
from gem_jax.nn.tokens import FeatureTokens
from pallas_kernels.jagged_attention import Mask
from tests.gem_jax.models.batches import BARE, FULL, embed, poison_padding, random_batch
from tests.gem_jax.nn import numpy_reference as ref
from tests.gem_jax.nn.numpy_reference import f64
from tests.gem_jax.nn.running import (
    FLOAT32,
    MAX_LEN,
    assert_rows,
    example_layout,
    normal,
    quick_jit,
    random_rows,
    randomised,
    run,
)

CLOSE = dict(rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize(
    "options",
    [
        dict(kind="softmax"),
        dict(kind="softmax", rope=False, qk_norm=True, mask=Mask(causal=False)),
        dict(kind="silu", qk_norm=True),
    ],
)
def test_self_attention(options):
    module = randomised(lambda: JaggedSelfAttention(8, 2, **options, policy=FLOAT32, rngs=nnx.Rngs(0)))
    x, histories = random_rows(8)
    is_causal = module.mask.causal
    expected = [ref.self_attention(module, h, is_causal=is_causal, max_len=MAX_LEN) for h in histories]
    assert_rows(run(module, x, example_layout()), expected)


def test_heads_must_divide_the_width():
    with pytest.raises(UserError, match="num_heads=3 does not divide the width 8"):
        JaggedSelfAttention(8, 3, policy=FLOAT32, rngs=nnx.Rngs(0))
    with pytest.raises(UserError, match="even head dim"):
        JaggedSelfAttention(6, 2, policy=FLOAT32, rngs=nnx.Rngs(0))


def test_pma():
    module = randomised(lambda: PMA(8, 3, 2, policy=FLOAT32, rngs=nnx.Rngs(0)))
    x, histories = random_rows(8)
    y = run(module, x, example_layout())
    np.testing.assert_allclose(y, [ref.pma(module, h) for h in histories], **CLOSE)


def test_feature_tokens():
    batch = jax.tree.map(jnp.asarray, random_batch(FULL, 5))
    _, embedded = embed(FULL, batch, 4)
    module = randomised(lambda: FeatureTokens(FULL, 4, dense_hidden=(3,), policy=FLOAT32, rngs=nnx.Rngs(0)))
    tokens = module(batch, embedded)
    assert tokens.shape == (5, len(module.names), 4) == (5, 6, 4)
    for i, feature in enumerate(FULL.categoricals):
        np.testing.assert_array_equal(tokens[:, i], embedded.features[feature.name])
    np.testing.assert_allclose(tokens[:, module.dense_index], ref.mlp(module.dense, f64(batch.dense)), **CLOSE)
    image = ref.linear(module.vector_linears["image"], f64(batch.vectors["image"]))
    np.testing.assert_allclose(tokens[:, 5], image, **CLOSE)
    bare = jax.tree.map(jnp.asarray, random_batch(BARE, 5))
    assert FeatureTokens(BARE, 4, policy=FLOAT32, rngs=nnx.Rngs(0))(bare, embed(BARE, bare, 4)[1]).shape == (5, 2, 4)


def test_time_features():
    features = np.asarray(time_features(jnp.array([0, 60, 3600, 31_536_000, 2**31 - 1])))
    assert features.shape == (5, 17) and np.isfinite(features).all()
    np.testing.assert_array_equal(features[0], [0] + [1] * 8 + [0] * 8)
    assert abs(features[3, 0] - 1) < 1e-3  # a year
    assert np.all(np.diff(features[:, 0]) > 0)


def encoded(module, history_rows, age_s, extra=()):
    """One history by the equations: MaskNet(S) = MLP_lce(S * MLP_mask(S)), or a Linear, or an MLP."""
    age = np.log1p(age_s.astype(np.float64))[:, None] / LOG_YEAR
    waves = np.pi * age * np.arange(1, 9)
    x = np.concatenate([*history_rows, age, np.cos(waves), np.sin(waves), *extra], axis=1)
    if module.mask is not None:
        x = x * ref.mlp(module.mask, x)
    return ref.mlp(module.project, x)


@pytest.mark.parametrize("form", ["linear", "masknet", "mlp"])
def test_event_encoder(form):
    batch = random_batch(FULL, 6)
    batch, embedded = poison_padding(batch, embed(FULL, batch, 4)[1])
    source = FULL.sequence("impressions")
    events, rows = batch.sequences["impressions"], embedded.events["impressions"]
    module = randomised(lambda: EventEncoder(source, 4, 6, form=form, policy=FLOAT32, rngs=nnx.Rngs(0)))
    on_device = jax.tree.map(jnp.asarray, events)
    layout = Layout.of(on_device, source.max_len)
    rows = {name: np.asarray(x) for name, x in rows.items()}
    graphdef, state = nnx.split(module)

    def forward(state, rows):
        y = nnx.merge(graphdef, state)(on_device, rows, layout)
        return y.sum(), y

    gradients, y = quick_jit(jax.grad(forward, argnums=(0, 1), has_aux=True))(state, rows)
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(gradients))
    expected = np.zeros(y.shape)
    for start, length in zip(events.offsets[:-1], events.lengths, strict=True):
        span = slice(start, start + length)
        attributes = [f64(rows[a.name])[span] for a in source.attributes]
        expected[span] = encoded(module, attributes, events.age_s[span])
    np.testing.assert_allclose(y, expected, rtol=5e-5, atol=5e-5)


@pytest.mark.parametrize("likeness", [False, True])
def test_merged_history_ends_with_the_last_row(likeness):
    batch = random_batch(FULL, 6)
    _, embedded = embed(FULL, batch, 4)
    module = randomised(lambda: MergedHistory(FULL, 4, 3, likeness=likeness, policy=FLOAT32, rngs=nnx.Rngs(0)))
    candidate = normal(6, 3)
    graphdef, state = nnx.split(module)
    y, layout, age = quick_jit(lambda s, *a: nnx.merge(graphdef, s)(*a))(state, batch, embedded, candidate)
    assert module.max_len == 11 + 20 and layout.max_len == module.max_len + 1
    lengths = sum(batch.sequences[s.name].lengths for s in FULL.sequences)
    np.testing.assert_array_equal(layout.lengths, lengths + 1)
    for b in range(6):
        rows = slice(layout.offsets[b], layout.offsets[b] + layout.lengths[b])
        np.testing.assert_array_equal(y[rows][-1], candidate[b])
        assert age[rows][-1] == 0 and np.all(np.diff(age[rows]) <= 0)


@pytest.mark.parametrize("form", ["linear", "mlp"])
def test_the_candidate_as_an_event(form):
    """It is what each source's encoder makes of an event of now with the candidate's own attributes."""
    batch = random_batch(FULL, 6)
    _, embedded = embed(FULL, batch, 4)
    module = randomised(lambda: MergedHistory(FULL, 4, 3, form=form, likeness=True, policy=FLOAT32, rngs=nnx.Rngs(0)))
    ad, topic = (f64(embedded.features[name]) for name in ("ad", "topic"))
    age, likeness = np.zeros(6), np.zeros((6, 1))  # of age 0, and likeness is for events
    impressions = encoded(module.encoders["impressions"], (ad, topic), age, (likeness, likeness))
    organic = encoded(module.encoders["organic"], (topic,), age, (likeness,))
    np.testing.assert_allclose(module.candidate(embedded, 6), impressions + organic, **CLOSE)


def test_counterparts_have_the_attributes_table():
    one = dict(table="topic", role="ad")
    schema = FULL.replace(categoricals=(Categorical(name="about", **one), *FULL.categoricals))
    assert counterparts(FULL.sequence("impressions"), schema) == {"ad": "ad", "topic": "topic"}
    renamed = FULL.replace(categoricals=(Categorical(name="z", **one), Categorical(name="about", **one)))
    assert counterparts(FULL.sequence("impressions"), renamed) == {"topic": "about"}
    assert {f.name for f in candidate_features(FULL)} == {"ad", "topic"}  # not of the user, not several ids

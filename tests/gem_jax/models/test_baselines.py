"""The baselines' equations in float64 NumPy, example by example where they read histories; padding rows hold NaN and wild ages."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from gem_jax.errors import UserError
from gem_jax.models import DCNv2Config, ESMMConfig, FinalMLPConfig, MMoEConfig, Outputs
from tests.gem_jax.models.batches import BARE, FULL, embed, poison_padding, random_batch
from tests.gem_jax.models.test_blocks import hstu
from tests.gem_jax.models.test_models import CONFIGS
from tests.gem_jax.nn import numpy_reference as ref
from tests.gem_jax.nn.numpy_reference import f64
from tests.gem_jax.nn.running import FLOAT32, quick_jit, randomised
from tests.gem_jax.nn.test_layers import dots, mixture_cross_network
from tests.gem_jax.nn.test_sequence_layers import encoded

CLOSE = dict(rtol=1e-4, atol=1e-4)
PAIRS = {"impressions": {"ad": "ad", "topic": "topic"}, "organic": {"topic": "topic"}}
"""Attribute -> the candidate's feature of its table."""


@dataclasses.dataclass(frozen=True)
class Run:
    """A model of random parameters, what it was given, and what it answered."""

    model: nnx.Module
    batch: object
    embedded: object
    outputs: Outputs

    @property
    def logits(self):
        return self.outputs.logits

    @property
    def features(self):
        """Feature -> [B, D]."""
        return {name: f64(x) for name, x in self.embedded.features.items()}

    def tokens(self, module):
        """[B, n, D]."""
        dense = ref.mlp(module.dense, f64(self.batch.dense))
        image = ref.linear(module.vector_linears["image"], f64(self.batch.vectors["image"]))
        return np.stack([*(self.features[f.name] for f in FULL.categoricals), dense, image], axis=1)

    def history(self, source, b):
        """Attribute -> [l, D], and ages [l], of one example."""
        events = self.batch.sequences[source]
        span = slice(events.offsets[b], events.offsets[b] + events.lengths[b])
        return {a: f64(x)[span] for a, x in self.embedded.events[source].items()}, events.age_s[span]

    def likeness(self, source, b):
        """[l, P] of one example."""
        rows, _ = self.history(source, b)
        columns = []
        for attribute, feature in PAIRS[source].items():
            event, own = ref.rms_norm(rows[attribute]), ref.rms_norm(self.features[feature][b])
            columns.append(event @ own / np.sqrt(event.shape[1]))
        return np.stack(columns, axis=1)


def answered(config, seed=0) -> Run:
    batch = random_batch(FULL, 6, seed=seed)
    batch, embedded = poison_padding(batch, embed(FULL, batch, config.embedding_dim)[1])
    model = randomised(lambda: config.build(FULL, policy=FLOAT32, rngs=nnx.Rngs(0)))
    graphdef, state = nnx.split(model)
    outputs = quick_jit(lambda state, *a: nnx.merge(graphdef, state)(*a))(state, batch, embedded)
    return Run(model, batch, embedded, outputs)


def pooled(run, module, likeness):
    """Tokens, mean embeddings and mean likenesses in one vector [B, F]."""
    parts = [run.tokens(module.tokens).reshape(6, -1)]
    means = []
    for b in range(6):
        bags, alike = [], []
        for source in PAIRS:
            rows, _ = run.history(source, b)
            bags += [x.mean(0) if len(x) else np.zeros(x.shape[1]) for x in rows.values()]
            if likeness:
                x = run.likeness(source, b)
                alike.append(x.mean(0) if len(x) else np.zeros(x.shape[1]))
        means.append(np.concatenate([*bags, *alike]))
    return np.concatenate([*parts, np.array(means)], axis=1)


# of single features


def test_deepfm():
    run = answered(CONFIGS["deepfm"])
    tokens = run.tokens(run.model.tokens)
    first, vectors = tokens[..., -1], tokens[..., :-1]
    machine = run.model.machine
    expected = first @ f64(machine.scale) + dots(vectors).sum(1)[:, None] * f64(machine.product_scale)
    expected += ref.mlp(run.model.head.mlp, vectors.reshape(6, -1))
    np.testing.assert_allclose(run.logits, expected, **CLOSE)


def test_finalmlp():
    run = answered(CONFIGS["finalmlp"])
    x = run.tokens(run.model.tokens).reshape(6, -1)
    streams = []
    for names, gate, stream in zip(
        (("user", "interests"), ("ad", "topic")), run.model.gates, run.model.streams, strict=True
    ):
        seeds = np.tile(f64(gate.seeds), (6, 1))
        context = np.concatenate([seeds, *(run.features[name] for name in names)], axis=1)
        streams.append(ref.mlp(stream, x * 2 * ref.sigmoid(ref.mlp(gate.mlp, context))))
    fusion, (first, second) = run.model.fusion, streams
    expected = ref.linear(fusion.from_x, first) + second @ f64(fusion.from_y.kernel)
    for h in range(2):
        x_h, y_h = first[:, 8 * h : 8 * h + 8], second[:, 4 * h : 4 * h + 4]
        expected += np.einsum("bx,nxy,by->bn", x_h, f64(fusion.weight)[:, h], y_h)
    np.testing.assert_allclose(run.logits, expected, **CLOSE)


def test_finalmlp_streams_fit_the_heads():
    with pytest.raises(UserError, match=r"second_hidden=\(9,\) must end in a multiple of num_heads=2"):
        FinalMLPConfig(second_hidden=(9,))


def test_dcnv2_of_experts():
    run = answered(dataclasses.replace(CONFIGS["dcnv2"], rank=3, num_experts=2))
    x = run.tokens(run.model.tokens).reshape(6, -1)
    expected = ref.mlp(run.model.head.mlp, x) + ref.linear(
        run.model.cross_head, mixture_cross_network(run.model.cross, x)
    )
    np.testing.assert_allclose(run.logits, expected, **CLOSE)


def test_dcnv2_experts_are_of_low_rank():
    with pytest.raises(UserError, match="set rank for more than one"):
        DCNv2Config(num_experts=4)


# of histories


@pytest.mark.parametrize("likeness", [False, True])
def test_din(likeness):
    run = answered(dataclasses.replace(CONFIGS["din"], likeness=likeness))
    expected = []
    for b in range(6):
        parts = [run.tokens(run.model.tokens)[b].reshape(-1)]
        for source, pairs in PAIRS.items():
            rows, age_s = run.history(source, b)
            total = np.zeros(sum(x.shape[1] for x in rows.values()))
            alike = run.likeness(source, b)
            for t in range(len(age_s)):
                k = {a: x[t] for a, x in rows.items()}
                q = {a: run.features[feature][b] for a, feature in pairs.items()}
                age = np.log1p(age_s[t]) / 17.27
                waves = np.pi * age * np.arange(1, 9)
                inputs = [*k.values(), *q.values(), *(q[a] - k[a] for a in q), *(q[a] * k[a] for a in q)]
                inputs += [[age], np.cos(waves), np.sin(waves)] + ([alike[t]] if likeness else [])
                weight = ref.mlp(run.model.attentions[source].mlp, np.concatenate(inputs))
                total += weight * np.concatenate(list(k.values()))
            parts.append(total)
        expected.append(ref.mlp(run.model.head.mlp, np.concatenate(parts)))
    np.testing.assert_allclose(run.logits, expected, **CLOSE)


def merged(run, history, b, likeness):
    """One example's rows of all sources in order of time, and their ages; no two events happen at once."""
    rows, ages = [], []
    for source in PAIRS:
        attributes, age_s = run.history(source, b)
        extra = (run.likeness(source, b),) if likeness else ()
        rows.append(encoded(history.encoders[source], list(attributes.values()), age_s, extra))
        ages.append(age_s)
    ages = np.concatenate(ages)
    assert len(set(ages)) == len(ages)
    order = np.argsort(-ages)
    return np.concatenate(rows)[order], ages[order]


def as_event(run, history, b, likeness):
    """The candidate encoded as an event of each source, summed."""
    total = 0.0
    for source, pairs in PAIRS.items():
        attributes = [run.features[feature][b][None] for feature in pairs.values()]
        extra = (np.zeros((1, len(pairs))),) if likeness else ()
        total += encoded(history.encoders[source], attributes, np.zeros(1), extra)[0]
    return total


@pytest.mark.parametrize("likeness", [False, True])
def test_sasrec(likeness):
    run = answered(dataclasses.replace(CONFIGS["sasrec"], likeness=likeness))
    model = run.model
    expected = []
    for b in range(6):
        x, _ = merged(run, model.history, b, likeness)
        x = x + f64(model.places)[: len(x)][::-1]
        for block in model.blocks:
            normed = ref.layer_norm(x, block.attention_norm)
            x = x + ref.self_attention(block.attention, normed, max_len=model.history.max_len)
            x = x + ref.mlp(block.mlp, ref.layer_norm(x, block.mlp_norm))
        state = ref.layer_norm(x[-1] if len(x) else np.zeros(x.shape[1]), model.norm)
        match = state * as_event(run, model.history, b, likeness)
        tokens = run.tokens(model.tokens)[b].reshape(-1)
        expected.append(ref.mlp(model.head.mlp, np.concatenate([state, match, tokens])))
    np.testing.assert_allclose(run.logits, expected, rtol=5e-4, atol=5e-4)


@pytest.mark.parametrize("likeness", [False, True])
def test_hstu(likeness, monkeypatch):
    monkeypatch.setattr("tests.gem_jax.models.test_blocks.MAX_LEN", 11 + 20 + 1)
    run = answered(dataclasses.replace(CONFIGS["hstu"], likeness=likeness))
    model = run.model
    expected = []
    for b in range(6):
        tokens = run.tokens(model.tokens)[b].reshape(-1)
        events, ages = merged(run, model.history, b, likeness)
        candidate = ref.linear(model.candidate, tokens)
        x = np.concatenate([events, candidate[None]])
        x = x + f64(model.places)[: len(x)][::-1]
        for block in model.blocks:
            x = hstu(block, x, -np.append(ages, 0).astype(np.int64))
        item = ref.layer_norm(ref.mlp(model.item, tokens), model.item_norm)
        expected.append(ref.mlp(model.head.mlp, ref.layer_norm(x[-1], model.norm) * item))
    np.testing.assert_allclose(run.logits, expected, rtol=1e-3, atol=1e-3)


def test_models_of_histories_need_none():
    """Without any source SASRec is an MLP of the features, and HSTU's history is the candidate."""
    batch = random_batch(BARE, 6)
    for name in ("sasrec", "hstu", "din", "mmoe"):
        model = CONFIGS[name].build(BARE, policy=FLOAT32, rngs=nnx.Rngs(0))
        assert np.isfinite(model(batch, embed(BARE, batch, 8)[1]).logits).all()


# of several tasks


@pytest.mark.parametrize("likeness", [False, True])
def test_mmoe(likeness):
    run = answered(dataclasses.replace(CONFIGS["mmoe"], likeness=likeness))
    mixture = run.model.mixture
    x = pooled(run, run.model.features, likeness)
    experts = np.stack([ref.mlp(expert, x) for expert in mixture.experts], axis=1)
    for task, name in enumerate(("click", "conversion")):
        gates = ref.softmax(ref.linear(mixture.gates[name], x))
        logit = ref.mlp(run.model.towers[name], np.einsum("be,beh->bh", gates, experts))
        np.testing.assert_allclose(run.logits[:, task], logit[:, 0], **CLOSE)


def test_mmoe_needs_experts():
    with pytest.raises(UserError, match="at least 1"):
        MMoEConfig(num_experts=0)


@pytest.mark.parametrize("likeness", [False, True])
def test_esmm(likeness):
    """pCTCVR = pCTR x pCVR, whatever the base rates."""
    config = dataclasses.replace(CONFIGS["esmm"], parents={"conversion": "click"}, likeness=likeness)
    run = answered(config)
    x = pooled(run, run.model.features, likeness)
    click, conversion = (ref.mlp(run.model.towers[name], x)[:, 0] for name in ("click", "conversion"))
    rates = np.array([0.05, 0.004])
    base = np.log(rates / (1 - rates))
    logits = f64(run.outputs.with_base(jnp.asarray(base)).logits)
    p_click = ref.sigmoid(click + base[0])
    given = rates[1] / rates[0]
    p_conversion = p_click * ref.sigmoid(conversion + np.log(given / (1 - given)))
    np.testing.assert_allclose(logits[:, 0], click + base[0], **CLOSE)
    np.testing.assert_allclose(logits[:, 1], np.log(p_conversion / (1 - p_conversion)), **CLOSE)


def test_a_conditional_model_of_zeros_predicts_the_base_rates():
    rates = np.array([0.001, 0.3, 0.02])  # purchase, click, visit: a chain in another order
    base = jnp.asarray(np.log(rates / (1 - rates)))
    outputs = Outputs(logits=jnp.zeros((2, 3)), parents=(2, None, 1)).with_base(base)
    np.testing.assert_allclose(ref.sigmoid(f64(outputs.logits)), [rates, rates], rtol=1e-5)
    assert outputs.parents == ()
    without = Outputs(logits=jnp.ones((2, 3))).with_base(base)
    np.testing.assert_array_equal(without.logits, 1 + np.stack([base, base]))


def test_conditional_logits_stay_finite_with_their_gradients():
    """Where the product is next to 0 or 1, and where no event was seen of a task that presupposes another."""
    base = jnp.array([-3.0, 0.0])

    def total(logits):
        return Outputs(logits=logits, parents=(None, 0)).with_base(base).logits.sum()

    for extreme in ([80.0, 80.0], [-80.0, -80.0], [80.0, -80.0], [0.0, 0.0]):
        value, gradient = jax.value_and_grad(total)(jnp.array([extreme]))
        assert np.isfinite(value) and np.isfinite(gradient).all(), extreme


@pytest.mark.parametrize(
    ("parents", "message"),
    [
        ({"purchase": "click"}, "names the task 'purchase', which the data does not have; it has click, conversion"),
        ({"conversion": "click", "click": "conversion"}, "leads from '(click|conversion)' back to itself"),
    ],
)
def test_esmm_parents_are_tasks_in_an_order(parents, message):
    with pytest.raises(UserError, match=message):
        ESMMConfig(embedding_dim=8, parents=parents).build(FULL, policy=FLOAT32, rngs=nnx.Rngs(0))

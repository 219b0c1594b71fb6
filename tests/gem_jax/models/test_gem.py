"""GEM's own blocks and the complete model against float64 NumPy, and what it must and must not do with its inputs."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from gem_jax.data.batch import Batch
from gem_jax.errors import UserError
from gem_jax.models.cross_layer import CrossLayerAttention
from gem_jax.models.gem import GemConfig, GemLayer
from gem_jax.models.pyramid import HistorySummary, Level, Pyramid, SequenceLayer, Streams
from gem_jax.nn.parameters import numbered, path_name
from tests.gem_jax.models import gem_reference
from tests.gem_jax.models.batches import BARE, FULL, embed, packed_offsets, poison_padding, random_batch
from tests.gem_jax.nn.numpy_reference import f64
from tests.gem_jax.nn.running import (
    FLOAT32,
    assert_rows,
    example_layout,
    normal,
    quick_jit,
    random_rows,
    randomised,
    run,
)

WIDTH = 8
LEVELS = (Level(), Level(recent=6, pool=4))
MODULES = numbered("module", 2)
CONFIG = GemConfig(
    embedding_dim=WIDTH,
    fmb_tokens=2,
    lcb_tokens=3,
    rank=3,
    fmb_hidden=(6,),
    levels=LEVELS,
    num_summary=2,
    num_seeds=1,
    head_hidden=6,
    dense_hidden=(4,),
)
PAIRS = {"impressions": [("ad", "ad"), ("topic", "topic")], "organic": [("topic", "topic")]}
LONGEST = 20  # FULL's organic events

# One float32 operation rounds by 6e-8. A block chains some ten products of tens of terms with norms, whose division by
# deviations down to 0.1 enlarges what came before about tenfold: 6e-8 * 30 * 10. A model chains two layers of three blocks.
CLOSE = dict(rtol=2e-5, atol=2e-5)
CLOSE_MODEL = dict(rtol=1e-4, atol=1e-4)


def uneven_batch() -> Batch:
    """Five examples with histories of 0, all, 1 and other numbers of events and some absent features; one empty slot."""
    batch = random_batch(FULL, 6, filled=5)
    sequences = {}
    for sequence in FULL.sequences:
        source = batch.sequences[sequence.name]
        assert source.lengths[3] >= 1  # its other rows become padding
        source = dataclasses.replace(source, lengths=np.where(np.arange(6) == 3, 1, source.lengths).astype(np.int32))
        assert {0, 1, sequence.max_len} < set(source.lengths.tolist())
        sequences[sequence.name] = source
    ids = {name: column.copy() for name, column in batch.ids.items()}
    ids["ad"][3], ids["user"][1], ids["interests"][4] = -1, -1, -1
    domain = np.arange(6, dtype=np.int32) % 3
    return dataclasses.replace(batch, ids=ids, sequences=sequences, domain=domain)


@functools.cache
def compiled(config: GemConfig):
    """The model with random weights, its state, and its jitted logits(state, batch, embedded)."""
    model = randomised(lambda: config.build(FULL, policy=FLOAT32, rngs=nnx.Rngs(0)))
    graphdef, state = nnx.split(model)
    return model, state, quick_jit(lambda state, *args: nnx.merge(graphdef, state)(*args).logits)


def logits_of(config: GemConfig, batch: Batch, state=None):
    _, own_state, function = compiled(config)
    embedded = embed(FULL, batch, WIDTH)[1]
    return np.asarray(function(own_state if state is None else state, *poison_padding(batch, embedded)))


# Cross-layer attention


@pytest.mark.parametrize("num_states", [2, 4])
def test_cross_layer_attention(num_states):
    module = randomised(lambda: CrossLayerAttention(6, 2, num_states, policy=FLOAT32, rngs=nnx.Rngs(0)))
    states = [normal(4, 5, 6, seed=i) for i in range(num_states)]
    graphdef, state = nnx.split(module)
    y = quick_jit(lambda state, states: nnx.merge(graphdef, state)(states))(state, states)
    expected = [gem_reference.cross_layer(module, [f64(x[b]) for x in states]) for b in range(4)]
    np.testing.assert_allclose(y, expected, **CLOSE)


def test_cross_layer_attention_starts_as_the_plain_residual_and_learns():
    module = CrossLayerAttention(6, 2, 4, policy=FLOAT32, rngs=nnx.Rngs(0))
    states = [jnp.asarray(normal(4, 5, 6, seed=i)) for i in range(4)]
    np.testing.assert_array_equal(module(states), states[-1])
    gradients = nnx.grad(lambda module: jnp.sin(module(states)).sum())(module)
    assert np.abs(gradients["static"][...]).min() > 0 and np.abs(gradients["attended"][...]).min() > 0


# Pyramid


@pytest.mark.parametrize(
    "level", [Level(), Level(recent=3), Level(recent=50), Level(pool=4), Level(recent=6, pool=4), Level(recent=1)]
)
def test_level_shortens_histories(level):
    x, histories = random_rows(3)
    x, layout = level.shorten(jnp.asarray(x), example_layout())
    expected = [gem_reference.shorten(level, h) for h in histories]
    np.testing.assert_array_equal(layout.lengths, [len(h) for h in expected])
    assert max(len(h) for h in expected) <= layout.max_len
    for start, history in zip(layout.offsets[:-1], expected, strict=True):
        np.testing.assert_allclose(x[start : start + len(history)], history, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", ["recent", "pool"])
def test_level_errors_say_what_to_change(name):
    with pytest.raises(UserError, match=f"{name}=0; it must be at least 1"):
        Level(**{name: 0})


def test_likeness_pairs_event_attributes_with_the_candidate():
    """Of the features that share a table with an event's attribute, only the ad's, and only single-valued ones."""
    module = nnx.eval_shape(lambda: Pyramid(FULL, LEVELS, WIDTH, policy=FLOAT32, rngs=nnx.Rngs(0)))
    assert {name: list(part.pairs) for name, part in module.likeness.items()} == PAIRS


def test_likeness_can_be_left_out():
    def build(likeness):
        return Pyramid(FULL, LEVELS, WIDTH, likeness=likeness, policy=FLOAT32, rngs=nnx.Rngs(0))

    with_it, without = (nnx.eval_shape(lambda used=used: build(used)) for used in (True, False))
    for name, pairs in PAIRS.items():
        assert without.likeness[name].pairs == ()
        inputs = (module.encoders[name].project.layers[0].kernel.shape[0] for module in (with_it, without))
        assert next(inputs) - next(inputs) == len(pairs)


def test_pyramid():
    module = randomised(lambda: Pyramid(FULL, LEVELS, WIDTH, policy=FLOAT32, rngs=nnx.Rngs(0)))
    batch = uneven_batch()
    batch, embedded = poison_padding(batch, embed(FULL, batch, WIDTH)[1])
    graphdef, state = nnx.split(module)
    streams = quick_jit(lambda state, *args: nnx.merge(graphdef, state)(*args))(state, batch, embedded)
    expected = gem_reference.pyramid(module, FULL, PAIRS, batch, embedded)
    assert len(module.modules) == len(expected[0]) == 4
    assert streams.layout.max_len == LONGEST
    assert sum(streams.row_counts) == len(streams.rows) and not np.any(np.asarray(streams.layout.offsets) % 8)
    ends = np.cumsum(streams.row_counts)
    packed = np.zeros(streams.rows.shape)
    for i, (start, length) in enumerate(zip(streams.layout.offsets[:-1], streams.layout.lengths, strict=True)):
        module_index, b = divmod(i, 6)
        history = expected[b][module_index]
        assert length == len(history)
        assert ends[module_index] - streams.row_counts[module_index] <= start <= ends[module_index] - length
        packed[start : start + length] = history
    np.testing.assert_allclose(streams.rows, packed, **CLOSE)


def two_modules():
    """Packed rows of two modules, NaN in padding, as the streams' fields and as streams of each example."""
    parts = [random_rows(WIDTH, seed=seed) for seed in (0, 1)]
    streams = Streams.of([(jnp.asarray(x), example_layout()) for x, _ in parts])
    return streams, [list(pair) for pair in zip(*(histories for _, histories in parts), strict=True)]


def test_streams_join_modules():
    streams, _ = two_modules()
    layout = example_layout()
    assert streams.row_counts == (40, 40) and streams.layout.num_examples == 8
    np.testing.assert_array_equal(streams.layout.lengths, np.tile(layout.lengths, 2))
    np.testing.assert_array_equal(streams.layout.offsets[4:8], np.asarray(layout.offsets[:4]) + 40)
    # The rows left over by the first module belong to no history.
    assert np.all(np.asarray(streams.layout.example)[int(layout.offsets[-1]) : 40] == 8)


@pytest.mark.parametrize("window", [None, 3])
def test_sequence_layer(window):
    make = dict(window=window, dropout_rate=0.0, policy=FLOAT32)
    module = randomised(lambda: SequenceLayer(WIDTH, 3, 2, MODULES, **make, rngs=nnx.Rngs(0)))
    streams, histories = two_modules()
    summary = jnp.asarray(normal(4, 3, WIDTH))
    graphdef, state = nnx.split(module)

    def forward(state, rows):
        y = nnx.merge(graphdef, state)(summary, dataclasses.replace(streams, rows=rows), None).rows
        return jnp.sin(y).sum(), y

    gradients, y = quick_jit(jax.grad(forward, argnums=(0, 1), has_aux=True))(state, streams.rows)
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(gradients))
    options = dict(longest=example_layout().max_len, window=window)
    expected = [
        gem_reference.sequence_layer(module, x_sum, own, **options)
        for x_sum, own in zip(f64(summary), histories, strict=True)
    ]
    for i in range(2):
        assert_rows(np.asarray(y)[40 * i : 40 * (i + 1)], [own[i] for own in expected])


def test_history_summary():
    module = randomised(lambda: HistorySummary(WIDTH, 3, 2, 2, 2, MODULES, policy=FLOAT32, rngs=nnx.Rngs(0)))
    streams, histories = two_modules()
    summary = normal(4, 3, WIDTH)
    y = run(module, summary, streams)
    assert y.shape == (4, len(module.names), WIDTH) == (4, 2 * 7, WIDTH)
    expected = [
        gem_reference.history_summary(module, x_sum, own) for x_sum, own in zip(f64(summary), histories, strict=True)
    ]
    np.testing.assert_allclose(y, expected, **CLOSE)
    np.testing.assert_array_equal(y[1], 0)  # of an empty history


# Layer and model


@pytest.mark.parametrize("num_states", [1, 2])
def test_gem_layer(num_states):
    module = randomised(lambda: GemLayer(CONFIG, MODULES, num_states, policy=FLOAT32, rngs=nnx.Rngs(0)))
    assert (module.residual is None) == (num_states == 1)
    streams, histories = two_modules()
    states = [normal(4, len(CONFIG.tokens), WIDTH, seed=i) for i in range(num_states)]
    graphdef, state = nnx.split(module)
    x, after = quick_jit(lambda state, *args: nnx.merge(graphdef, state)(*args, None))(state, states, streams)
    expected = [
        gem_reference.gem_layer(module, [f64(s[b]) for s in states], histories[b], longest=example_layout().max_len)
        for b in range(4)
    ]
    np.testing.assert_allclose(x, [tokens for tokens, _ in expected], **CLOSE)
    for i in range(2):
        assert_rows(np.asarray(after.rows)[40 * i : 40 * (i + 1)], [own[i] for _, own in expected])


CHANGES = {
    "default": {},
    "plain": dict(cross_layer=False, domain_gates=False, window=3, levels=(Level(),)),
    "no histories": dict(levels=()),
    "two towers": dict(interleave=False),
}


@pytest.mark.parametrize("change", CHANGES)
def test_gem_model(change):
    config = dataclasses.replace(CONFIG, **CHANGES[change])
    model = compiled(config)[0]
    batch = uneven_batch()
    embedded = embed(FULL, batch, WIDTH)[1]
    expected = gem_reference.gem(model, FULL, PAIRS, batch, embedded, longest=LONGEST, window=config.window)
    assert np.abs(np.diff(expected, axis=0)).min() > 0.01  # no constant, which many mistakes would match
    np.testing.assert_allclose(logits_of(config, batch), expected, **CLOSE_MODEL)


def reordered(batch: Batch, order, tail: int = 0) -> Batch:
    """The examples in another order, histories packed anew, and `tail` more padding rows at each source's end."""
    order = np.asarray(order)
    sequences = {}
    for name, source in batch.sequences.items():
        lengths = source.lengths[order]
        offsets = packed_offsets(lengths)
        old = np.concatenate([np.arange(source.offsets[b], source.offsets[b] + source.lengths[b]) for b in order])
        new = np.concatenate([np.arange(o, o + n) for o, n in zip(offsets[:-1], lengths, strict=True)])

        def moved(column, fill, old=old, new=new):
            out = np.full(len(column) + tail, fill, column.dtype)
            out[new] = column[old]
            return out

        ids = {attribute: moved(column, -1) for attribute, column in source.ids.items()}
        age_s = moved(source.age_s, 0)
        sequences[name] = dataclasses.replace(source, ids=ids, age_s=age_s, offsets=offsets, lengths=lengths)
    rest = {f.name: jax.tree.map(lambda x: x[order], getattr(batch, f.name)) for f in dataclasses.fields(Batch)[:3]}
    columns = {name: getattr(batch, name)[order] for name in ("labels", "domain", "weight")}
    return Batch(**rest, **columns, sequences=sequences)


def test_examples_do_not_mix():
    batch, order = uneven_batch(), [3, 5, 0, 4, 2, 1]
    logits = logits_of(CONFIG, batch)
    np.testing.assert_allclose(logits_of(CONFIG, reordered(batch, order)), logits[order], rtol=1e-5, atol=1e-5)


def test_rows_after_the_last_history_change_nothing():
    batch = uneven_batch()
    longer = reordered(batch, range(6), tail=16)
    np.testing.assert_allclose(logits_of(CONFIG, longer), logits_of(CONFIG, batch), rtol=1e-5, atol=1e-5)


def test_every_event_matters():
    """Another id in the oldest event of the longest histories moves that example's logits and no other's."""
    batch = uneven_batch()
    logits = logits_of(CONFIG, batch)
    for sequence in FULL.sequences:
        source = batch.sequences[sequence.name]
        oldest = source.offsets[1]
        topic = source.ids["topic"].copy()
        topic[oldest] = (topic[oldest] + 1) % 7
        changed = dataclasses.replace(source, ids={**source.ids, "topic": topic})
        moved = logits_of(CONFIG, dataclasses.replace(batch, sequences={**batch.sequences, sequence.name: changed}))
        others = np.arange(6) != 1
        assert np.abs(moved[1] - logits[1]).max() > 1e-4
        np.testing.assert_array_equal(moved[others], logits[others])


@pytest.mark.parametrize("parameter", ["domain_gate", "domain_bias"])
def test_a_domains_parameters_are_its_own(parameter):
    batch, state = uneven_batch(), compiled(CONFIG)[1]

    def bumped(path, leaf):
        return leaf.at[1].add(1.0) if path_name(path) == f"heads/{parameter}" else leaf

    logits = logits_of(CONFIG, batch)
    moved = logits_of(CONFIG, batch, jax.tree_util.tree_map_with_path(bumped, state))
    assert np.all((moved != logits).any(axis=1) == (batch.domain == 1))


def test_cross_layer_attention_that_takes_nothing_is_the_plain_residual():
    _, state, _ = compiled(CONFIG)
    plain = dataclasses.replace(CONFIG, cross_layer=False)
    plain_names = {path_name(path) for path, _ in leaves_of(compiled(plain)[1])}

    def fixed(path, leaf):
        return jnp.zeros_like(leaf) if path_name(path).endswith(("residual/static", "residual/attended")) else leaf

    attended = jax.tree_util.tree_map_with_path(fixed, state)
    shared = [leaf for path, leaf in leaves_of(state) if path_name(path) in plain_names]
    plain_state = jax.tree.unflatten(jax.tree.structure(compiled(plain)[1]), shared)
    batch = uneven_batch()
    expected = logits_of(plain, batch, plain_state)
    np.testing.assert_allclose(logits_of(CONFIG, batch, attended), expected, rtol=1e-5, atol=1e-5)
    assert np.abs(logits_of(CONFIG, batch) - expected)[:5].max() > 0.01


def leaves_of(state):
    return jax.tree_util.tree_leaves_with_path(state)


@pytest.mark.parametrize("schema, change", [(FULL, dict(levels=())), (BARE, {})], ids=["no levels", "no sources"])
def test_no_histories_no_parameters_for_them(schema, change):
    config = dataclasses.replace(CONFIG, **change)
    state = nnx.state(nnx.eval_shape(lambda: config.build(schema, policy=FLOAT32, rngs=nnx.Rngs(0))))
    units = {path_name(path).split("/")[0] for path, _ in leaves_of(state)}
    parts = {path_name(path).split("/")[2] for path, _ in leaves_of(state) if path_name(path).startswith("layers")}
    assert units == {"tokens", "compress", "norm", "layers", "heads"} - ({"tokens"} if schema is BARE else set())
    assert parts == {"fmb", "lcb", "norm", "residual"}


@pytest.mark.parametrize("change", CHANGES)
def test_gradients_reach_every_parameter(change):
    config = dataclasses.replace(CONFIG, **CHANGES[change])
    model, state, _ = compiled(config)
    graphdef = nnx.split(model)[0]
    batch = uneven_batch()
    batch, embedded = poison_padding(batch, embed(FULL, batch, WIDTH)[1])

    @quick_jit
    def gradient(state, batch, embedded):
        return jax.grad(lambda state: jnp.sin(nnx.merge(graphdef, state)(batch, embedded).logits).sum())(state)

    for path, leaf in leaves_of(gradient(state, batch, embedded)):
        assert np.isfinite(leaf).all() and np.abs(leaf).max() > 0, path_name(path)

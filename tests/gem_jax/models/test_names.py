"""What parameters say of themselves: decay, and names by which each place of an axis is found again in another schema."""

import dataclasses
import re

import jax
import numpy as np
import pytest
from flax import nnx

from gem_jax.data.batch import Batch
from gem_jax.data.schema import Schema
from gem_jax.models import table_width
from gem_jax.models.gem import GemConfig
from gem_jax.models.pyramid import Level
from gem_jax.nn.dense import Dense
from gem_jax.nn.parameters import path_name, positional_kinds
from tests.gem_jax.models.batches import BARE, FULL, embed, random_batch
from tests.gem_jax.models.test_models import CONFIGS, OF_HISTORIES
from tests.gem_jax.nn.running import FLOAT32, quick_jit, randomised

GEM = dict(embedding_dim=8, fmb_tokens=2, lcb_tokens=2, rank=3, fmb_hidden=(6,), head_hidden=6, num_summary=2)
ALL = {
    **CONFIGS,
    "gem": GemConfig(levels=(Level(), Level(pool=4)), **GEM),
    "gem without domain gates": GemConfig(domain_gates=False, levels=(Level(recent=5),), cross_layer=False, **GEM),
    "gem without histories": GemConfig(levels=(), **GEM),
    "wukong of plain products": dataclasses.replace(CONFIGS["wukong"], rank=None),
    # As many tokens as FULL has: they are still not the features' own.
    "wukong of six tokens": dataclasses.replace(CONFIGS["wukong"], fmb_tokens=(2, 2), lcb_tokens=(4, 4)),
    **{f"{name} with likeness": dataclasses.replace(CONFIGS[name], likeness=True) for name in OF_HISTORIES},
    "gem without likeness": GemConfig(likeness=False, levels=(Level(),), **GEM),
    "dcnv2 of experts": dataclasses.replace(CONFIGS["dcnv2"], rank=3, num_experts=2),
    "stacked dcnv2": dataclasses.replace(CONFIGS["dcnv2"], structure="stacked", rank=3),
    "interformer of dots": dataclasses.replace(CONFIGS["interformer"], interaction="dot", personalise="gdpa"),
}

# What decided until parameters carried their own metadata; the first match won.
NO_DECAY = r"(^|/)((\w+_)?scale|slope|seeds|domain_gate|static|attended|places|position|time|(\w+_)?bias)$"
DECAY = r"(^|/)(kernel|weight|tower|readout|w|w1|w2|y|z)$"


def build(name):
    return lambda schema: ALL[name].build(schema, policy=FLOAT32, rngs=nnx.Rngs(0))


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("schema", [FULL, BARE], ids=["full", "bare"])
def test_matrices_decay_and_nothing_else_does(name, schema):
    parameters = nnx.to_flat_state(nnx.state(nnx.eval_shape(lambda: build(name)(schema))))
    assert parameters
    for path, p in parameters:
        path = path_name(tuple(jax.tree_util.DictKey(key) for key in path))
        expected = not re.search(NO_DECAY, path)
        assert expected == bool(re.search(DECAY, path)), path
        assert p.get_metadata("decay") == expected, path
        assert p.get_metadata("exact") == (not expected), path
        assert p.get_metadata("group") == "dense"


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("schema", [FULL, BARE], ids=["full", "bare"])
def test_nothing_depends_on_its_place_in_the_schema(name, schema):
    assert positional_kinds(build(name), schema) == {}


class Positional(nnx.Module):
    """Its inputs and outputs are numbered, and each vector's map is called by its place."""

    def __init__(self, schema: Schema):
        make = dict(policy=FLOAT32, rngs=nnx.Rngs(0))
        self.dense = Dense(len(schema.dense), tuple(task.name for task in schema.tasks), **make)
        self.domains = Dense(3, len(schema.domains), **make)
        self.vectors = nnx.List([Dense(v.dim, 3, **make) for v in schema.vectors])


def test_positions_are_told():
    found = positional_kinds(Positional, FULL)
    assert set(found) == {"dense", "vectors", "domains"}
    assert found["dense"] == "dense/kernel" and found["domains"].startswith("domains/")
    assert found["vectors"].startswith("vectors/")


# Reversing a schema and carrying every place of every parameter along by its name gives the same answers


def reverse(schema: Schema) -> Schema:
    """Everything the other way round, the attributes of sequences too."""
    sequences = tuple(
        dataclasses.replace(s, attributes=tuple(reversed(s.attributes))) for s in reversed(schema.sequences)
    )
    kinds = ("categoricals", "dense", "vectors", "tasks", "domains")
    return schema.replace(sequences=sequences, **{kind: tuple(reversed(getattr(schema, kind))) for kind in kinds})


def reverse_batch(schema: Schema, batch: Batch) -> Batch:
    """The same examples as `reverse(schema)` has them."""
    domain = (len(schema.domains) - 1 - batch.domain).astype(np.int32)
    return dataclasses.replace(
        batch, dense=batch.dense[:, ::-1].copy(), labels=batch.labels[:, ::-1].copy(), domain=domain
    )


def carried(old: nnx.State, new: nnx.State) -> nnx.State:
    """`old`'s values at `new`'s places, found by path and by name."""
    values = dict(nnx.to_flat_state(old))
    moved = []
    for path, target in nnx.to_flat_state(new):
        source = values[path]
        value = np.asarray(source[...])
        for axis, (names, wanted) in enumerate(
            zip(source.get_metadata("axes"), target.get_metadata("axes"), strict=True)
        ):
            assert (names is None) == (wanted is None)
            if names is not None:
                value = value.take([names.index(name) for name in wanted], axis=axis)
        assert value.shape == target.shape
        moved.append((path, target.replace(value)))
    assert len(moved) == len(values)
    return nnx.from_flat_state(moved)


@pytest.mark.parametrize("name", ALL)
def test_names_carry_parameters_to_a_reordered_schema(name):
    batch = random_batch(FULL, 6)
    embedded = embed(FULL, batch, table_width(ALL[name], FULL))[1]
    graphdef, state = nnx.split(randomised(lambda: build(name)(FULL)))
    turned = reverse(FULL)
    new_graphdef, new_state = nnx.split(nnx.eval_shape(lambda: build(name)(turned)))
    state_there = carried(state, new_state)
    embedded_there = embedded
    if ALL[name].embedding_dim is None:  # a table's columns are the tasks
        embedded_there = jax.tree.map(lambda x: x[..., ::-1], embedded)

    def logits(graphdef):
        return quick_jit(lambda state, *args: nnx.merge(graphdef, state)(*args).logits)

    here = np.asarray(logits(graphdef)(state, batch, embedded))
    there = np.asarray(logits(new_graphdef)(state_there, reverse_batch(FULL, batch), embedded_there))
    assert np.abs(np.diff(here, axis=0)).max() > 0.01
    # Sums run in another order: float32's 6e-8, times tens of terms, times what norms and cubes of random weights add.
    np.testing.assert_allclose(there[:, ::-1], here, rtol=2e-4, atol=2e-5 * np.abs(here).max())
    unmoved = logits(new_graphdef)(_as_they_lie(state, new_state), reverse_batch(FULL, batch), embedded_there)
    assert not np.allclose(np.asarray(unmoved)[:, ::-1], here, rtol=1e-3, atol=1e-3)


def _as_they_lie(old: nnx.State, new: nnx.State) -> nnx.State:
    """`old`'s values by path and shape alone, as a checkpoint without names would give them."""
    values = dict(nnx.to_flat_state(old))
    return nnx.from_flat_state(
        [(path, p.replace(np.resize(np.asarray(values[path][...]), p.shape))) for path, p in nnx.to_flat_state(new)]
    )

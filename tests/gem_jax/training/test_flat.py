"""Dense parameters as flat vectors: nothing is lost, moved or put into the wrong group."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from gem_jax.models import GemConfig
from gem_jax.training.flat import FlatLayout, unit_of
from gem_jax.training.optimizer import group_of, path_name
from tests.gem_jax.models.batches import FULL

GEM = GemConfig(embedding_dim=8, num_layers=2, fmb_tokens=4, lcb_tokens=4, rank=4, fmb_hidden=(16,), head_hidden=16)


@pytest.fixture(scope="module")
def numbered() -> nnx.State:
    """A GEM's state in which every single parameter has a value of its own."""
    abstract = nnx.state(nnx.eval_shape(lambda: GEM.build(FULL, nnx.Rngs(0))))
    leaves, treedef = jax.tree.flatten(abstract)
    ends = np.cumsum([leaf.size for leaf in leaves])
    assert ends[-1] < 2**24  # each number is exact in float32
    values = [
        jnp.arange(e - leaf.size, e, dtype=jnp.float32).reshape(leaf.shape)
        for e, leaf in zip(ends, leaves, strict=True)
    ]
    return jax.tree.unflatten(treedef, values)


def test_unflatten_is_the_inverse_of_flatten(numbered):
    layout = FlatLayout.of(numbered)
    flat = layout.flatten(numbered)
    back = layout.unflatten(flat)
    assert jax.tree.structure(back) == jax.tree.structure(numbered)
    jax.tree.map(np.testing.assert_array_equal, back, numbered)
    again = layout.flatten(back)
    assert again.keys() == flat.keys()
    for name in flat:
        np.testing.assert_array_equal(again[name], flat[name])


def test_each_vector_holds_its_unit_and_group_in_the_order_of_the_leaves(numbered):
    flat = FlatLayout.of(numbered).flatten(numbered)
    expected: dict[str, list] = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(numbered)[0]:
        name = path_name(path)
        parts = name.split("/")
        unit = "/".join(parts[:2]) if parts[1:] and parts[1].isdecimal() else parts[0]
        expected.setdefault(f"{unit}:{group_of(name)}", []).extend(np.asarray(leaf).ravel())
    assert flat.keys() == expected.keys()
    for name, vector in flat.items():
        assert vector.ndim == 1 and vector.dtype == jnp.float32
        size = len(expected[name])
        np.testing.assert_array_equal(vector[:size], expected[name])
        assert len(vector) % 1024 == 0 and len(vector) < size + 1024 and not np.any(vector[size:])
    assert {"layers/0:decay", "layers/1:decay", "layers/0:no_decay", "tokens:decay"} <= flat.keys()


def test_layouts_of_abstract_and_real_states_agree(numbered):
    abstract = nnx.state(nnx.eval_shape(lambda: GEM.build(FULL, nnx.Rngs(0))))
    ours, theirs = FlatLayout.of(numbered), FlatLayout.of(abstract)
    assert (ours.names, ours.shapes) == (theirs.names, theirs.shapes)
    assert ours.num_parameters == sum(x.size for x in jax.tree.leaves(numbered))
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a.shape, b.shape), ours.abstract(), numbered)


@pytest.mark.parametrize(("num_shards", "multiple"), [(1, 1024), (8, 1024), (6, 3072)])
def test_any_number_of_devices_can_cut_the_vectors(numbered, num_shards, multiple):
    flat = FlatLayout.of(numbered, num_shards).flatten(numbered)
    assert all(len(vector) % multiple == 0 for vector in flat.values())


@pytest.mark.parametrize(
    ("path", "unit"),
    [
        ("layers/0/cross/kernel", "layers/0"),
        ("layers/12/fmb/mlp/layers/3/bias", "layers/12"),
        ("tokens/dense/kernel", "tokens"),
        ("scale", "scale"),
        ("head/mlp/layers/0/kernel", "head"),
    ],
)
def test_units(path, unit):
    assert unit_of(path) == unit


def test_a_parameter_without_an_optimizer_is_named():
    class Strange(nnx.Module):
        def __init__(self):
            self.inner = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
            self.mystery = nnx.Param(jnp.zeros(3))

    with pytest.raises(ValueError, match="no optimizer for parameter 'mystery'"):
        FlatLayout.of(nnx.state(Strange()))

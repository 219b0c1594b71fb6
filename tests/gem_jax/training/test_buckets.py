"""Dense parameters in buckets: nothing is lost, moved or put into the wrong bucket; by name they come back."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from gem_jax.models import GemConfig
from gem_jax.nn.initializers import ZEROS, key_of
from gem_jax.nn.parameters import parameter
from gem_jax.precision.policy import Policy
from gem_jax.training.buckets import Buckets, unit_of
from tests.gem_jax.models.batches import FULL

GEM = GemConfig(embedding_dim=8, num_layers=2, fmb_tokens=4, lcb_tokens=4, rank=4, fmb_hidden=(16,), head_hidden=16)


def abstract_state() -> nnx.State:
    return nnx.state(nnx.eval_shape(lambda: GEM.build(FULL, policy=Policy(), rngs=nnx.Rngs(0))))


@pytest.fixture(scope="module")
def numbered() -> nnx.State:
    """A GEM's state in which every single parameter has a value of its own."""
    abstract = abstract_state()
    leaves, treedef = jax.tree.flatten(abstract)
    ends = np.cumsum([leaf.size for leaf in leaves])
    assert ends[-1] < 2**24  # each number is exact in float32
    values = [
        jnp.arange(e - leaf.size, e, dtype=jnp.float32).reshape(leaf.shape)
        for e, leaf in zip(ends, leaves, strict=True)
    ]
    return jax.tree.unflatten(treedef, values)


def test_unflatten_is_the_inverse_of_flatten(numbered):
    buckets = Buckets.of(numbered)
    flat = buckets.flatten(numbered)
    back = buckets.unflatten(flat)
    assert jax.tree.structure(back) == jax.tree.structure(numbered)
    jax.tree.map(np.testing.assert_array_equal, back, numbered)
    again = buckets.flatten(back)
    assert again.keys() == flat.keys()
    for name in flat:
        np.testing.assert_array_equal(again[name], flat[name])


def path_name(path) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/").removesuffix("/value")


def test_each_bucket_holds_its_unit_and_kind_in_the_order_of_the_leaves(numbered):
    buckets = Buckets.of(numbered)
    vectors = buckets.flatten(numbered)
    variables = jax.tree_util.tree_flatten_with_path(numbered, is_leaf=lambda x: isinstance(x, nnx.Variable))[0]
    expected: dict[str, list] = {}
    for path, variable in variables:
        parts = path_name(path).split("/")
        unit = "/".join(parts[:2]) if parts[1:] and parts[1].isdecimal() else parts[0]
        kind = "decay" if variable.get_metadata()["decay"] else "no_decay"
        expected.setdefault(f"{unit}:{kind}", []).extend(np.asarray(variable.get_value()).ravel())
    assert vectors.keys() == expected.keys() == buckets.buckets.keys()
    for name, vector in vectors.items():
        assert vector.ndim == 1 and vector.dtype == jnp.float32
        size = len(expected[name])
        np.testing.assert_array_equal(vector[:size], expected[name])
        assert len(vector) % 1024 == 0 and len(vector) < size + 1024 and not np.any(vector[size:])
        bucket = buckets.buckets[name]
        assert (bucket.size, bucket.decay, bucket.exact) == (len(vector), ":decay" in name, ":decay" not in name)
    assert {"layers/0:decay", "layers/1:decay", "layers/0:no_decay", "tokens:decay"} <= vectors.keys()


def test_by_name_they_are_the_models_arrays(numbered):
    buckets = Buckets.of(numbered)
    named = buckets.named(buckets.flatten(numbered))
    paths = {path_name(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(numbered)[0]}
    assert named.keys() == paths.keys()
    for path, array in paths.items():
        np.testing.assert_array_equal(named[path], array)
    vectors = buckets.from_named(named)
    jax.tree.map(np.testing.assert_array_equal, vectors, buckets.flatten(numbered))


def test_buckets_of_abstract_and_real_states_agree(numbered):
    ours, theirs = Buckets.of(numbered), Buckets.of(abstract_state())
    assert (ours.members, ours.buckets) == (theirs.members, theirs.buckets)
    assert ours.num_parameters == sum(x.size for x in jax.tree.leaves(numbered))
    assert ours.num_stored == sum(len(v) for v in ours.flatten(numbered).values()) >= ours.num_parameters
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a.shape, b.shape), ours.abstract(), numbered)


@pytest.mark.parametrize(("num_shards", "multiple"), [(1, 1024), (8, 1024), (6, 3072)])
def test_any_number_of_devices_can_cut_the_vectors(numbered, num_shards, multiple):
    flat = Buckets.of(numbered, num_shards).flatten(numbered)
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


class Strange(nnx.Module):
    """Parameters of every kind, and one more."""

    def __init__(self, *, with_mystery: bool):
        self.usual = parameter(ZEROS, (3,), decay=True)
        self.exact = parameter(ZEROS, (3,), decay=True, exact=True)
        self.norm = parameter(ZEROS, (3,), decay=False)
        self.coarse = parameter(ZEROS, (3,), decay=False, exact=False)
        self.adapter = parameter(ZEROS, (3,), decay=True, group="adapter")
        self.mystery = nnx.Param(jnp.zeros(3)) if with_mystery else None


def test_what_is_treated_unlike_the_others_has_a_bucket_of_its_own():
    buckets = Buckets.of(nnx.state(Strange(with_mystery=False)))
    assert {member.path: member.bucket for member in buckets.members} == {
        "usual": "usual:decay",
        "exact": "exact:decay:exact",
        "norm": "norm:no_decay",
        "coarse": "coarse:no_decay:inexact",
        "adapter": "adapter:decay:adapter",
    }
    assert buckets.buckets["adapter:decay:adapter"].group == "adapter"


def test_a_parameter_without_metadata_is_named():
    with pytest.raises(AssertionError, match="parameter 'mystery' was not made by nn.parameters.parameter"):
        Buckets.of(nnx.state(Strange(with_mystery=True)))


def test_a_new_bucket_is_its_parameters_draws_whatever_part_is_asked_for():
    """A share of any device is a part of the whole, and a parameter's numbers depend on its name and the seed alone."""
    buckets = Buckets.of(abstract_state(), num_shards=3)
    for name, bucket in buckets.buckets.items():
        whole = buckets.draw(7, name, 0, bucket.size)
        ends = np.linspace(0, bucket.size, 4).astype(int)
        parts = [buckets.draw(7, name, int(start), int(stop)) for start, stop in zip(ends[:-1], ends[1:], strict=True)]
        np.testing.assert_array_equal(np.concatenate(parts), whole)
        members = [m for m in buckets.members if m.bucket == name]
        for m in members:
            size = int(np.prod(m.shape))
            expected = m.init.draw(key_of(7, m.path), 0, size)
            np.testing.assert_array_equal(whole[m.start : m.start + size], expected)
        assert not whole[sum(int(np.prod(m.shape)) for m in members) :].any()

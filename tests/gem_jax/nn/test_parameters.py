"""Names of places, and what a parameter says of itself."""

import pytest

from gem_jax.nn.initializers import ZEROS
from gem_jax.nn.parameters import flattened, joined, numbered, pairs, parameter


def test_names_of_flattened_blocks():
    assert joined(("a", "b"), ("x", "y", "z")) == ("a/x", "a/y", "a/z", "b/x", "b/y", "b/z")
    assert joined(("a",)) == ("a",) and joined() == ("",)
    assert numbered("token", 3) == ("token0", "token1", "token2")
    assert flattened(("a", "b"), 2) == ("a/0", "a/1", "b/0", "b/1")


def test_a_pair_has_one_name_whichever_comes_first():
    assert pairs(("b", "a", "c")) == ("a*b", "b*c", "a*c")
    assert set(pairs(("c", "b", "a"))) == set(pairs(("b", "a", "c")))


def test_parameters_carry_their_metadata():
    p = parameter(ZEROS, (2, 3), decay=True, axes=(("a", "b"), None))
    assert (p.decay, p.exact, p.group, p.axes) == (True, False, "dense", (("a", "b"), None))
    p = parameter(ZEROS, (2,), decay=False, group="adapter")
    assert (p.decay, p.exact, p.group, p.axes) == (False, True, "adapter", (None,))
    assert parameter(ZEROS, (2,), decay=True, exact=True).exact


@pytest.mark.parametrize("axes", [(("a", "b"),), (("a", "b", "c"), None), (("a", "a"), None)])
def test_names_fit_the_axis_and_stand_once(axes):
    with pytest.raises(AssertionError):
        parameter(ZEROS, (2, 3), decay=True, axes=axes)

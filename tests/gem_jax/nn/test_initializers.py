"""What parameters start from: distributions against scipy's and jax's, and any part of a draw against the whole."""

import jax
import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from gem_jax.nn.initializers import (
    BLOCK,
    ONES,
    ZEROS,
    constant,
    he_normal,
    key_of,
    lecun_normal,
    normal,
    xavier_uniform,
)

NUMBERS = 3 * BLOCK + 17


@pytest.mark.parametrize(
    ("init", "reference"),
    [
        (normal(0.3), scipy.stats.norm(scale=0.3)),
        (lecun_normal(64), scipy.stats.truncnorm(-2, 2, scale=64**-0.5 / 0.87962566)),
        (he_normal(64), scipy.stats.truncnorm(-2, 2, scale=(2 / 64) ** 0.5 / 0.87962566)),
        (xavier_uniform(64, 32), scipy.stats.uniform(-((6 / 96) ** 0.5), 2 * (6 / 96) ** 0.5)),
    ],
)
def test_distributions(init, reference):
    numbers = init.draw(key_of(0, "layers/0/kernel"), 0, NUMBERS)
    assert numbers.dtype == np.float32 and scipy.stats.kstest(numbers, reference.cdf).pvalue > 0.01
    assert abs(np.corrcoef(numbers[1:], numbers[:-1])[0, 1]) < 4 / NUMBERS**0.5
    low, high = reference.support()
    assert (numbers >= low - 1e-6).all() and (numbers <= high + 1e-6).all()


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (lecun_normal(48), jax.nn.initializers.lecun_normal()),
        (he_normal(48), jax.nn.initializers.he_normal()),
        (xavier_uniform(48, 512), jax.nn.initializers.xavier_uniform()),
    ],
)
def test_the_same_distributions_as_jax(ours, theirs):
    a, b = ours.draw(1, 0, 48 * 512), np.asarray(theirs(jax.random.key(0), (48, 512))).ravel()
    assert scipy.stats.ks_2samp(a, b).pvalue > 0.01
    np.testing.assert_allclose(np.abs(a).max(), np.abs(b).max(), rtol=1e-3)


@given(ends=st.lists(st.integers(0, NUMBERS), min_size=2, max_size=2).map(sorted))
@settings(max_examples=20, deadline=None)
def test_a_part_of_a_draw_is_a_part_of_the_whole(ends):
    start, stop = ends
    for init in (lecun_normal(8), constant((0.0, 0.0, 2.0))):
        np.testing.assert_array_equal(init.draw(5, start, stop), init.draw(5, 0, NUMBERS)[start:stop])


def test_seeds_and_names_have_draws_of_their_own():
    keys = [key_of(seed, name) for seed in (0, 1) for name in ("a", "b")]
    draws = np.concatenate([normal(1.0).draw(key, 0, 100) for key in keys])
    assert len(np.unique(draws)) == 400
    np.testing.assert_array_equal(normal(1.0).draw(keys[0], 0, 100), draws[:100])


def test_constants():
    assert not ZEROS.draw(0, 3, 9).any() and (ONES.draw(0, 0, 4) == 1).all()
    np.testing.assert_array_equal(constant((0.0, 2.0)).draw(0, 1, 4), [2.0, 0.0, 2.0])

"""The default config learns what the stream has to teach, and what it learns beyond simpler models is in the histories.

`pytest -m slow -s tests/test_learning.py` prints the figures.
"""

import pathlib
import time

import pytest
from rich.console import Console

from gem_jax.config import load
from gem_jax.evaluation.metrics import share_closed
from gem_jax.train import train

CONFIGS = pathlib.Path(__file__).parents[1] / "configs"

SEED_SPREAD = 0.09
"""Highest less lowest share closed by gem_debug over its seeds on one H200: 0.72 to 0.81."""


@pytest.fixture(scope="module")
def closed(tmp_path_factory) -> dict[str, float]:
    """Config -> share of the distance from NE 1 to the Bayes NE of clicks that it closes, trained as configured."""
    shares = {}
    for path in ("gem_debug.py", "gem_debug.py:no_sequences", "gem_debug.py:logistic_regression"):
        config = load(f"{CONFIGS}/{path}", ["mesh.replica=1", "mesh.shard=1"]).replace(
            runs_dir=str(tmp_path_factory.mktemp("runs"))
        )
        start = time.perf_counter()
        click = train(config, console=Console(quiet=True)).summary["eval"]["click"]
        seconds = time.perf_counter() - start
        shares[config.name] = share_closed(click["ne"], click["bayes_ne"])
        print(
            f"\n{config.name}: NE {click['ne']:.4f}, Bayes NE {click['bayes_ne']:.4f}, closed {shares[config.name]:.3f}, "
            f"AUC {click['auc']:.4f}, calibration {click['calibration']:.3f}, {seconds:.0f} s"
        )
    return shares


@pytest.mark.slow
def test_gem_closes_most_of_the_distance(closed):
    """The lowest seed, 0.72, less most of a seed spread, for seeds and hardware not tried."""
    assert closed["gem_debug"] >= 0.65


@pytest.mark.slow
@pytest.mark.parametrize("simpler", ["no_sequences", "logistic_regression"])
def test_gem_is_better_than_models_without_histories(closed, simpler):
    """Two seed spreads: were the two equally good, seeds would have to differ by twice what they do to pass."""
    assert closed["gem_debug"] > closed[simpler] + 2 * SEED_SPREAD


@pytest.mark.slow
def test_models_without_histories_learn_too(closed):
    """Else the comparison would be with a broken model: each finds a good part of what single features tell."""
    assert min(closed.values()) > 0.2

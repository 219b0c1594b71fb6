"""When a save is due."""

from gem_jax.checkpoint.cadence import Cadence
from gem_jax.checkpoint.config import FIRST_MINUTES, CheckpointConfig


def due_at(cadence: Cadence, examples=lambda s: 0, until_s: int = 3600) -> list[int]:
    """Seconds at which a loop that asks each second saves."""
    found = []
    for now_s in range(100, 100 + until_s):
        if cadence.is_due(float(now_s), examples(now_s)):
            cadence.saved(float(now_s), examples(now_s))
            found.append(now_s - 100)
    return found


def test_the_first_within_the_first_minutes_then_by_minutes():
    first = int(60 * FIRST_MINUTES)
    assert due_at(Cadence(CheckpointConfig(minutes=10.0), 100.0, 0)) == [first + 600 * i for i in range(6)]


def test_more_often_than_the_first_minutes():
    assert due_at(Cadence(CheckpointConfig(minutes=0.5), 100.0, 0), until_s=100) == [30, 60, 90]


def test_by_examples_at_each_multiple_whatever_the_step():
    """Steps of 7 examples: after those that pass 20, 40, 60; a continued run saves at the same ones."""
    cadence = Cadence(CheckpointConfig(examples=20), 100.0, 0)
    assert due_at(cadence, lambda s: 7 * (s - 100), until_s=10) == [3, 6, 9]
    continued = Cadence(CheckpointConfig(examples=20), 100.0, 28)
    assert due_at(continued, lambda s: 28 + 7 * (s - 100), until_s=6) == [2, 5]


def test_asking_changes_nothing():
    cadence = Cadence(CheckpointConfig(minutes=1.0), 0.0, 0)
    assert [cadence.is_due(61.0, 0) for _ in range(3)] == [True] * 3

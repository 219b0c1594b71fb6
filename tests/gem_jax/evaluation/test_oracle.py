"""The oracle's NE against its formula, chunk by chunk; other sources have none."""

import numpy as np
import pytest

from gem_jax.data.columns import MemorySource
from gem_jax.evaluation import oracle as oracle_module
from gem_jax.evaluation.oracle import WithOracle, oracle_ne
from tests.gem_jax.data.random_examples import SCHEMA, random_examples


class Knowing(MemorySource):
    """A source whose oracle knows each label to within a known doubt."""

    def oracle(self, indices: np.ndarray) -> np.ndarray:
        label = np.nan_to_num(self.examples.labels[indices, 0])
        return np.where(label > 0, 0.7, 0.2).astype(np.float32)


@pytest.mark.parametrize(("limit", "used"), [(None, 40), (17, 17), (100, 40)])
def test_normalised_entropy_of_the_oracle(limit, used, monkeypatch):
    monkeypatch.setattr(oracle_module, "CHUNK", 7)
    examples = random_examples(40)
    source = Knowing(schema=SCHEMA, examples=examples)
    y, w = examples.labels[:used, 0].astype(np.float64), examples.weight[:used].astype(np.float64)
    counts = ~np.isnan(y) & (w > 0)
    y, w = y[counts], w[counts]
    p, base = np.where(y > 0, np.float32(0.7), np.float32(0.2)).astype(np.float64), np.average(y, weights=w)
    loss = np.average(-y * np.log(p) - (1 - y) * np.log(1 - p), weights=w)
    entropy = -base * np.log(base) - (1 - base) * np.log(1 - base)
    (found,) = oracle_ne(source, limit).items()
    assert found == (SCHEMA.tasks[0].name, pytest.approx(loss / entropy, rel=1e-9))


def test_a_source_without_an_oracle():
    source = MemorySource(schema=SCHEMA, examples=random_examples(5))
    assert not isinstance(source, WithOracle) and oracle_ne(source) == {}

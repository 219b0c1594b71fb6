"""What no history tells: how well one predicts who also knows what is hidden from every model. Synthetic data know such a one."""

from typing import Protocol, runtime_checkable

import numpy as np

from gem_jax.data.source import Source
from gem_jax.evaluation.metrics import ne
from gem_jax.evaluation.scores import Sums

CHUNK = 8192
"""Examples read at a time."""


@runtime_checkable
class WithOracle(Source, Protocol):
    """A source that knows what is hidden from its examples."""

    def oracle(self, indices: np.ndarray) -> np.ndarray:
        """Probability that the first task's label is 1 for one who knows the hidden causes too, float32 [n]."""
        ...


def oracle_ne(source: Source, limit: int | None = None) -> dict[str, float]:
    """First task -> NE of the oracle's probabilities on the first `limit` labels; nothing where the source has no oracle.

    Comparable with the NE and the Bayes NE of these examples: the luck of the labels is the same in all three.
    """
    if not isinstance(source, WithOracle):
        return {}
    stop = min(limit or len(source), len(source))
    chunks = [np.arange(first, min(first + CHUNK, stop)) for first in range(0, stop, CHUNK)]
    p = np.clip(np.concatenate([source.oracle(chunk) for chunk in chunks]).astype(np.float64), 1e-12, 1 - 1e-12)
    columns = [(examples.labels[:, 0], examples.weight) for examples in map(source.read, chunks)]
    labels, weight = (np.concatenate(column) for column in zip(*columns, strict=True))
    counts = ~np.isnan(labels) & (weight > 0)
    found = ne(Sums.of((np.log(p) - np.log1p(-p))[counts], labels[counts], weight[counts]))
    return {} if found is None else {source.schema.tasks[0].name: float(found)}

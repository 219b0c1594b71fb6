"""Scored batches for the tests of metrics, and the host columns of a batch in one place."""

import numpy as np

from gem_jax.data.batch import HostColumns
from gem_jax.data.schema import Schema, Task

DOMAINS = ("feed", "stories", "reels", "search", "empty")
SCHEMA = Schema(tables=(), categoricals=(), tasks=(Task(name="click"), Task(name="buy")), domains=DOMAINS)

type Scored = tuple[np.ndarray, HostColumns]


def host_columns(labels: np.ndarray, **columns) -> HostColumns:
    """The host columns of a batch of one device with labels [B, N]; what is not given is plain: weight 1, one user each."""
    size = len(labels)
    plain = dict(
        domain=np.zeros(size, np.int32),
        weight=np.ones(size, np.float32),
        user=np.arange(size),
        true_probability=np.full(labels.shape, np.nan, np.float32),
        example_id=np.arange(size),
        time_s=np.full(size, -1),
        num_examples=size,
        slots=np.arange(size),
        truncated={},
        position=size,
        imbalance=1.0,
    )
    return HostColumns(labels=labels, **(plain | columns))


def random_batch(seed: int, size: int, *, num_users: int = 60, weighted: bool = True) -> Scored:
    """Scores with ties, a quarter of the labels unobserved, a tenth of the slots empty and poisoned with NaN."""
    rng = np.random.default_rng(seed)
    logits = np.round(rng.normal(-1.5, 1.5, (size, 2)), 1).astype(np.float32)
    true_probability = 1 / (1 + np.exp(-0.7 * logits.astype(np.float64) + 0.3))
    labels = (rng.random((size, 2)) < true_probability).astype(np.float32)
    labels[rng.random((size, 2)) < 0.25] = np.nan
    weight = rng.choice([0.25, 1.0, 3.7], size).astype(np.float32) if weighted else np.ones(size, np.float32)
    empty = rng.random(size) < 0.1
    weight[empty] = 0
    logits[empty] = np.nan
    logits[np.isnan(labels)] = np.nan
    true_probability[empty] = np.nan
    host = host_columns(
        labels,
        domain=rng.integers(0, len(DOMAINS) - 1, size).astype(np.int32),
        weight=weight,
        user=rng.integers(0, num_users, size).astype(np.int64) * 2**40,
        true_probability=true_probability.astype(np.float32),
        num_examples=int((~empty).sum()),
    )
    return logits, host

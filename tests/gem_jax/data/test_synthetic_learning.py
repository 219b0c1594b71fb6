"""What can be learned of the synthetic stream, and from what.

`pytest -m slow -s tests/gem_jax/data/test_synthetic_learning.py` prints the figures.
"""

import numpy as np
import pytest
from scipy import sparse
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import OneHotEncoder

from gem_jax.data.batch import Examples
from gem_jax.data.synthetic import SyntheticConfig, SyntheticSource
from gem_jax.data.synthetic.population import NUM_CATEGORIES


def normalized_entropy(y: np.ndarray, p: np.ndarray) -> float:
    """Log loss over the entropy of the labels' own base rate."""
    base = y.mean()
    return float(_log_loss(y, p) / _log_loss(y, np.full(len(y), base)))


def _log_loss(y: np.ndarray, p: np.ndarray) -> float:
    return -np.mean(y * np.log(p) + (1 - y) * np.log1p(-p))


def _newest(history, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Row of each example's newest events [n, count], newest first, and whether they exist."""
    back = np.arange(count)
    exists = back < history.lengths[:, None]
    return np.where(exists, np.cumsum(history.lengths)[:, None] - 1 - back, 0), exists


def _history_columns(examples: Examples) -> np.ndarray:
    """Counts and shares that a practitioner would make of the histories, float64 [n, 11]."""
    category, ad, advertiser = (examples.ids[name] for name in ("category", "ad", "advertiser"))
    columns = []
    organic = examples.sequences["organic"]
    for count in (4, 8, 32):
        rows, exists = _newest(organic, count)
        weight = exists * np.array([1.0, 2.0, 4.0])[organic.ids["action"][rows]] * 0.85 ** np.arange(count)
        same = organic.ids["topic"][rows] == category
        columns += [(exists & same).sum(axis=1), (weight * same).sum(axis=1) / np.maximum(weight.sum(axis=1), 1e-9)]
    shown = examples.sequences["impressions"]
    rows, exists = _newest(shown, 8)
    columns += [(exists & (shown.ids["ad"][rows] == ad)).sum(axis=1)]
    columns += [(exists & (shown.ids["advertiser"][rows] == advertiser)).sum(axis=1)]
    rows, exists = _newest(shown, 24)
    same, clicked = exists & (shown.ids["category"][rows] == category), exists & (shown.ids["action"][rows] > 0)
    columns += [same.sum(axis=1), clicked.sum(axis=1), (same & clicked).sum(axis=1)]
    return np.stack(columns, axis=1)


def _features(source: SyntheticSource) -> dict[str, np.ndarray]:
    """Everything a tabular model may see, of all examples, and the click labels with their true probability."""
    parts = [_part(source.read(np.arange(k, min(k + 2_048, len(source))))) for k in range(0, len(source), 2_048)]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _part(examples: Examples) -> dict[str, np.ndarray]:
    names = [name for name, ids in examples.ids.items() if name != "user" and ids.shape[1] == 1]
    stated = (examples.ids["interests"][:, :, None] == np.arange(NUM_CATEGORIES)).any(axis=1)
    return {
        "ids": np.concatenate([examples.ids[name] for name in names], axis=1),
        "few": np.concatenate([examples.ids[name] for name in names if name != "ad"], axis=1),
        "numbers": np.c_[examples.dense, examples.vectors["image"], stated],
        "history": _history_columns(examples),
        "y": examples.labels[:, 0],
        "truth": examples.true_probability[:, 0].astype(np.float64),
    }


@pytest.mark.slow
def test_what_simple_models_learn():
    """Logistic regression < trees < trees with history counts < truth, in the proportions the package promises."""
    splits = SyntheticConfig(train_examples=300_000, test_examples=50_000).build()
    train, test = _features(splits.train), _features(splits.test)
    encoder = OneHotEncoder(handle_unknown="ignore").fit(train["ids"])
    models = {
        "logistic": (
            LogisticRegression(C=0.3, max_iter=300),
            lambda x: sparse.hstack([encoder.transform(x["ids"]), x["numbers"]]).tocsr(),
        ),
        "trees": (_trees(train["few"]), lambda x: np.c_[x["few"], x["numbers"]]),
        "trees with history": (_trees(train["few"]), lambda x: np.c_[x["few"], x["numbers"], x["history"]]),
    }
    bayes = normalized_entropy(test["y"], test["truth"])
    closed = {}
    for name, (model, columns) in models.items():
        ne = normalized_entropy(test["y"], model.fit(columns(train), train["y"]).predict_proba(columns(test))[:, 1])
        closed[name] = (1 - ne) / (1 - bayes)
        print(f"{name}: NE {ne:.4f}, closes {closed[name]:.3f} of the distance from 1 to {bayes:.4f}")
    assert 0.75 < bayes < 0.82
    assert 0.25 < closed["logistic"] < 0.45
    assert closed["logistic"] + 0.05 < closed["trees"] < 0.55
    assert closed["trees with history"] > 0.8


def _trees(few: np.ndarray) -> HistGradientBoostingClassifier:
    return HistGradientBoostingClassifier(
        max_iter=160,
        learning_rate=0.1,
        max_leaf_nodes=16,
        min_samples_leaf=100,
        l2_regularization=5.0,
        categorical_features=np.arange(few.shape[1]),
        early_stopping=True,
        random_state=0,
    )

"""How much each kind of knowledge is worth on the stream: boosted trees on features that hold more and more of it.

    python -m gem_jax.data.synthetic.ladder [--examples 60000] [--seed 0] [--intensity 1] [--json ladder.json]

The trees learn true probabilities, not labels, so what a rung lacks is knowledge and not luck. Half of the users teach and the
other half test. *closed* is the share of the way from NE 1 to the Bayes NE (`bayes`: the exact filter over the whole past); the
oracle, who also knows the hidden intent, stands beyond 1.

Shape letters: n examples, E events of their histories.
"""

import argparse
import json
from pathlib import Path

import numpy as np

from gem_jax.data.synthetic.ladder_features import Rungs, features
from gem_jax.data.synthetic.source import Stream, SyntheticConfig, SyntheticSource
from gem_jax.errors import UserError

ACTIVE_USERS = 4_000
CHUNK = 4_096


def main(argv: list[str] | None = None) -> None:
    """Prints the table of rungs; writes it as JSON if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=60_000, help="examples that teach and test")
    parser.add_argument("--seed", type=int, default=0, help="of the world")
    parser.add_argument("--intensity", type=int, default=1, help="multiplies organic events; 12: up to 10,800 of them")
    parser.add_argument("--json", type=Path, help="file to write the table to")
    arguments = parser.parse_args(argv)
    rows = ladder(arguments.examples, arguments.seed, arguments.intensity)
    for row in rows:
        print(f"{row['rung']:<64} NE {row['ne']:.4f}  closed {row['closed']:.3f}")
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")


def ladder(examples: int, seed: int, intensity: int = 1) -> list[dict]:
    """Rows `{"rung", "ne", "closed"}` of the ladder, each with more knowledge than the one before.

    Raises:
      UserError: scikit-learn is missing.
    """
    columns, rungs = _examples(examples, seed, intensity)
    truth, oracle = columns.pop("truth"), columns.pop("oracle")
    test = columns.pop("user") % 2 == 1
    base = _entropy(truth[test].mean(keepdims=True))[0]
    bayes = float(_entropy(truth[test]).mean() / base)
    rows = []
    for name, keys in rungs.items():
        x = np.stack([columns[key] for key in keys], axis=1)
        predicted = _trees(x[~test], truth[~test], x[test])
        ne = float(_cross_entropy(truth[test], predicted).mean() / base)
        rows.append({"rung": name, "ne": ne, "closed": (1 - ne) / (1 - bayes)})
    oracle_ne = float(_entropy(oracle[test]).mean() / base)
    rows.append({"rung": "Bayes: the exact filter", "ne": bayes, "closed": 1.0})
    rows.append({"rung": "oracle: knows the intent", "ne": oracle_ne, "closed": (1 - oracle_ne) / (1 - bayes)})
    shared = {"seed": seed, "examples": examples, "organic_intensity": intensity}
    return [row | shared | {"base_rate": float(truth[test].mean())} for row in rows]


def _examples(examples: int, seed: int, intensity: int) -> tuple[dict[str, np.ndarray], Rungs]:
    config = SyntheticConfig(
        seed=seed,
        train_examples=2 * examples,
        test_examples=1,
        active_users=ACTIVE_USERS,
        organic_max_len=1_000 * intensity,
        organic_intensity=intensity,
        impressions_max_len=1_000,
    )
    source = SyntheticSource(Stream(config), first=0, length=config.train_examples)
    chosen = np.sort(np.random.default_rng(seed).choice(len(source), examples, replace=False))
    parts = []
    for chunk in np.array_split(chosen, -(-examples * intensity // CHUNK)):
        shown, rungs = features(source.read(chunk), source.stream.laws)
        parts.append(shown | {"oracle": source.oracle(chunk)})
    return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}, rungs


def _trees(x: np.ndarray, y: np.ndarray, x_test: np.ndarray) -> np.ndarray:
    try:
        from sklearn.ensemble import HistGradientBoostingRegressor
    except ImportError as e:
        raise UserError("the ladder needs scikit-learn: pip install scikit-learn") from e
    trees = HistGradientBoostingRegressor(
        loss="poisson",
        max_iter=150,
        learning_rate=0.1,
        max_leaf_nodes=24,
        min_samples_leaf=100,
        l2_regularization=1.0,
        random_state=0,
    )
    return np.clip(trees.fit(x, y).predict(x_test), 1e-6, 0.999)


def _cross_entropy(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    return -(p * np.log(q) + (1 - p) * np.log1p(-q))


def _entropy(p: np.ndarray) -> np.ndarray:
    return _cross_entropy(p, p)


if __name__ == "__main__":
    main()

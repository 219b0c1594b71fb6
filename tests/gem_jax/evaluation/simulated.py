"""Clicks of users who differ, with a truth that is known, and two models that half know it."""

import numpy as np

from gem_jax.evaluation.scores import Scores


def draw(rng: np.random.Generator, num_users: int, rate: float = -1.5, width: float = 1.0) -> tuple[Scores, Scores]:
    """A test set of two to twelve examples a user, scored by a model and by one that hears more noise.

    Args:
      rng: decides everything.
      num_users: clusters.
      rate: the mean logit of the truth.
      width: standard deviation of what a user's examples have in common, in the truth and in what the models miss of it.
    """
    user = np.repeat(np.arange(num_users), rng.integers(2, 13, num_users))
    n = len(user)
    of_user, missed = width * rng.normal(size=(2, num_users))[:, user]
    truth = rate + of_user + rng.normal(size=n)
    probability = 1 / (1 + np.exp(-truth))
    noise, more = rng.normal(size=(2, n))
    shared = dict(
        labels=(rng.random(n) < probability).astype(np.float32),
        weight=rng.choice([0.5, 1.0, 3.0], n).astype(np.float32),
        domain=np.zeros(n, np.int32),
        user=user * 2**40,
        example_id=rng.permutation(n),
        true_probability=probability.astype(np.float32),
    )
    logits = truth - missed / 2 + noise / 2
    return Scores(logits=logits.astype(np.float32), **shared), Scores(
        logits=(logits + more / 2).astype(np.float32), **shared
    )


def reweighted(scores: Scores, times: np.ndarray) -> Scores:
    """The examples with weights multiplied by `times` [n], without those whose weight becomes 0."""
    columns = {
        name: getattr(scores, name) for name in ("logits", "labels", "domain", "user", "example_id", "true_probability")
    }
    return Scores(weight=scores.weight.astype(np.float64) * times, **columns).select(times > 0)

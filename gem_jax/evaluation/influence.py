"""How much each example moves a metric: where standard errors and paired comparisons come from.

The influence of example i on a metric T is w_i dT/dw_i. No metric changes where all weights are scaled, so influences sum to 0.
A bootstrap by user draws each user c a random number of times N_c; to first order the metric then moves by the sum of
(N_c - 1) psi_c, where psi_c is the influence of all of a user's examples together. Its variance is the sum of psi_c^2: the
infinitesimal jackknife (Efron 1982), in closed form what the bootstrap finds by a thousand repetitions. For NE it is the delta
method for a ratio of sums by user, for AUC that of DeLong et al. (1988) by clusters (Obuchowski 1997).

Functions return float64 [n], or None where the metric is undefined. Shape letters: n examples that count.
"""

import numpy as np
from jaxtyping import Float

from gem_jax.evaluation.scores import Scores, log_loss

type Influence = Float[np.ndarray, "n"] | None
"""Of each example; None where the metric is undefined."""


def ne(scores: Scores) -> Influence:
    """On the weighted mean log loss over the entropy of the base rate."""
    if not scores.sums.both_classes:
        return None
    return _normalised(scores, log_loss(np.asarray(scores.logits, np.float64), np.asarray(scores.labels, np.float64)))


def regret_ne(scores: Scores) -> Influence:
    """On the weighted mean divergence from the truth over the entropy of the base rate."""
    if not scores.sums.both_classes or np.isnan(scores.true_probability).any():
        return None
    return _normalised(scores, scores.divergence)


def auc(scores: Scores) -> Influence:
    """On the AUC: how far an example's share of pairs won lies from it, in proportion to its part of its class."""
    if not scores.sums.both_classes:
        return None
    ranking, (positive, negative) = scores.ranking, _class_shares(scores)
    return positive * (ranking.outscores - ranking.auc[0]) + negative * (ranking.outscored - ranking.auc[0])


def gauc(scores: Scores) -> Influence:
    """On the AUC averaged over users: how far the user's AUC lies from it, in proportion to weight.

    What moves a user's own AUC sums to 0 within the user and is left out: users are drawn whole.
    """
    mean = scores.ranking_by_cluster.mean_auc(scores.num_users) if scores.sums.both_classes else None
    if mean is None:
        return None
    ranking = scores.ranking_by_cluster
    takes_part = ~np.isnan(ranking.auc) & (np.arange(len(ranking.auc)) < scores.num_users)
    distance = np.where(takes_part, ranking.auc - mean, 0) / ranking.weight[takes_part].sum()
    return np.asarray(scores.weight, np.float64) * distance[scores.cluster]


def _normalised(scores: Scores, loss: np.ndarray) -> np.ndarray:
    """On the weighted mean of `loss` over the entropy of the base rate."""
    sums = scores.sums
    positive, negative = sums.positive / sums.weight, sums.negative / sums.weight
    slope = np.log(sums.negative / sums.positive)  # of the entropy over the base rate
    share = np.asarray(scores.weight, np.float64) / sums.weight
    y = np.asarray(scores.labels, np.float64)
    mean = (share * loss).sum()
    above_base_rate = y * negative - (1 - y) * positive  # y less the base rate, which may have rounded to 0 or 1
    return share * ((loss - mean) - mean / sums.entropy * slope * above_base_rate) / sums.entropy


def _class_shares(scores: Scores) -> tuple[np.ndarray, np.ndarray]:
    """Each example's share of the weight of the positive and of the negative class."""
    y, w = np.asarray(scores.labels, np.float64), np.asarray(scores.weight, np.float64)
    return w * y / scores.sums.positive, w * (1 - y) / scores.sums.negative

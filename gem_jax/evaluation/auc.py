"""The area under the ROC curve within groups, exact and weighted."""

import numpy as np
from jaxtyping import Float, Num


def grouped_auc(
    scores: Num[np.ndarray, "n"],
    labels: Num[np.ndarray, "n"],
    weight: Num[np.ndarray, "n"],
    group: Num[np.ndarray, "n"],
) -> tuple[Float[np.ndarray, "g"], Float[np.ndarray, "g"]]:
    """The weighted AUC within each group: the chance that a positive outscores a negative, a tie counting one half.

    Args:
      scores: [n], n > 0; only their order matters.
      labels: [n], 0 or 1.
      weight: [n], positive.
      group: [n], which group an example belongs to.

    Returns:
      (auc, weight), float64, one entry a group in ascending order; auc is NaN in groups of one class.
    """
    order = np.lexsort((scores, group))
    scores, group = scores[order], group[order]
    labels, weight = labels[order].astype(np.float64), weight[order].astype(np.float64)

    new_group = np.append(True, group[1:] != group[:-1])
    new_score = new_group | np.append(True, scores[1:] != scores[:-1])
    ties = np.flatnonzero(new_score)  # first example of each run of equal scores within a group
    positive = np.add.reduceat(weight * labels, ties)
    negative = np.add.reduceat(weight * (1 - labels), ties)

    group_of_tie = np.cumsum(new_group[ties]) - 1
    total_positive = np.bincount(group_of_tie, positive)
    total_negative = np.bincount(group_of_tie, negative)
    negative_in_earlier_groups = (np.cumsum(total_negative) - total_negative)[group_of_tie]
    negative_below = np.cumsum(negative) - negative - negative_in_earlier_groups
    won = np.bincount(group_of_tie, positive * (negative_below + negative / 2))

    pairs = total_positive * total_negative
    auc = np.divide(won, pairs, out=np.full(len(pairs), np.nan), where=pairs > 0)
    return auc, total_positive + total_negative

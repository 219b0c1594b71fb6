"""Who outscores whom: the area under the ROC curve within groups, exact and weighted, and each example's part in it."""

import dataclasses

import numpy as np
from jaxtyping import Float, Int, Num


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ranking:
    """Examples ranked within their groups; float64. A tie counts one half.

    Attributes:
      auc: [g], the weighted chance that a positive outscores a negative of its group; NaN in groups of one class.
      weight: [g], of all the group's examples.
      outscores: [n], the share of its group's negative weight that an example outscores.
      outscored: [n], the share of its group's positive weight that outscores it.
    """

    auc: Float[np.ndarray, "g"]
    weight: Float[np.ndarray, "g"]
    outscores: Float[np.ndarray, "n"]
    outscored: Float[np.ndarray, "n"]

    def mean_auc(self, num_groups: int) -> float | None:
        """The AUC of the first groups averaged by weight; None unless at least two of them have both classes."""
        auc, weight = self.auc[:num_groups], self.weight[:num_groups]
        defined = ~np.isnan(auc)
        if np.count_nonzero(defined) < 2:
            return None
        return float(np.average(auc[defined], weights=weight[defined]))


def rank(
    scores: Num[np.ndarray, "n"],
    labels: Num[np.ndarray, "n"],
    weight: Num[np.ndarray, "n"],
    group: Int[np.ndarray, "n"],
) -> Ranking:
    """Ranks examples within groups.

    Each group's weight is first scaled to about 1, by a power of 2. So a heavy group costs the others no digits, and where weights
    are whole numbers every sum is exact; else an AUC is right to about n times float64's 2.2e-16.

    Args:
      scores: [n], n > 0; only their order matters.
      labels: [n], from 0 to 1; between them an example is both positive and negative, in shares.
      weight: [n], positive.
      group: [n], which group an example belongs to: 0 .. g - 1, each with an example.
    """
    y, w = labels.astype(np.float64), weight.astype(np.float64)
    values, place = np.unique(scores, return_inverse=True)
    # A tie is a run of equal scores within a group; ties are in ascending order of group, then of score.
    keys, tie = np.unique(group.astype(np.int64) * len(values) + place, return_inverse=True)
    group_of_tie = keys // len(values)
    first = np.flatnonzero(np.append(True, group_of_tie[1:] != group_of_tie[:-1]))

    positive, negative = np.bincount(tie, w * y), np.bincount(tie, w * (1 - y))
    weight_of_group = np.add.reduceat(positive + negative, first)
    positive, all_positive = _scaled(positive, first, group_of_tie)
    negative, all_negative = _scaled(negative, first, group_of_tie)
    won = _below(negative, first) + negative / 2
    lost_to = _below(positive, first) + positive / 2

    pairs = all_positive * all_negative
    auc = np.add.reduceat(positive * won, first)
    auc = np.divide(auc, pairs, out=np.full_like(pairs, np.nan), where=pairs > 0)
    outscores = _divide(won, all_negative[group_of_tie])
    outscored = 1 - _divide(lost_to, all_positive[group_of_tie])
    return Ranking(auc=auc, weight=weight_of_group, outscores=outscores[tie], outscored=outscored[tie])


def _scaled(mass: np.ndarray, first: np.ndarray, group: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The mass of each tie, scaled by a power of 2 such that its group's is from 1/2 to 1 (or 0), and the group's."""
    total, exponent = np.frexp(np.add.reduceat(mass, first))
    return np.ldexp(mass, -exponent[group]), total


def _below(mass: np.ndarray, first: np.ndarray) -> np.ndarray:
    """The sum of the masses before each one within its group; groups begin at `first`."""
    before = np.append(0.0, mass[:-1])
    before[first[1:]] -= np.add.reduceat(mass, first)[:-1]  # so that the running sum begins each group at 0
    return np.maximum(np.cumsum(before), 0)


def _divide(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """0 where there is nothing to divide."""
    return np.divide(part, whole, out=np.zeros_like(part), where=whole > 0)

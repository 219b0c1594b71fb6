"""What a row learns from its gradient: the rules that the update's backends share."""

from __future__ import annotations

import dataclasses
from typing import Literal

EPS = 1e-8


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rule:
    """A row optimizer; hashable.

    rowwise_adagrad: v += mean(g^2), w -= lr g / (sqrt(v / groups) + eps), one v a row.
    adam: the usual moments (arXiv 1412.6980), two numbers a weight, that decay only when their row is seen.
    sgd: w -= lr g.
    """

    kind: Literal["rowwise_adagrad", "adam", "sgd"] = "rowwise_adagrad"
    """Which rule."""
    l2: float = 0.0
    """l2 * w is added to the gradient of a touched row, once a row."""
    groups: int = 1
    """c of arXiv 2508.03854: how many replica groups average what each learned for itself; row-wise Adagrad only."""
    beta1: float = 0.9
    """Adam's decay of the running mean."""
    beta2: float = 0.999
    """Adam's decay of the running square."""

    @property
    def num_slots(self) -> int:
        """Arrays that it keeps beside the weights."""
        return {"rowwise_adagrad": 1, "adam": 2, "sgd": 0}[self.kind]

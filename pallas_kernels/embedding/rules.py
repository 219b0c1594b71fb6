"""What a row learns from its gradient: the rules that the update's backends share.

Shape letters: Q rows, D columns.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
from jax import Array

EPS = 1e-8

type Kind = Literal["rowwise_adagrad", "adam", "sgd"]
type Per = Literal["row", "number"]
SLOTS: dict[Kind, tuple[Per, ...]] = {"rowwise_adagrad": ("row",), "adam": ("number", "number"), "sgd": ()}


class Step(NamedTuple):
    """What changes from step to step."""

    learning_rate: Any
    """float32 []."""
    count: Any = 0
    """int32 [], steps taken before this one."""
    seed: Any = 0
    """int32 [], of stochastic rounding; another one each step."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rule:
    """A row optimizer; hashable.

    rowwise_adagrad: v += mean(g^2), w -= lr g / (sqrt(v / groups) + eps), one v a row.
    adam: the usual moments (arXiv 1412.6980), two numbers a weight, that decay only when their row is seen.
    sgd: w -= lr g.
    """

    kind: Kind = "rowwise_adagrad"
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
    def slots(self) -> tuple[Per, ...]:
        """What it keeps beside the weights: an array [V] ("row") or [V, D] ("number") each."""
        return SLOTS[self.kind]

    def corrections(self, step: Step) -> tuple[Array, Array]:
        """Adam's 1 / (1 - beta^t) of both moments, at step t = count + 1."""
        t = jnp.asarray(step.count, jnp.float32) + 1
        first, second = (-1 / jnp.expm1(t * jnp.log(jnp.float32(beta))) for beta in (self.beta1, self.beta2))
        return first, second

    def learn(self, w: Array, slots: tuple[Array, ...], g: Array, step: Step) -> tuple[Array, tuple[Array, ...]]:
        """New rows [Q, D] and slots [Q] or [Q, D] from the old ones and the summed gradients."""
        if self.l2:
            g = g + self.l2 * w
        if self.kind == "sgd":
            return w - step.learning_rate * g, ()
        if self.kind == "rowwise_adagrad":
            v = slots[0] + jnp.square(g).mean(axis=1)
            return w - step.learning_rate * (g / (jnp.sqrt(v / self.groups) + EPS)[:, None]), (v,)
        mean = self.beta1 * slots[0] + (1 - self.beta1) * g
        square = self.beta2 * slots[1] + (1 - self.beta2) * jnp.square(g)
        first, second = self.corrections(step)
        return w - step.learning_rate * (mean * first / (jnp.sqrt(square * second) + EPS)), (mean, square)

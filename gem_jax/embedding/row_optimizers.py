"""Optimizers of embedding tables: only rows that a batch looked up are read or written, in place where buffers are donated.

The gradient of a row is the *sum* over all its lookups. Rows that no lookup touched keep weight and slots to the bit, Adam's
moments included (as in FBGEMM's fused Adam: a moment decays only when its row is seen).

Shape letters: Q distinct rows, D columns.
"""

import dataclasses
from collections.abc import Callable
from typing import Literal, Protocol, runtime_checkable

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

TableOptimizer = Literal["rowwise_adagrad", "adam", "sgd"]
"""The names that a config may give."""

EPS = 1e-8


@dataclasses.dataclass(frozen=True, kw_only=True)
class Slot:
    """What an optimizer keeps beside the weights.

    Attributes:
      name: of the array in a table's state.
      per: "number" where every weight has its own (float32 [L, D]), "row" where a row has one ([L]).
      initial: the value before the first step.
    """

    name: str
    per: Literal["number", "row"]
    initial: float = 0.0


def mean_of_columns(values: Float[Array, "Q D"]) -> Float[Array, " Q"]:
    """Of rows that lie whole on a device."""
    return values.mean(axis=1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepContext:
    """What a rule is told of the step beside the gradients.

    Attributes:
      learning_rate: of this step.
      step: steps taken before this one.
      groups: c of the momentum scaling (arXiv 2508.03854): how many replica groups average what they learned each for itself.
      row_mean: the mean over a row's columns [Q, D] -> [Q]; of all columns, where a device holds some.
    """

    learning_rate: Float[Array, ""] | float
    step: Int[Array, ""] | int = 0
    groups: int = 1
    row_mean: Callable[[Array], Array] = mean_of_columns


type Slots = dict[str, Array]
"""Slot name -> float32 [Q, D] or [Q] of the touched rows."""


@runtime_checkable
class RowOptimizer(Protocol):
    """Which slots a row has, and how a gradient changes it."""

    @property
    def l2(self) -> float:
        """The penalty `l2 * w` that is added to the gradient of a touched row, once per row (by the caller of `rule`)."""
        ...

    @property
    def slots(self) -> tuple[Slot, ...]:
        """The slots, in the order of the state."""
        ...

    def rule(self, old: Slots, grads: Float[Array, "Q D"], context: StepContext) -> tuple[Float[Array, "Q D"], Slots]:
        """(what is added to the weights, new slots) of the touched rows, from their old slots and summed gradients."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class RowwiseAdagrad:
    """v += mean(g^2), w -= lr g / (sqrt(v / groups) + eps): TorchRec's; `groups`: arXiv 2508.03854.

    Attributes:
      l2: penalty on touched rows.
      initial_accumulator: what v starts from.
    """

    l2: float = 0.0
    initial_accumulator: float = 0.0

    @property
    def slots(self) -> tuple[Slot, ...]:
        """accumulator: v, one number a row."""
        return (Slot(name="accumulator", per="row", initial=self.initial_accumulator),)

    def rule(self, old: Slots, grads: Float[Array, "Q D"], context: StepContext) -> tuple[Float[Array, "Q D"], Slots]:
        """See the class."""
        new = old["accumulator"] + context.row_mean(jnp.square(grads))
        change = grads / (jnp.sqrt(new / context.groups) + EPS)[:, None]
        return -context.learning_rate * change, {"accumulator": new}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Adam:
    """The usual moments (arXiv 1412.6980), with the bias correction of the run's step.

    Attributes:
      l2: penalty on touched rows.
      beta1: decay of the gradient's running mean.
      beta2: decay of the squared gradient's running mean.
    """

    l2: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.999

    @property
    def slots(self) -> tuple[Slot, ...]:
        """mean and square: the moments, one of each a number."""
        return Slot(name="mean", per="number"), Slot(name="square", per="number")

    def rule(self, old: Slots, grads: Float[Array, "Q D"], context: StepContext) -> tuple[Float[Array, "Q D"], Slots]:
        """See the class."""
        mean = self.beta1 * old["mean"] + (1 - self.beta1) * grads
        square = self.beta2 * old["square"] + (1 - self.beta2) * jnp.square(grads)
        count = jnp.asarray(context.step + 1, jnp.float32)
        change = mean / (1 - self.beta1**count) / (jnp.sqrt(square / (1 - self.beta2**count)) + EPS)
        return -context.learning_rate * change, {"mean": mean, "square": square}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sgd:
    """w -= lr g.

    Attributes:
      l2: penalty on touched rows.
    """

    l2: float = 0.0

    @property
    def slots(self) -> tuple[Slot, ...]:
        """None."""
        return ()

    def rule(self, old: Slots, grads: Float[Array, "Q D"], context: StepContext) -> tuple[Float[Array, "Q D"], Slots]:
        """See the class."""
        del old
        return -context.learning_rate * grads, {}


def row_optimizer(
    name: TableOptimizer,
    *,
    l2: float = 0.0,
    beta1: float = 0.9,
    beta2: float = 0.999,
    initial_accumulator: float = 0.0,
) -> RowOptimizer:
    """The optimizer that a config names, with those of the numbers that it has."""
    if name == "rowwise_adagrad":
        return RowwiseAdagrad(l2=l2, initial_accumulator=initial_accumulator)
    if name == "adam":
        return Adam(l2=l2, beta1=beta1, beta2=beta2)
    assert name == "sgd", name
    return Sgd(l2=l2)

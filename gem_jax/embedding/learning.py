"""A step of a shard's rows: by the table kernels where the device has them and they know the case, else by XLA.

Shape letters: R lookups, N rows of gradients, D columns.
"""

from jaxtyping import Array, Float, Int

from gem_jax.embedding.row_optimizers import Adam, RowOptimizer, RowwiseAdagrad, Sgd, StepContext, mean_of_columns
from gem_jax.embedding.stores.device import DeviceStore
from gem_jax.embedding.stores.store import WEIGHT, RowState, RowStore, update_rows
from pallas_kernels import embedding
from pallas_kernels.embedding.repeats import sum_by_row


def learn(
    store: RowStore,
    optimizer: RowOptimizer,
    state: RowState,
    rows: Int[Array, " R"],
    grads: Float[Array, "N D"],
    sources: Int[Array, " R"] | None,
    context: StepContext,
) -> RowState:
    """The state after a step on the gradients of its looked-up rows; rows outside the shard are dropped.

    Args:
      store: how the shard keeps its rows.
      optimizer: their rule.
      state: of the shard.
      rows: with repeats.
      grads: by the lookups.
      sources: which row of grads each lookup has; None: its own.
      context: of the step.
    """
    rule = _rule(optimizer, context) if isinstance(store, DeviceStore) else None
    if rule is not None and embedding.is_fused(state[WEIGHT], grads):
        names = [slot.name for slot in optimizer.slots]
        step = embedding.Step(learning_rate=context.learning_rate, count=context.step, seed=context.step)
        slots = tuple(state[name] for name in names)
        weight, slots = embedding.update(state[WEIGHT], slots, rows, grads, sources=sources, rule=rule, step=step)
        return {**state, WEIGHT: weight, **dict(zip(names, slots, strict=True))}
    height = next(iter(state.values())).shape[0]
    return update_rows(store, optimizer, state, *sum_by_row(rows, grads, height, sources), context)


def _rule(optimizer: RowOptimizer, context: StepContext) -> embedding.Rule | None:
    """What the kernels call an optimizer; None where they have not got it."""
    if type(optimizer) is RowwiseAdagrad and context.row_mean is mean_of_columns:
        return embedding.Rule(l2=optimizer.l2, groups=context.groups)
    if type(optimizer) is Adam:
        return embedding.Rule(kind="adam", l2=optimizer.l2, beta1=optimizer.beta1, beta2=optimizer.beta2)
    if type(optimizer) is Sgd:
        return embedding.Rule(kind="sgd", l2=optimizer.l2)
    return None

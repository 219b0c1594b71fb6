"""The training and evaluation steps: pure functions of state and batch, jitted once, state donated."""

import dataclasses
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Float

from gem_jax.data.batch import Batch
from gem_jax.embedding import rowwise_adagrad
from gem_jax.embedding.collection import lookup
from gem_jax.training.loss import multitask_loss
from gem_jax.training.optimizer import dense_optimizer, schedule
from gem_jax.training.state import Setup, TrainState

type TrainStep = Callable[[TrainState, Batch, Array | np.float32], tuple[TrainState, dict[str, Array]]]
type EvalStep = Callable[[TrainState, Batch], Float[Array, "B N"]]


def forward(setup: Setup, dense: nnx.State, rows: Array, batch: Batch, key: jax.Array | None) -> Float[Array, "B N"]:
    """The model's logits of a batch, base logits not yet added, from dense parameters and looked-up table rows [R, D]."""
    model = nnx.merge(setup.graph, dense)
    return model(batch, setup.tables.split(rows, batch), key)


def make_train_step(
    setup: Setup, *, task_weights: Mapping[str, float] | None = None, domain_weights: Mapping[str, float] | None = None
) -> TrainStep:
    """A jitted `(state, batch, progress) -> (state, outputs)`; `progress` in [0, 1] sets the learning rates.

    Outputs, all float32: loss [], grad_norm [] (dense, before clipping), learning_rate [], logits [B, N]. The state is donated.
    """
    by_task = jnp.array([(task_weights or {}).get(t.name, 1.0) for t in setup.schema.tasks], jnp.float32)
    by_domain = jnp.array([(domain_weights or {}).get(d, 1.0) for d in setup.schema.domains], jnp.float32)
    optimizer = dense_optimizer(setup.optimizer)

    def train_step(state: TrainState, batch: Batch, progress: Array):
        ids = setup.tables.ids(batch)
        rows = lookup(state.table, ids)
        key = jax.random.fold_in(state.key, state.step)

        def loss_of(dense: nnx.State, rows: Array):
            logits = forward(setup, dense, rows, batch, key) + state.base_logits
            return multitask_loss(logits, batch.labels, batch.weight, batch.domain, by_task, by_domain), logits

        # The gradient stops at the looked-up rows: nothing of the tables' size is ever made.
        (loss, logits), (dense_grads, row_grads) = jax.value_and_grad(loss_of, argnums=(0, 1), has_aux=True)(
            setup.layout.unflatten(state.dense), rows
        )
        dense_grads = setup.layout.flatten(dense_grads)
        rate = schedule(setup.optimizer, progress)
        updates, dense_opt = optimizer.update(dense_grads, state.dense_opt, state.dense)
        dense = jax.tree.map(lambda w, u: w - setup.optimizer.learning_rate * rate * u, state.dense, updates)
        table, table_opt = rowwise_adagrad.update(
            state.table,
            state.table_opt,
            ids,
            row_grads,
            learning_rate=setup.optimizer.table_learning_rate * rate,
            eps=1e-8,
            l2=setup.optimizer.table_l2,
        )
        state = dataclasses.replace(
            state, step=state.step + 1, dense=dense, dense_opt=dense_opt, table=table, table_opt=table_opt
        )
        outputs = {
            "loss": loss,
            "grad_norm": optax.tree.norm(dense_grads),
            "learning_rate": setup.optimizer.learning_rate * rate,
            "logits": logits,
        }
        return state, outputs

    return jax.jit(train_step, donate_argnums=0)


def make_eval_step(setup: Setup) -> EvalStep:
    """A jitted `(state, batch) -> logits [B, N]`, without dropout."""

    @jax.jit
    def eval_step(state: TrainState, batch: Batch) -> Float[Array, "B N"]:
        rows = lookup(state.table, setup.tables.ids(batch))
        dense = setup.layout.unflatten(state.dense)
        return forward(setup, dense, rows, batch, None) + state.base_logits

    return eval_step

"""The training and evaluation steps: pure functions of state and batch, jitted once, state donated.

A step is one program per device (`jax.shard_map` over the whole mesh), since every device has a packed batch of its own whose
offsets count from its own first row. What crosses devices is explicit: dense parameters and their gradients
(`run.collectives`), table rows (`embedding.sharded`), and a few sums. On one device the same program runs, its collectives
over groups of one.
"""

import dataclasses
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float

from gem_jax.data.batch import Batch
from gem_jax.run import collectives
from gem_jax.run.mesh import EVERYWHERE, SHARD
from gem_jax.run.sharding import shardings
from gem_jax.training.flat import FlatState
from gem_jax.training.loss import multitask_loss
from gem_jax.training.optimizer import clip_factor, dense_optimizer, schedule
from gem_jax.training.state import Setup, TrainState

type TrainStep = Callable[[TrainState, Batch, Array | np.float32], tuple[TrainState, dict[str, Array]]]
type EvalStep = Callable[[TrainState, Batch], Float[Array, "B N"]]


def forward(setup: Setup, dense: nnx.State, rows: Array, batch: Batch, key: jax.Array | None) -> Float[Array, "B N"]:
    """The model's logits of one device's batch, base logits not yet added, from dense parameters and table rows [R, D]."""
    model = nnx.merge(setup.graph, dense)
    return model(batch, setup.collection.split(rows, batch), key)


def make_train_step(
    setup: Setup, *, task_weights: Mapping[str, float] | None = None, domain_weights: Mapping[str, float] | None = None
) -> TrainStep:
    """A jitted `(state, batch, progress) -> (state, outputs)`; `progress` in [0, 1] sets the learning rates.

    Outputs, float32: loss [] of the whole batch, grad_norm [] (dense, before clipping), learning_rate [], logits [B, N] of all
    devices, table_overflow [] (1 where ids took the slower way, see `embedding.exchange`). The state is donated.
    """
    by_task = jnp.array([(task_weights or {}).get(t.name, 1.0) for t in setup.schema.tasks], jnp.float32)
    by_domain = jnp.array([(domain_weights or {}).get(d, 1.0) for d in setup.schema.domains], jnp.float32)
    optimizer, tables = dense_optimizer(setup.optimizer), setup.tables

    def train_step(state: TrainState, batch: Batch, progress: Array):
        requests = setup.collection.ids(batch)
        opened = tables.open(state.tables)
        rows, found = tables.lookup(opened, requests)
        key = jax.random.fold_in(jax.random.fold_in(state.key, state.step), collectives.device_index())
        total_weight = jnp.maximum(collectives.sum_everywhere(batch.weight.sum()), 1.0)

        def loss_of(shares: FlatState, rows: Array):
            logits = forward(setup, _gather(setup, shares), rows, batch, key) + state.base_logits
            loss = multitask_loss(logits, batch.labels, batch.weight, batch.domain, by_task, by_domain)
            return loss / total_weight, logits

        if setup.mesh.shape[SHARD] > 1:
            loss_of = collectives.regather(loss_of)
        # The gradient stops at the looked-up rows: nothing of the tables' size is ever made.
        (loss, logits), (dense_grads, row_grads) = jax.value_and_grad(loss_of, argnums=(0, 1), has_aux=True)(
            state.dense, rows
        )
        dense_grads = collectives.sum_over_replicas(dense_grads)
        norm = collectives.global_norm(dense_grads)
        clip = clip_factor(setup.optimizer, norm)
        rate = schedule(setup.optimizer, progress)
        updates, dense_opt = optimizer.update(
            jax.tree.map(lambda g: g * clip, dense_grads), state.dense_opt, state.dense
        )
        dense = jax.tree.map(lambda w, u: w - setup.optimizer.learning_rate * rate * u, state.dense, updates)
        updated = tables.update(
            opened,
            requests,
            found,
            row_grads,
            learning_rate=setup.optimizer.table_learning_rate * rate,
            step=state.step,
        )
        state = dataclasses.replace(
            state, step=state.step + 1, dense=dense, dense_opt=dense_opt, tables=tables.close(updated, state.step)
        )
        outputs = {
            "loss": collectives.sum_everywhere(loss),
            "grad_norm": norm,
            "learning_rate": setup.optimizer.learning_rate * rate,
            "table_overflow": jnp.float32(0) if found.fits is None else 1.0 - found.fits.astype(jnp.float32),
            "logits": logits,
        }
        return state, outputs

    scalars = dict.fromkeys(("loss", "grad_norm", "learning_rate", "table_overflow"), P())
    return _on_mesh(setup, train_step, (P(),), (setup.specs, {**scalars, "logits": P(EVERYWHERE)}), donate=True)


def make_eval_step(setup: Setup) -> EvalStep:
    """A jitted `(state, batch) -> logits [B, N]` of all devices, without dropout."""

    def eval_step(state: TrainState, batch: Batch) -> Float[Array, "B N"]:
        rows, _ = setup.tables.lookup(setup.tables.open(state.tables), setup.collection.ids(batch))
        return forward(setup, _gather(setup, state.dense), rows, batch, None) + state.base_logits

    return _on_mesh(setup, eval_step, (), P(EVERYWHERE), donate=False)


def make_table_average(setup: Setup) -> Callable[[TrainState], TrainState]:
    """A function that brings the tables of the replica groups in step, for a checkpoint or an evaluation; the identity where they
    are in step after every step."""
    if setup.tables.config.sync_every == 1:
        return lambda state: state

    def average(state: TrainState) -> TrainState:
        return dataclasses.replace(state, tables=setup.tables.average(state.tables))

    mapped = jax.shard_map(average, mesh=setup.mesh, in_specs=(setup.specs,), out_specs=setup.specs, check_vma=False)
    return jax.jit(mapped)


def _gather(setup: Setup, shares: FlatState) -> nnx.State:
    """The dense parameters, whole. Matrices arrive in the model's dtype, which is the one they are used in; norms, gates and
    biases, few and sensitive, in float32."""
    whole = {
        name: collectives.gather(share, setup.dtype if name.endswith(":decay") else jnp.dtype(jnp.float32))
        for name, share in shares.items()
    }
    return setup.layout.unflatten(whole)


def _on_mesh(setup: Setup, function, more_specs: tuple[P, ...], out_specs, *, donate: bool):
    """`function(state, batch, ...)` of one device as a jitted one of the mesh's arrays."""
    # Replication is not tracked (check_vma=False): the gradient is taken inside, and what is summed over which axis is spelled out.
    in_specs = (setup.specs, P(EVERYWHERE), *more_specs)
    mapped = jax.shard_map(function, mesh=setup.mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)
    return jax.jit(
        mapped,
        in_shardings=shardings(setup.mesh, in_specs),
        out_shardings=shardings(setup.mesh, out_specs),
        donate_argnums=(0,) if donate else (),
    )

"""The training and evaluation steps of one device: pure functions of state and batch.

A step is one program per device (`jax.shard_map` over the whole mesh, see `run.program`), since every device has a packed batch of
its own whose offsets count from its own first row. What crosses devices is explicit: dense parameters and their gradients
(`parallel.collectives`), table rows (`embedding.tables`), and a few sums. On one device the same program runs, its collectives
over groups of one.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int

from gem_jax.data.batch import Batch
from gem_jax.embedding.tables import Embedded, Tables
from gem_jax.models.outputs import Outputs
from gem_jax.parallel import collectives
from gem_jax.precision.policy import Policy
from gem_jax.precision.remat import regather
from gem_jax.precision.tags import GATHERED
from gem_jax.training.buckets import Buckets, Vectors
from gem_jax.training.objective import Objective
from gem_jax.training.optimizer import (
    OptimizerConfig,
    averaged,
    clip_factor,
    dense_optimizer,
    group_rate,
    learning,
    schedule,
)
from gem_jax.training.state import TrainState


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parts:
    """What the steps are made of; nothing here is an array.

    Attributes:
      graph: of the model, to be merged with its parameters.
      buckets: where the parameters lie.
      tables: the embedding tables on the mesh.
      objective: what is minimised.
      optimizer: how.
      policy: the model's precision.
      is_sharded: whether dense parameters are cut over several devices, and so gathered for each pass.
      observed: names of the model's representations that a training step returns.
    """

    graph: nnx.GraphDef
    buckets: Buckets
    tables: Tables
    objective: Objective
    optimizer: OptimizerConfig
    policy: Policy
    is_sharded: bool
    observed: tuple[str, ...] = ()


def forward(parts: Parts, dense: nnx.State, embedded: Embedded, batch: Batch, key: jax.Array | None) -> Outputs:
    """The model's outputs for one device's batch, base logits not yet added."""
    return nnx.merge(parts.graph, dense)(batch, embedded, key)


def train_step(
    parts: Parts, state: TrainState, batch: Batch, progress: Float[Array, ""], signals: Int[Array, "1 K"]
) -> tuple[TrainState, dict[str, Any]]:
    """One step; `progress` in [0, 1] sets the learning rates.

    Args:
      parts: static.
      state: this device's part.
      batch: this device's.
      progress: fraction of the run's examples already trained on.
      signals: numbers that the processes tell each other; the step only sums them.

    Returns:
      The new state, and: loss [] of the whole batch, grad_norm [] (dense, before clipping), learning_rate [], table_overflow [] (1
      where ids took the slower way, see `embedding.exchange`), measures (the objective's, by name, divided by the weight of all
      examples), signals [K] summed over the devices, logits [B, N] of this device, and representations (the observed ones, by name,
      [B, R]); logits and representations are those of the parameters that learn (`optimizer.learning`) before the update, which
      have not seen the batch; with `optimizer.average` the state's own are their running mean.
    """
    embedded, ticket = parts.tables.lookup(state.tables, batch)
    key = jax.random.fold_in(jax.random.fold_in(state.key, state.step), collectives.device_index())
    total_weight = jnp.maximum(collectives.sum_everywhere(batch.weight.sum()), 1.0)

    def loss_of(shares: Vectors, embedded: Embedded):
        outputs = forward(parts, gather(parts, shares), embedded, batch, key).with_base(state.base_logits)
        loss, measures = parts.objective(outputs, batch)
        observed = {name: outputs.representations[name] for name in parts.observed}
        return loss / total_weight, (outputs.logits, measures, observed)

    if parts.is_sharded:
        loss_of = regather(loss_of)
    # The gradient stops at the looked-up rows: nothing of the tables' size is ever made.
    grad = jax.value_and_grad(loss_of, argnums=(0, 1), has_aux=True)
    learned = learning(parts.optimizer, state.dense, state.dense_opt)
    (loss, (logits, measures, observed)), (dense_grads, row_grads) = grad(learned, embedded)
    rate = schedule(parts.optimizer, progress)
    dense, dense_opt, norm = update_dense(parts, state, dense_grads, rate)
    tables = parts.tables.update(
        state.tables, ticket, row_grads, learning_rate=parts.optimizer.table_learning_rate * rate, step=state.step
    )
    state = dataclasses.replace(state, step=state.step + 1, dense=dense, dense_opt=dense_opt, tables=tables)
    return state, {
        "loss": collectives.sum_everywhere(loss),
        "grad_norm": norm,
        "learning_rate": parts.optimizer.learning_rate * rate,
        "table_overflow": ticket.overflow,
        "measures": {name: collectives.sum_everywhere(value) / total_weight for name, value in measures.items()},
        "signals": collectives.sum_everywhere(signals[0]),
        "logits": logits,
        "representations": observed,
    }


def update_dense(
    parts: Parts, state: TrainState, grads: Vectors, rate: Float[Array, ""]
) -> tuple[Vectors, Any, Float[Array, ""]]:
    """The dense parameters to keep and their optimizer's state after a step, and the gradients' global norm before clipping."""
    config = parts.optimizer
    # Joined once: XLA otherwise joins a bucket's hundred gradients anew inside the sum of its squares, at a twentieth of the speed.
    grads = jax.lax.optimization_barrier(collectives.sum_over_replicas(grads))
    norm = collectives.global_norm(grads)
    clip = clip_factor(config, norm)
    optimizer = dense_optimizer(config, parts.buckets)
    weights = learning(config, state.dense, state.dense_opt)
    updates, dense_opt = optimizer.update(jax.tree.map(lambda g: g * clip, grads), state.dense_opt, weights)
    rates = {name: config.learning_rate * group_rate(config, b) * rate for name, b in parts.buckets.buckets.items()}
    weights = {name: w - rates[name] * updates[name] for name, w in weights.items()}
    return *averaged(config, state.step, state.dense, weights, dense_opt), norm


def score(parts: Parts, state: TrainState, batch: Batch) -> Outputs:
    """The outputs for this device's batch, base logits added, without dropout."""
    embedded, _ = parts.tables.lookup(state.tables, batch)
    return forward(parts, gather(parts, state.dense), embedded, batch, None).with_base(state.base_logits)


def gather(parts: Parts, shares: Vectors) -> nnx.State:
    """The dense parameters, whole, from this device's shares. Matrices arrive in the dtype that they are used in; norms, gates and
    biases, few and sensitive, in float32."""
    whole = {}
    for name, share in shares.items():
        dtype = parts.policy.travel_dtype(exact=parts.buckets.buckets[name].exact)
        whole[name] = checkpoint_name(collectives.gather(share, dtype), GATHERED)
    return parts.buckets.unflatten(whole)

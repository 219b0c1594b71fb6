"""What a model costs, before anything is compiled."""

import jax

from gem_jax.data.batch import Batch
from gem_jax.training import flops
from gem_jax.training.state import Setup, TrainState
from gem_jax.training.step import forward


def forward_flops(setup: Setup, state: TrainState, batch: Batch) -> float:
    """FLOPs of one example's forward pass, lookups left out; about a third of what training it costs.

    Counted on the batch's static shape: packed rows count whether or not an event fills them.
    """
    ids = jax.eval_shape(setup.tables.ids, batch)
    rows = jax.ShapeDtypeStruct((*ids.shape, setup.tables.dim), state.table.dtype)
    dense = jax.eval_shape(setup.layout.unflatten, state.dense)
    total = flops.count(lambda dense, rows, batch: forward(setup, dense, rows, batch, None), dense, rows, batch)
    return total["total"] / batch.weight.shape[0]

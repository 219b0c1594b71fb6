"""What a model costs, before anything is compiled."""

import jax
import jax.numpy as jnp

from gem_jax.data.batch import Batch
from gem_jax.training import flops
from gem_jax.training.state import Setup
from gem_jax.training.step import forward


def forward_flops(setup: Setup, batch: Batch) -> float:
    """FLOPs of one example's forward pass, lookups left out; about a third of what training it costs.

    Args:
      setup: of the run.
      batch: one device's batch, or its shapes. Packed rows count whether or not an event fills them.
    """
    rows = jax.ShapeDtypeStruct((setup.collection.num_lookups(batch), setup.collection.dim), jnp.float32)
    dense = setup.layout.abstract()
    total = flops.count(lambda dense, rows, batch: forward(setup, dense, rows, batch, None), dense, rows, batch)
    return total["total"] / batch.weight.shape[0]

"""What a model costs, before anything is compiled."""

from gem_jax.data.batch import Batch
from gem_jax.embedding.tables import Embedded
from gem_jax.training import flops
from gem_jax.training.step import Parts, forward


def forward_flops(parts: Parts, embedded: Embedded, batch: Batch) -> float:
    """FLOPs of one example's forward pass, lookups left out; about a third of what training it costs.

    Args:
      parts: of the run.
      embedded: a batch's ids as vectors, or their shapes.
      batch: one device's batch, or its shapes. Packed rows count whether or not an event fills them.
    """
    dense = parts.buckets.abstract()
    total = flops.count(lambda d, e, b: forward(parts, d, e, b, None).logits, dense, embedded, batch)
    return total["total"] / batch.weight.shape[0]

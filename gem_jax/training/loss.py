"""Multi-task binary cross-entropy with unobserved labels, example weights, task and domain weights."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def binary_cross_entropy(logits: Float[Array, "*s"], labels: Float[Array, "*s"]) -> Float[Array, "*s"]:
    """-log p(label), nats; stable for any logit: softplus(x) - y x."""
    return jax.nn.softplus(logits) - labels * logits


def multitask_loss(
    logits: Float[Array, "B N"],
    labels: Float[Array, "B N"],
    weight: Float[Array, " B"],
    domain: Int[Array, " B"],
    task_weights: Float[Array, " N"],
    domain_weights: Float[Array, " M"],
) -> Float[Array, ""]:
    """Sum over tasks and examples of the weighted cross-entropy; the step divides it by the weight of all examples, of all devices.

    A NaN label is unobserved and adds nothing; an empty slot has weight 0. Dividing by the examples' weight, not by the number of
    observed labels, keeps each label's say the same whatever batch it falls into.
    """
    observed = ~jnp.isnan(labels)
    losses = binary_cross_entropy(logits, jnp.where(observed, labels, 0.0))
    example = weight * domain_weights[domain]
    return jnp.sum(jnp.where(observed, losses, 0.0) * example[:, None] * task_weights)

"""What the backward pass keeps of the forward pass, and what it computes or gathers again, decided by tags."""

from collections.abc import Callable

import jax

from gem_jax.precision import tags
from gem_jax.precision.policy import Policy

_FREE_TO_REPEAT = ("all_gather", "slice", "reshape", "convert_element_type", "custom_vjp_call", "squeeze")


def saved(policy: Policy) -> tuple[str, ...]:
    """The tags whose values a layer keeps for its backward pass, where it recomputes anything."""
    return tuple(tag for tag in (*tags.RECOMPUTABLE, tags.GATHERED) if tag not in policy.recompute)


def checkpointed[**P, T](function: Callable[P, T], policy: Policy) -> Callable[P, T]:
    """`function`, a layer, which keeps its arguments and the values tagged with one of `saved(policy)`; all else is recomputed.

    Everything costly carries a tag. To keep "all but the values of this tag" would keep the very same numbers under the name of
    the operation before the tag, so untagged values, which are cheap, are recomputed too. With `Policy.recompute` empty the
    function is returned as it is, and JAX keeps whatever the backward pass reads.
    """
    if not policy.recompute:
        return function
    keep = jax.checkpoint_policies.save_only_these_names(*saved(policy))
    return jax.checkpoint(function, policy=keep)


def regather[**P, T](function: Callable[P, T]) -> Callable[P, T]:
    """`function` with its gathered parameters dropped after the forward pass and gathered again for the backward pass.

    Without it every layer's whole weights stay alive from one pass to the other, and sharding saves only optimizer state. The
    values tagged `GATHERED` and `PARAMETER`, and what lies between the gather and the product (slices, reshapes, casts), are
    repeated; everything else is kept.
    """

    def keep(primitive, *_, **params) -> bool:
        if primitive.name == "name":
            return params["name"] not in (tags.GATHERED, tags.PARAMETER)
        return primitive.name not in _FREE_TO_REPEAT

    return jax.checkpoint(function, policy=keep)

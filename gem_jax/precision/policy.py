"""Which dtype numbers are kept, computed, summed and sent in. Every cast of a model is decided here."""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp

from gem_jax.errors import UserError
from gem_jax.precision import tags

type Dtype = Literal["float32", "bfloat16"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Policy:
    """The precision of a model; the config's `precision` group, and what every layer is built with.

    Parameters are always float32: optimizers need the bits. Reductions (norms, softmax, losses, sums over devices) are float32 too.
    """

    compute: Dtype = "float32"
    """What matrix products compute in, and what matrices travel in where HSDP gathers them."""
    recompute: tuple[str, ...] = ()
    """Tags (`gem_jax.precision.tags`) whose values each layer computes again in the backward pass: less memory for more time; none
    keeps whatever the backward pass reads."""

    def __post_init__(self):
        for tag in self.recompute:
            if tag not in tags.RECOMPUTABLE:
                raise UserError(f"precision.recompute names '{tag}'; the tags are {', '.join(tags.RECOMPUTABLE)}")

    @property
    def param_dtype(self) -> jnp.dtype:
        """Of parameters, as they are kept and as optimizers see them."""
        return jnp.dtype(jnp.float32)

    @property
    def compute_dtype(self) -> jnp.dtype:
        """Of activations and matrix products."""
        return jnp.dtype(self.compute)

    @property
    def reduce_dtype(self) -> jnp.dtype:
        """Of norms, softmax, losses and sums over devices."""
        return jnp.dtype(jnp.float32)

    def travel_dtype(self, *, exact: bool) -> jnp.dtype:
        """What a parameter is gathered in: the compute dtype it is used in, or float32 where it is marked `exact`."""
        return self.param_dtype if exact else self.compute_dtype

    def cast(self, x: jax.Array) -> jax.Array:
        """`x` in the compute dtype."""
        return x.astype(self.compute_dtype)

    def to_reduce(self, x: jax.Array) -> jax.Array:
        """`x` in the reduce dtype."""
        return x.astype(self.reduce_dtype)

"""InterFormer's gate (arXiv 2411.09852, Eq 10) in its printed and its common form."""

from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from gem_jax.nn.dense import Dense
from gem_jax.precision import tags
from gem_jax.precision.policy import Policy

GateForm = Literal["gated", "sigmoid", "tanh", "identity"]


class Gate(nnx.Module):
    """Sparsifies summary tokens before they cross to the other architecture.

    `gated` (default): X * sigmoid(X W + b), what third-party code computes. It is the default because it can close
    (output 0) or pass a token through unchanged; the printed form does neither: with sigmoid or tanh it squashes every
    value, and with identity it is a quadratic form without bound.
    `sigmoid`, `tanh`, `identity`: sigma(X * (X W + b)), Eq 10 as printed, with that sigma.

    The paper's MLP inside the gate is one linear map over the width here, shared by all tokens.
    """

    def __init__(self, width: int, form: GateForm = "gated", *, policy: Policy, rngs: nnx.Rngs):
        self.linear = Dense(width, width, policy=policy, rngs=rngs)
        self.form: GateForm = form

    def __call__(self, x: Float[Array, "*s D"]) -> Float[Array, "*s D"]:
        return checkpoint_name(self._open(x, self.linear(x)), tags.ACTIVATION)

    def _open(self, x: Float[Array, "*s D"], y: Float[Array, "*s D"]) -> Float[Array, "*s D"]:
        match self.form:
            case "gated":
                return x * jax.nn.sigmoid(y)
            case "sigmoid":
                return jax.nn.sigmoid(x * y)
            case "tanh":
                return jnp.tanh(x * y)
            case "identity":
                return x * y

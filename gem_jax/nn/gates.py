"""InterFormer's gate (arXiv 2411.09852, Eq 10) in its printed and its common form."""

from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

GateForm = Literal["gated", "sigmoid", "tanh", "identity"]


class Gate(nnx.Module):
    """Sparsifies summary tokens before they cross to the other architecture.

    `gated` (default): X * sigmoid(Linear(X)), what third-party code computes. It is the default because it can close
    (output 0) or pass a token through unchanged; the printed form does neither: with sigmoid or tanh it squashes every
    value, and with identity it is a quadratic form without bound.
    `sigmoid`, `tanh`, `identity`: sigma(X * Linear(X)), Eq 10 as printed, with that sigma.

    The paper's MLP inside the gate is one Linear over the width here, shared by all tokens.
    """

    def __init__(self, width: int, form: GateForm = "gated", *, dtype=jnp.float32, rngs: nnx.Rngs):
        self.linear = nnx.Linear(width, width, dtype=dtype, rngs=rngs)
        self.form: GateForm = form

    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
        y = self.linear(x)
        match self.form:
            case "gated":
                return x * jax.nn.sigmoid(y)
            case "sigmoid":
                return jax.nn.sigmoid(x * y)
            case "tanh":
                return jnp.tanh(x * y)
            case "identity":
                return x * y

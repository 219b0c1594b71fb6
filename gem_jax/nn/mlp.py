"""The multi-layer perceptron that every block uses."""

from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from gem_jax.nn.dense import Dense, cast_weight
from gem_jax.nn.dropout import dropout, split_key
from gem_jax.nn.initializers import constant, he_normal, lecun_normal
from gem_jax.nn.norms import LayerNorm
from gem_jax.nn.parameters import Axis, parameter, size_of
from gem_jax.precision import tags
from gem_jax.precision.policy import Policy

Activation = Literal["relu", "prelu"]

PRELU_INIT = 0.25


class PReLU(nnx.Module):
    """max(x, 0) + slope min(x, 0), one learned slope a unit, 0.25 at first (arXiv 1502.01852).

    Args:
      width: units, the input's last axis.
      policy: of the computation.
    """

    def __init__(self, width: int, *, policy: Policy):
        self.slope = parameter(constant(PRELU_INIT), (width,), decay=False)
        self.policy = policy

    def __call__(self, x: Float[Array, "*s D"]) -> Float[Array, "*s D"]:
        return jnp.where(x > 0, x, cast_weight(self.slope, self.policy) * x)


class MLP(nnx.Module):
    """Linear maps to sizes `hidden`, each with an activation and dropout, then a plain one to `out_features`.

    Published recipes often normalise a layer over the batch before its activation. `norm` does so over its units: an example's
    answer then depends on no other example, and is the same in training and after it.

    Args:
      in_features: size of the input's last axis, or the names of its places.
      hidden: sizes of the hidden layers; none makes this a single linear map.
      out_features: size of the last layer, or the names of its outputs; it has neither activation nor dropout. None leaves it
        away: the output is the last hidden layer's.
      activation: of the hidden layers: relu, or a learned "prelu" of each.
      norm: LayerNorm before each activation.
      dropout_rate: of the hidden layers, active where a key is given.
      policy: of the computation.
      rngs: initialises the weights.
    """

    def __init__(
        self,
        in_features: Axis,
        hidden: Sequence[int],
        out_features: Axis | None,
        *,
        activation: Activation = "relu",
        norm: bool = False,
        dropout_rate: float = 0.0,
        policy: Policy,
        rngs: nnx.Rngs,
    ):
        sizes: list[Axis] = [in_features, *hidden]
        # Variance 2 / fan_in keeps activations of order one through relus.
        inits = [he_normal] * len(hidden)
        if out_features is not None:
            sizes.append(out_features)
            inits.append(lecun_normal)
        self.layers = nnx.List(
            [
                Dense(n, m, kernel_init=init(size_of(n)), policy=policy, rngs=rngs)
                for n, m, init in zip(sizes[:-1], sizes[1:], inits, strict=True)
            ]
        )
        self.num_hidden = len(hidden)
        self.norms = nnx.List([LayerNorm(m) for m in hidden if norm])
        self.activations = nnx.List([PReLU(m, policy=policy) for m in hidden if activation == "prelu"])
        self.dropout_rate = dropout_rate

    def __call__(self, x: Float[Array, "*s I"], key: jax.Array | None = None) -> Float[Array, "*s O"]:
        return self.readout(self.hidden(x, key))

    def hidden(self, x: Float[Array, "*s I"], key: jax.Array | None = None) -> Float[Array, "*s H"]:
        """What the last hidden layer gives; the input where there is none."""
        for i, layer_key in enumerate(split_key(key, self.num_hidden)):
            x = self.layers[i](x)
            x = self.norms[i](x) if self.norms else x
            x = self.activations[i](x) if self.activations else jax.nn.relu(x)
            x = dropout(checkpoint_name(x, tags.ACTIVATION), self.dropout_rate, layer_key)
        return x

    def readout(self, x: Float[Array, "*s H"]) -> Float[Array, "*s O"]:
        """The last layer's map of what `hidden` gives."""
        return self.layers[-1](x) if len(self.layers) > self.num_hidden else x

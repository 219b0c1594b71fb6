"""From a model's last vector to one logit per task.

Shape letters: B examples, D features, N tasks, H hidden units.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int

from gem_jax.nn.dense import Dense
from gem_jax.nn.dropout import dropout
from gem_jax.nn.initializers import ZEROS, he_normal, lecun_normal
from gem_jax.nn.mlp import MLP, Activation
from gem_jax.nn.parameters import Axis, Names, parameter, size_of
from gem_jax.precision import tags
from gem_jax.precision.policy import Policy


class PlainHead(nnx.Module):
    """An MLP shared by all tasks with one output each; knows no domains.

    Args:
      in_features: D, or the names of the inputs.
      tasks: names of the N tasks.
      hidden: sizes of the hidden layers.
      activation, norm: of the hidden layers, as in `MLP`.
      dropout_rate: of the hidden layers.
      policy: of the computation.
      rngs: initialises the weights.

    Attributes:
      hidden_axis: of what `with_hidden` gives beside the logits.
    """

    def __init__(
        self,
        in_features: Axis,
        tasks: Names,
        *,
        hidden: Sequence[int],
        activation: Activation = "relu",
        norm: bool = False,
        dropout_rate: float = 0.0,
        policy: Policy,
        rngs: nnx.Rngs,
    ):
        self.policy = policy
        self.hidden_axis: Axis = hidden[-1] if hidden else in_features
        self.mlp = MLP(
            in_features,
            hidden,
            tasks,
            activation=activation,
            norm=norm,
            dropout_rate=dropout_rate,
            policy=policy,
            rngs=rngs,
        )

    def __call__(self, x: Float[Array, "B D"], key: jax.Array | None = None) -> Float[Array, "B N"]:
        return self.with_hidden(x, key)[0]

    def with_hidden(
        self, x: Float[Array, "B D"], key: jax.Array | None = None
    ) -> tuple[Float[Array, "B N"], Float[Array, "B H"]]:
        """The logits, and what the last linear map makes them of."""
        with jax.named_scope("heads"):
            hidden = self.mlp.hidden(x, key)
            return self.policy.to_reduce(self.mlp.readout(hidden)), hidden


class DomainGatedHeads(nnx.Module):
    """One hidden layer shared by all tasks and domains, scaled by a gate of each task and domain, and read out by task.

    The gates are learned hidden unit contributions (LHUC, Swietojanski and Renals, SLT 2014), as PEPNet (arXiv 2302.01115, Eq 6)
    uses them for many tasks in many domains; that GEM learns from all surfaces and predicts for each is published, how is not.
      hidden[b] = relu(x_b W + c)
      logit[b, n] = sum_h w[n, h] 2 sigmoid(s[domain_b, n, h]) hidden[b, h] + bias[domain_b, n]

    s and bias start at 0, so that domains differ only by what the data says.

    Args:
      in_features: D, or the names of the inputs.
      tasks: names of the N tasks.
      domains: names of the schema's domains.
      hidden: H.
      dropout_rate: of the hidden layer.
      policy: of the computation.
      rngs: initialises the weights.

    Attributes:
      hidden_axis: of what `with_hidden` gives beside the logits.
    """

    def __init__(
        self,
        in_features: Axis,
        tasks: Names,
        domains: Names,
        *,
        hidden: int,
        dropout_rate: float = 0.0,
        policy: Policy,
        rngs: nnx.Rngs,
    ):
        self.dropout_rate = dropout_rate
        self.policy = policy
        self.hidden_axis: Axis = hidden
        he = he_normal(size_of(in_features))
        self.shared = Dense(in_features, hidden, kernel_init=he, policy=policy, rngs=rngs)
        shape = (len(domains), len(tasks))
        self.domain_gate = parameter(ZEROS, (*shape, hidden), rngs, decay=False, axes=(domains, tasks, None))
        self.domain_bias = parameter(ZEROS, shape, rngs, decay=False, axes=(domains, tasks))
        self.readout = parameter(lecun_normal(hidden), (len(tasks), hidden), rngs, decay=True, axes=(tasks, None))

    def __call__(
        self, x: Float[Array, "B D"], domain: Int[Array, " B"], key: jax.Array | None = None
    ) -> Float[Array, "B N"]:
        return self.with_hidden(x, domain, key)[0]

    def with_hidden(
        self, x: Float[Array, "B D"], domain: Int[Array, " B"], key: jax.Array | None = None
    ) -> tuple[Float[Array, "B N"], Float[Array, "B H"]]:
        """The logits, and the hidden layer that all tasks and domains share."""
        with jax.named_scope("heads"):
            hidden = dropout(checkpoint_name(jax.nn.relu(self.shared(x)), tags.ACTIVATION), self.dropout_rate, key)
            weight = self.readout[...] * 2 * jax.nn.sigmoid(self.domain_gate[...])
            # A one-hot product, since the gradient of a gather of B rows from a handful would be a scatter. Every domain's
            # logits are cheaper than a [B, N, H] copy of the weights: a few dot products an example.
            logits = self.policy.to_reduce(jnp.einsum("bh,dnh->bdn", hidden, self.policy.cast(weight)))
            one_hot = jax.nn.one_hot(domain, len(weight), dtype=self.policy.reduce_dtype)
            return jnp.einsum("bd,bdn->bn", one_hot, logits + self.domain_bias[...]), hidden

"""From a model's last vector to one logit per task.

Shape letters: B examples, D features, N tasks, H hidden units.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from gem_jax.nn.dropout import dropout
from gem_jax.nn.mlp import MLP


class PlainHead(nnx.Module):
    """An MLP shared by all tasks with one output each; knows no domains.

    Args:
      in_features: D.
      num_tasks: N.
      hidden: sizes of the hidden layers.
      dropout_rate: of the hidden layers.
      dtype: of the computation; logits are float32.
      rngs: initialises the weights.
    """

    def __init__(
        self,
        in_features: int,
        num_tasks: int,
        *,
        hidden: Sequence[int],
        dropout_rate: float = 0.0,
        dtype=jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.mlp = MLP(in_features, hidden, num_tasks, dropout_rate=dropout_rate, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "B D"], key: jax.Array | None = None) -> Float[Array, "B N"]:
        return self.mlp(x, key).astype(jnp.float32)


class DomainGatedHeads(nnx.Module):
    """One hidden layer shared by all tasks and domains, scaled by a gate of each task and domain, and read out by task.

    The gates are learned hidden unit contributions (LHUC, Swietojanski and Renals, SLT 2014), as PEPNet (arXiv 2302.01115, Eq 6)
    uses them for many tasks in many domains; that GEM learns from all surfaces and predicts for each is published, how is not.
      hidden[b] = relu(x_b W + c)
      logit[b, n] = sum_h w[n, h] 2 sigmoid(s[domain_b, n, h]) hidden[b, h] + bias[domain_b, n]

    s and bias start at 0, so that domains differ only by what the data says.

    Args:
      in_features: D.
      num_tasks: N.
      num_domains: of the schema.
      hidden: H.
      dropout_rate: of the hidden layer.
      dtype: of the computation; logits are float32.
      rngs: initialises the weights.
    """

    def __init__(
        self,
        in_features: int,
        num_tasks: int,
        num_domains: int,
        *,
        hidden: int,
        dropout_rate: float = 0.0,
        dtype=jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.dropout_rate = dropout_rate
        self.dtype = dtype
        he = nnx.initializers.he_normal()
        self.shared = nnx.Linear(in_features, hidden, kernel_init=he, dtype=dtype, rngs=rngs)
        self.domain_gate = nnx.Param(jnp.zeros((num_domains, num_tasks, hidden), jnp.float32))
        self.domain_bias = nnx.Param(jnp.zeros((num_domains, num_tasks), jnp.float32))
        lecun = nnx.initializers.lecun_normal(in_axis=1, out_axis=0)
        self.readout = nnx.Param(lecun(rngs.params(), (num_tasks, hidden), jnp.float32))

    def __call__(
        self, x: Float[Array, "B D"], domain: Int[Array, " B"], key: jax.Array | None = None
    ) -> Float[Array, "B N"]:
        hidden = dropout(jax.nn.relu(self.shared(x)), self.dropout_rate, key)
        weight = self.readout[...] * 2 * jax.nn.sigmoid(self.domain_gate[...])
        # A one-hot product, since the gradient of a gather of B rows from a handful would be a scatter. Every domain's
        # logits are cheaper than a [B, N, H] copy of the weights: a few dot products an example.
        logits = jnp.einsum("bh,dnh->bdn", hidden, weight.astype(self.dtype)).astype(jnp.float32)
        one_hot = jax.nn.one_hot(domain, len(weight), dtype=jnp.float32)
        return jnp.einsum("bd,bdn->bn", one_hot, logits + self.domain_bias[...])

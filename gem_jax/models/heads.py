"""From a model's last vector to one logit per task.

Shape letters: B examples, D features, N tasks, E experts, H expert width.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from gem_jax.nn.dropout import dropout, split_key
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


class MultiTaskHeads(nnx.Module):
    """Experts shared by all tasks and domains, mixed per task and domain, and one tower per task.

    Multi-gate mixture of experts (Ma et al., KDD 2018) whose gates also see the domain, our reading of "learn from all
    surfaces together, predict for each" in Meta's description of GEM, which gives no formula:
      gate[b, n] = softmax_e(Linear_n([x_b, domain embedding]) )
      mixed[b, n] = sum_e gate[b, n, e] relu(x_b W_e + c_e)
      logit[b, n] = tower_n(mixed[b, n]) + bias[domain_b, n]

    Args:
      in_features: D.
      num_tasks: N.
      num_domains: of the schema.
      num_experts: E.
      expert_dim: H, output of each expert.
      tower_hidden: the hidden size of each task's tower.
      dropout_rate: of experts and towers.
      dtype: of the computation; gates and logits are float32.
      rngs: initialises the weights.
    """

    def __init__(
        self,
        in_features: int,
        num_tasks: int,
        num_domains: int,
        *,
        num_experts: int = 4,
        expert_dim: int = 64,
        tower_hidden: int = 32,
        dropout_rate: float = 0.0,
        dtype=jnp.float32,
        rngs: nnx.Rngs,
    ):
        he = nnx.initializers.he_normal()
        self.shape = (num_tasks, num_experts)
        self.dropout_rate = dropout_rate
        self.dtype = dtype
        self.experts = nnx.Linear(in_features, num_experts * expert_dim, kernel_init=he, dtype=dtype, rngs=rngs)
        self.gate = nnx.Linear(in_features, num_tasks * num_experts, dtype=dtype, rngs=rngs)
        # A linear gate on [x, domain embedding] is a gate on x plus one row of logits per domain. These start at 0, as
        # does the bias, so that domains differ only by what the data says.
        self.domain_gate = nnx.Param(jnp.zeros((num_domains, num_tasks * num_experts), jnp.float32))
        self.domain_bias = nnx.Param(jnp.zeros((num_domains, num_tasks), jnp.float32))
        init = nnx.initializers.he_normal(batch_axis=0)
        self.tower = nnx.Param(init(rngs.params(), (num_tasks, expert_dim, tower_hidden), jnp.float32))
        self.tower_bias = nnx.Param(jnp.zeros((num_tasks, tower_hidden), jnp.float32))
        self.readout = nnx.Param(init(rngs.params(), (num_tasks, tower_hidden, 1), jnp.float32)[..., 0])

    def __call__(
        self, x: Float[Array, "B D"], domain: Int[Array, " B"], key: jax.Array | None = None
    ) -> Float[Array, "B N"]:
        num_tasks, num_experts = self.shape
        expert_key, tower_key = split_key(key, 2)
        # One-hot products, since the gradient of a gather of B rows from a handful would be a scatter.
        one_hot = jax.nn.one_hot(domain, len(self.domain_bias[...]))

        expert = jax.nn.relu(self.experts(x)).reshape(len(x), num_experts, -1)
        expert = dropout(expert, self.dropout_rate, expert_key)
        gate = self.gate(x).astype(jnp.float32) + one_hot @ self.domain_gate[...]
        gate = jax.nn.softmax(gate.reshape(-1, num_tasks, num_experts))
        mixed = jnp.einsum("bne,beh->bnh", gate.astype(self.dtype), expert)

        tower = jnp.einsum("bnh,nht->bnt", mixed, self.tower[...].astype(self.dtype))
        tower = jax.nn.relu(tower + self.tower_bias[...].astype(self.dtype))
        tower = dropout(tower, self.dropout_rate, tower_key)
        logits = jnp.einsum("bnt,nt->bn", tower, self.readout[...].astype(self.dtype))
        return logits.astype(jnp.float32) + one_hot @ self.domain_bias[...]

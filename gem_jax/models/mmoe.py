"""MMoE, the multi-gate mixture of experts (KDD 2018, doi 10.1145/3219819.3220007): experts shared by tasks, a gate for each task.

Shape letters: B examples, F inputs, E experts, H size of an expert's output, N tasks.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from gem_jax.data.batch import Batch
from gem_jax.data.schema import Schema
from gem_jax.embedding.tables import Embedded
from gem_jax.errors import UserError
from gem_jax.models.outputs import Outputs
from gem_jax.nn.bags import PooledFeatures
from gem_jax.nn.dense import Dense
from gem_jax.nn.dropout import split_key
from gem_jax.nn.mlp import MLP
from gem_jax.nn.parameters import Names
from gem_jax.precision import tags
from gem_jax.precision.policy import Policy


class MultiGateMixture(nnx.Module):
    """f^n(x) = sum_e softmax(W_n x)_e MLP_e(x), one mixture for each task n (Eq 6 and 7).

    Args:
      inputs: names of the F inputs.
      tasks: names of the N tasks.
      num_experts: E.
      hidden: sizes of an expert's layers, all with relu; the last is H.
      dropout_rate: of the experts.
      policy: of the computation.
      rngs: initialises the weights.
    """

    def __init__(
        self,
        inputs: Names,
        tasks: Names,
        *,
        num_experts: int,
        hidden: tuple[int, ...],
        dropout_rate: float,
        policy: Policy,
        rngs: nnx.Rngs,
    ):
        make: dict[str, Any] = dict(policy=policy, rngs=rngs)
        self.policy = policy
        self.experts = nnx.List(
            [MLP(inputs, hidden, None, dropout_rate=dropout_rate, **make) for _ in range(num_experts)]
        )
        self.gates = nnx.Dict({name: Dense(inputs, num_experts, use_bias=False, **make) for name in tasks})

    def __call__(self, x: Float[Array, "B F"], key: jax.Array | None = None) -> dict[str, Float[Array, "B H"]]:
        keys = split_key(key, len(self.experts))
        outputs = jnp.stack([expert(x, k) for expert, k in zip(self.experts, keys, strict=True)], axis=1)
        mixed = {}
        for name, gate in self.gates.items():
            weights = self.policy.cast(jax.nn.softmax(self.policy.to_reduce(gate(x))))
            mixed[name] = checkpoint_name(jnp.einsum("be,beh->bh", weights, outputs), tags.ACTIVATION)
        return mixed


@dataclasses.dataclass(frozen=True, kw_only=True)
class MMoEConfig:
    """MMoE on the features and the mean-pooled histories."""

    embedding_dim: int = 32
    """Width of all embedding tables."""
    num_experts: int = 4
    """Experts that all tasks share."""
    expert_hidden: tuple[int, ...] = (128, 64)
    """Sizes of an expert's layers."""
    tower_hidden: tuple[int, ...] = (32,)
    """Hidden sizes of each task's own MLP."""
    likeness: bool = False
    """The mean likeness of each history to the candidate is an input (`gem_jax.nn.candidate.Likeness`, gem_jax's own)."""
    dropout: float = 0.0
    """Dropout rate of experts and towers."""

    def __post_init__(self):
        if self.num_experts < 1 or not self.expert_hidden:
            raise UserError("MMoE needs num_experts of at least 1 and at least one size in expert_hidden")

    def build(self, schema: Schema, *, policy: Policy, rngs: nnx.Rngs) -> "MMoEModel":
        """The model with random weights."""
        return MMoEModel(self, schema, policy=policy, rngs=rngs)


class MMoEModel(nnx.Module):
    """logit_n = tower_n(f^n(x)). Domains are not used."""

    def __init__(self, config: MMoEConfig, schema: Schema, *, policy: Policy, rngs: nnx.Rngs):
        self.tasks = tasks = tuple(task.name for task in schema.tasks)
        make: dict[str, Any] = dict(policy=policy, rngs=rngs)
        self.policy = policy
        self.features = PooledFeatures(schema, config.embedding_dim, likeness=config.likeness, **make)
        self.mixture = MultiGateMixture(
            self.features.names,
            tasks,
            num_experts=config.num_experts,
            hidden=config.expert_hidden,
            dropout_rate=config.dropout,
            **make,
        )
        width = config.expert_hidden[-1]
        self.towers = nnx.Dict(
            {name: MLP(width, config.tower_hidden, 1, dropout_rate=config.dropout, **make) for name in tasks}
        )

    def __call__(self, batch: Batch, embedded: Embedded, key: jax.Array | None = None) -> Outputs:
        """Logits; "last": the tasks' mixtures side by side."""
        feature_key, expert_key, *tower_keys = split_key(key, 2 + len(self.towers))
        x = self.features(batch, embedded, feature_key)
        with jax.named_scope("experts"):
            mixed = self.mixture(x, expert_key)
        with jax.named_scope("heads"):
            logits = [
                self.towers[name](mixed[name], tower_key)
                for name, tower_key in zip(self.tasks, tower_keys, strict=True)
            ]
        last = jnp.concatenate([mixed[name] for name in self.tasks], axis=1)
        return Outputs(logits=self.policy.to_reduce(jnp.concatenate(logits, axis=1)), representations={"last": last})

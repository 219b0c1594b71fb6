"""FinalMLP (arXiv 2304.00902, AAAI 2023): two MLPs on differently gated features, fused bilinearly. No histories.

Shape letters: B examples, n tokens, F flattened width, D width of an embedding, H heads, N tasks, X and Y outputs of the streams.
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
from gem_jax.nn.candidate import candidate_features
from gem_jax.nn.dense import Dense, cast_weight
from gem_jax.nn.dropout import split_key
from gem_jax.nn.initializers import ZEROS, normal
from gem_jax.nn.interactions import flatten
from gem_jax.nn.mlp import MLP
from gem_jax.nn.parameters import Names, flattened, parameter
from gem_jax.nn.tokens import FeatureTokens
from gem_jax.precision import tags
from gem_jax.precision.policy import Policy


class FeatureGate(nnx.Module):
    """x * 2 sigmoid(MLP(context)) (Eq 6 and 7), the context being a learned vector and the embeddings of a few features.

    The authors' code has the vector only where no features are chosen; here it is always there, so that a schema without a user's
    or a candidate's features is no other model.

    Args:
      features: names of the categorical features of the context.
      inputs: names of the F places of x.
      width: D.
      hidden: hidden sizes of the MLP.
      policy: of the computation.
      rngs: initialises the weights.
    """

    def __init__(
        self, features: Names, inputs: Names, width: int, *, hidden: tuple[int, ...], policy: Policy, rngs: nnx.Rngs
    ):
        self.features = features
        self.policy = policy
        self.seeds = parameter(ZEROS, (width,), decay=False)
        context = flattened(("learned", *(f"categorical/{name}" for name in features)), width)
        self.mlp = MLP(context, hidden, inputs, policy=policy, rngs=rngs)

    def __call__(self, x: Float[Array, "B F"], embedded: Embedded) -> Float[Array, "B F"]:
        seeds = cast_weight(self.seeds, self.policy)
        parts = [jnp.broadcast_to(seeds, (len(x), len(seeds)))]
        parts += [self.policy.cast(embedded.features[name]) for name in self.features]
        gate = 2 * jax.nn.sigmoid(self.mlp(jnp.concatenate(parts, axis=1)))
        return checkpoint_name(x * gate, tags.ACTIVATION)


class BilinearFusion(nnx.Module):
    """b + W_x x + W_y y + sum_h x_h^T W_h y_h, x_h and y_h being the h-th of H equal parts of x and y (Eq 10 and 11).

    Args:
      sizes: X and Y; H divides both.
      num_heads: H.
      tasks: names of the N tasks, each with matrices of its own.
      policy: of the computation.
      rngs: initialises the weights.
    """

    def __init__(self, sizes: tuple[int, int], num_heads: int, tasks: Names, *, policy: Policy, rngs: nnx.Rngs):
        x, y = sizes
        make: dict[str, Any] = dict(policy=policy, rngs=rngs)
        self.from_x = Dense(x, tasks, **make)
        self.from_y = Dense(y, tasks, use_bias=False, **make)
        shape = (len(tasks), num_heads, x // num_heads, y // num_heads)
        # x^T W y sums X Y / H products of two numbers of order one over all heads.
        init = normal((num_heads / (x * y)) ** 0.5)
        self.weight = parameter(init, shape, rngs, decay=True, axes=(tasks, None, None, None))
        self.policy = policy

    def __call__(self, x: Float[Array, "B X"], y: Float[Array, "B Y"]) -> Float[Array, "B N"]:
        weight = cast_weight(self.weight, self.policy)
        num_heads = weight.shape[1]
        x_heads, y_heads = (part.reshape(len(part), num_heads, -1) for part in (x, y))
        mapped = checkpoint_name(jnp.einsum("bhx,nhxy->bnhy", x_heads, weight), tags.PROJECTION)
        products = jnp.einsum("bnhy,bhy->bn", mapped, y_heads)
        return self.policy.to_reduce(self.from_x(x) + self.from_y(y) + products)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FinalMLPConfig:
    """FinalMLP as a complete model of the non-sequence features."""

    embedding_dim: int = 32
    """Width of all embedding tables."""
    gate_hidden: tuple[int, ...] = (64,)
    """Hidden sizes of the MLPs that gate the features of each stream."""
    first_hidden: tuple[int, ...] = (128, 64)
    """Sizes of the first stream's layers; its gate reads the user's features."""
    second_hidden: tuple[int, ...] = (128, 64)
    """Sizes of the second stream's layers; its gate reads the candidate's features."""
    num_heads: int = 2
    """Heads of the bilinear fusion; a divisor of both streams' last sizes."""
    norm: bool = False
    """LayerNorm in the streams, where the published recipe normalises over the batch."""
    dropout: float = 0.0
    """Dropout rate of the streams."""

    def __post_init__(self):
        for name in ("first_hidden", "second_hidden"):
            sizes = getattr(self, name)
            if not sizes or sizes[-1] % self.num_heads:
                raise UserError(f"{name}={sizes} must end in a multiple of num_heads={self.num_heads}")

    def build(self, schema: Schema, *, policy: Policy, rngs: nnx.Rngs) -> "FinalMLPModel":
        """The model with random weights."""
        return FinalMLPModel(self, schema, policy=policy, rngs=rngs)


class FinalMLPModel(nnx.Module):
    """fusion(MLP_1(gate_1(x)), MLP_2(gate_2(x))) on the flattened tokens.

    The authors' code gives the gates embedding tables of their own and normalises the streams over the batch; here the gates read
    the tables of the streams, and nothing depends on the other examples of a batch. Domains and histories are not used.
    """

    def __init__(self, config: FinalMLPConfig, schema: Schema, *, policy: Policy, rngs: nnx.Rngs):
        width = config.embedding_dim
        make: dict[str, Any] = dict(policy=policy, rngs=rngs)
        self.policy = policy
        self.tokens = FeatureTokens(schema, width, **make)
        inputs = flattened(self.tokens.names, width)
        contexts = (
            tuple(f.name for f in schema.categoricals if f.role == "user"),
            tuple(f.name for f in candidate_features(schema)),
        )
        self.gates = nnx.List(
            [FeatureGate(features, inputs, width, hidden=config.gate_hidden, **make) for features in contexts]
        )
        options: dict[str, Any] = dict(norm=config.norm, dropout_rate=config.dropout, **make)
        streams = (config.first_hidden, config.second_hidden)
        self.streams = nnx.List([MLP(inputs, hidden, None, **options) for hidden in streams])
        sizes = (config.first_hidden[-1], config.second_hidden[-1])
        self.fusion = BilinearFusion(sizes, config.num_heads, tuple(task.name for task in schema.tasks), **make)

    def __call__(self, batch: Batch, embedded: Embedded, key: jax.Array | None = None) -> Outputs:
        """Logits; "last": both streams' outputs."""
        token_key, *keys = split_key(key, 3)
        x = flatten(self.tokens(batch, embedded, token_key))
        outputs = [
            stream(gate(x, embedded), stream_key)
            for gate, stream, stream_key in zip(self.gates, self.streams, keys, strict=True)
        ]
        with jax.named_scope("heads"):
            logits = self.fusion(*outputs)
        return Outputs(logits=logits, representations={"last": jnp.concatenate(outputs, axis=1)})

"""Wukong (arXiv 2403.02545): stacked factorization machines over feature tokens.

Layer i captures interactions of order up to 2^i. No histories: in GEM the sequence side is another part.

Shape letters: B examples, n tokens, D width, k rank of the factorization machine.
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from gem_jax.data.batch import Batch
from gem_jax.data.schema import Schema
from gem_jax.embedding.tables import Embedded
from gem_jax.errors import UserError
from gem_jax.models.heads import PlainHead
from gem_jax.models.outputs import Outputs
from gem_jax.nn.dense import cast_weight, mixed_tokens
from gem_jax.nn.dropout import split_key
from gem_jax.nn.initializers import lecun_normal
from gem_jax.nn.interactions import LinearCompress, flatten
from gem_jax.nn.mlp import MLP
from gem_jax.nn.norms import LayerNorm
from gem_jax.nn.parameters import Names, flattened, joined, numbered, parameter
from gem_jax.nn.tokens import FeatureTokens
from gem_jax.precision import remat, tags
from gem_jax.precision.policy import Policy


class FactorizationMachineBlock(nnx.Module):
    """FMB(X) = reshape(MLP(LN(flatten(FM(X))))) (section 3.3).

    FM(X) = X (X^T Y) with Y [n, k] learned, at cost O(n k D), or X X^T where rank is None, at O(n^2 D).

    Args:
      tokens_in: names of the n tokens.
      tokens_out: tokens that the MLP makes.
      width: D.
      rank: k, or None for the plain form.
      hidden: hidden sizes of the MLP.
      dropout_rate: of the MLP.
      policy: of the computation.
      rngs: initialises the weights.
    """

    def __init__(
        self,
        tokens_in: Names,
        tokens_out: int,
        width: int,
        *,
        rank: int | None,
        hidden: Sequence[int],
        dropout_rate: float = 0.0,
        policy: Policy,
        rngs: nnx.Rngs,
    ):
        self.tokens_out = tokens_out
        self.policy = policy
        shape, init = (len(tokens_in), rank or 0), lecun_normal(len(tokens_in))
        self.y = None if rank is None else parameter(init, shape, rngs, decay=True, axes=(tokens_in, None))
        products = joined(tokens_in, tokens_in if rank is None else numbered("", rank))
        self.norm = LayerNorm(products)
        self.mlp = MLP(products, hidden, tokens_out * width, dropout_rate=dropout_rate, policy=policy, rngs=rngs)

    def __call__(self, x: Float[Array, "B n D"], key: jax.Array | None = None) -> Float[Array, "B m D"]:
        if self.y is None:
            products = jnp.einsum("bnd,bmd->bnm", x, x)
        else:
            projected = mixed_tokens(self.policy.cast(x), cast_weight(self.y, self.policy))
            projected = checkpoint_name(projected, tags.PROJECTION)
            products = jnp.einsum("bnd,bkd->bnk", x, projected)
        products = checkpoint_name(products, tags.INTERACTION)
        return self.mlp(self.norm(flatten(products)), key).reshape(len(x), self.tokens_out, -1)


class WukongLayer(nnx.Module):
    """X' = LN([FMB(X), LCB(X)] + X); the residual is linearly compressed where the tokens change (Eq 2).

    The paper compresses where their number changes. Tokens of features are never those that a layer makes, whatever their number:
    added one to one, the place of a feature in the schema would be a weight.

    Args:
      tokens_in: names of the n tokens.
      width: D.
      fmb_tokens: tokens from the factorization machine block.
      lcb_tokens: tokens from the linear compress block.
      rank: k, or None for the plain factorization machine.
      hidden: hidden sizes of the FMB's MLP.
      dropout_rate: of that MLP.
      policy: of the computation.
      rngs: initialises the weights.
    """

    def __init__(
        self,
        tokens_in: Names,
        width: int,
        *,
        fmb_tokens: int,
        lcb_tokens: int,
        rank: int | None,
        hidden: Sequence[int],
        dropout_rate: float = 0.0,
        policy: Policy,
        rngs: nnx.Rngs,
    ):
        self.tokens_out = numbered("token", fmb_tokens + lcb_tokens)
        self.fmb = FactorizationMachineBlock(
            tokens_in,
            fmb_tokens,
            width,
            rank=rank,
            hidden=hidden,
            dropout_rate=dropout_rate,
            policy=policy,
            rngs=rngs,
        )
        self.lcb = LinearCompress(tokens_in, self.tokens_out[fmb_tokens:], policy=policy, rngs=rngs)
        self.residual = (
            None
            if tokens_in == self.tokens_out
            else LinearCompress(tokens_in, self.tokens_out, policy=policy, rngs=rngs)
        )
        self.norm = LayerNorm(width)

    def __call__(self, x: Float[Array, "B n D"], key: jax.Array | None = None) -> Float[Array, "B m D"]:
        residual = x if self.residual is None else self.residual(x)
        with jax.named_scope("fmb"):
            products = self.fmb(x, key)
        with jax.named_scope("lcb"):
            compressed = self.lcb(x)
        return self.norm(jnp.concatenate([products, compressed], axis=1) + residual)


class Wukong(nnx.Module):
    """A stack of layers; fewer tokens in later layers make the pyramid of the paper's appendix F.

    Args:
      tokens_in: n of the first layer.
      width: D.
      fmb_tokens: of each layer.
      lcb_tokens: of each layer.
      rank: k, or None for the plain factorization machine.
      hidden: hidden sizes of the FMBs' MLPs.
      dropout_rate: of those MLPs.
      policy: of the computation.
      rngs: initialises the weights.

    Attributes:
      tokens_out: names of the tokens after the last layer.
    """

    def __init__(
        self,
        tokens_in: Names,
        width: int,
        *,
        fmb_tokens: Sequence[int],
        lcb_tokens: Sequence[int],
        rank: int | None,
        hidden: Sequence[int],
        dropout_rate: float = 0.0,
        policy: Policy,
        rngs: nnx.Rngs,
    ):
        layers = []
        for num_fmb, num_lcb in zip(fmb_tokens, lcb_tokens, strict=True):
            layers.append(
                WukongLayer(
                    tokens_in,
                    width,
                    fmb_tokens=num_fmb,
                    lcb_tokens=num_lcb,
                    rank=rank,
                    hidden=hidden,
                    dropout_rate=dropout_rate,
                    policy=policy,
                    rngs=rngs,
                )
            )
            tokens_in = layers[-1].tokens_out
        self.policy = policy
        self.layers = nnx.List(layers)
        self.tokens_out = tokens_in

    def __call__(self, x: Float[Array, "B n D"], key: jax.Array | None = None) -> Float[Array, "B m D"]:
        for i, (layer, layer_key) in enumerate(zip(self.layers, split_key(key, len(self.layers)), strict=True)):
            with jax.named_scope(f"layer{i}"):
                x = remat.checkpointed(layer, self.policy)(x, layer_key)
        return x


@dataclasses.dataclass(frozen=True, kw_only=True)
class WukongConfig:
    """Wukong as a complete model of the non-sequence features."""

    embedding_dim: int = 32
    """Width of all embedding tables and tokens."""
    fmb_tokens: tuple[int, ...] = (16, 8)
    """Tokens from the factorization machine block, layer by layer."""
    lcb_tokens: tuple[int, ...] = (16, 8)
    """Tokens from the linear compress block, layer by layer."""
    rank: int | None = 16
    """Columns k of Y in the optimised factorization machine X (X^T Y); None for the plain X X^T."""
    fmb_hidden: tuple[int, ...] = (128,)
    """Hidden sizes of the MLP in each factorization machine block."""
    dense_hidden: tuple[int, ...] = (64,)
    """Hidden sizes of the MLP that makes the dense features a token."""
    head_hidden: tuple[int, ...] = (128, 64)
    """Hidden sizes of the MLP on the last layer's tokens."""
    dropout: float = 0.0
    """Dropout rate of all hidden layers."""

    def __post_init__(self):
        if len(self.fmb_tokens) != len(self.lcb_tokens):
            raise UserError(
                f"fmb_tokens={self.fmb_tokens} and lcb_tokens={self.lcb_tokens} need one entry per layer each"
            )

    def build(self, schema: Schema, *, policy: Policy, rngs: nnx.Rngs) -> "WukongModel":
        """The model with random weights."""
        return WukongModel(self, schema, policy=policy, rngs=rngs)


class WukongModel(nnx.Module):
    """Feature tokens, a Wukong stack, an MLP on the flattened tokens. Histories and domains are not used."""

    def __init__(self, config: WukongConfig, schema: Schema, *, policy: Policy, rngs: nnx.Rngs):
        width = config.embedding_dim
        self.tokens = FeatureTokens(
            schema, width, dense_hidden=config.dense_hidden, dropout_rate=config.dropout, policy=policy, rngs=rngs
        )
        self.stack = Wukong(
            self.tokens.names,
            width,
            fmb_tokens=config.fmb_tokens,
            lcb_tokens=config.lcb_tokens,
            rank=config.rank,
            hidden=config.fmb_hidden,
            dropout_rate=config.dropout,
            policy=policy,
            rngs=rngs,
        )
        self.head = PlainHead(
            flattened(self.stack.tokens_out, width),
            tuple(task.name for task in schema.tasks),
            hidden=config.head_hidden,
            dropout_rate=config.dropout,
            policy=policy,
            rngs=rngs,
        )

    def __call__(self, batch: Batch, embedded: Embedded, key: jax.Array | None = None) -> Outputs:
        """Logits; "last": the last layer's tokens."""
        token_key, stack_key, head_key = split_key(key, 3)
        x = self.stack(self.tokens(batch, embedded, token_key), stack_key)
        last = flatten(x)
        return Outputs(logits=self.head(last, head_key), representations={"last": last})

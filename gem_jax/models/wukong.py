"""Wukong (arXiv 2403.02545): stacked factorization machines over feature tokens.

Layer i captures interactions of order up to 2^i. No histories: in GEM the sequence side is another part.

Shape letters: B examples, n tokens, D width, k rank of the factorization machine.
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from gem_jax.data.batch import Batch
from gem_jax.data.schema import Schema
from gem_jax.embedding.collection import Embedded
from gem_jax.models.heads import PlainHead
from gem_jax.nn.dropout import split_key
from gem_jax.nn.interactions import LinearCompress, flatten
from gem_jax.nn.mlp import MLP
from gem_jax.nn.norms import LayerNorm
from gem_jax.nn.tokens import FeatureTokens


class FactorizationMachineBlock(nnx.Module):
    """FMB(X) = reshape(MLP(LN(flatten(FM(X))))) (section 3.3).

    FM(X) = X (X^T Y) with Y [n, k] learned, at cost O(n k D), or X X^T where rank is None, at O(n^2 D).

    Args:
      tokens_in: n.
      tokens_out: tokens that the MLP makes.
      width: D.
      rank: k, or None for the plain form.
      hidden: hidden sizes of the MLP.
      dropout_rate: of the MLP.
      dtype: of the computation.
      rngs: initialises the weights.
    """

    def __init__(
        self,
        tokens_in: int,
        tokens_out: int,
        width: int,
        *,
        rank: int | None,
        hidden: Sequence[int],
        dropout_rate: float = 0.0,
        dtype=jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.tokens_out = tokens_out
        self.dtype = dtype
        init = nnx.initializers.lecun_normal()
        self.y = None if rank is None else nnx.Param(init(rngs.params(), (tokens_in, rank), jnp.float32))
        size = tokens_in * (rank or tokens_in)
        self.norm = LayerNorm(size)
        self.mlp = MLP(size, hidden, tokens_out * width, dropout_rate=dropout_rate, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "B n D"], key: jax.Array | None = None) -> Float[Array, "B m D"]:
        if self.y is None:
            products = jnp.einsum("bnd,bmd->bnm", x, x)
        else:
            projected = jnp.einsum("bnd,nk->bdk", x, self.y[...].astype(self.dtype))
            products = jnp.einsum("bnd,bdk->bnk", x, projected)
        return self.mlp(self.norm(flatten(products)), key).reshape(len(x), self.tokens_out, -1)


class WukongLayer(nnx.Module):
    """X' = LN([FMB(X), LCB(X)] + X); the residual is linearly compressed where the number of tokens changes (Eq 2).

    Args:
      tokens_in: n.
      width: D.
      fmb_tokens: tokens from the factorization machine block.
      lcb_tokens: tokens from the linear compress block.
      rank: k, or None for the plain factorization machine.
      hidden: hidden sizes of the FMB's MLP.
      dropout_rate: of that MLP.
      dtype: of the computation.
      rngs: initialises the weights.
    """

    def __init__(
        self,
        tokens_in: int,
        width: int,
        *,
        fmb_tokens: int,
        lcb_tokens: int,
        rank: int | None,
        hidden: Sequence[int],
        dropout_rate: float = 0.0,
        dtype=jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.tokens_out = fmb_tokens + lcb_tokens
        self.fmb = FactorizationMachineBlock(
            tokens_in,
            fmb_tokens,
            width,
            rank=rank,
            hidden=hidden,
            dropout_rate=dropout_rate,
            dtype=dtype,
            rngs=rngs,
        )
        self.lcb = LinearCompress(tokens_in, lcb_tokens, dtype=dtype, rngs=rngs)
        self.residual = (
            None if tokens_in == self.tokens_out else LinearCompress(tokens_in, self.tokens_out, dtype=dtype, rngs=rngs)
        )
        self.norm = LayerNorm(width)

    def __call__(self, x: Float[Array, "B n D"], key: jax.Array | None = None) -> Float[Array, "B m D"]:
        residual = x if self.residual is None else self.residual(x)
        return self.norm(jnp.concatenate([self.fmb(x, key), self.lcb(x)], axis=1) + residual)


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
      dtype: of the computation.
      rngs: initialises the weights.

    Attributes:
      tokens_out: tokens after the last layer.
    """

    def __init__(
        self,
        tokens_in: int,
        width: int,
        *,
        fmb_tokens: Sequence[int],
        lcb_tokens: Sequence[int],
        rank: int | None,
        hidden: Sequence[int],
        dropout_rate: float = 0.0,
        dtype=jnp.float32,
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
                    dtype=dtype,
                    rngs=rngs,
                )
            )
            tokens_in = num_fmb + num_lcb
        self.layers = nnx.List(layers)
        self.tokens_out = tokens_in

    def __call__(self, x: Float[Array, "B n D"], key: jax.Array | None = None) -> Float[Array, "B m D"]:
        for layer, layer_key in zip(self.layers, split_key(key, len(self.layers)), strict=True):
            x = layer(x, layer_key)
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
            raise ValueError(
                f"fmb_tokens={self.fmb_tokens} and lcb_tokens={self.lcb_tokens} need one entry per layer each"
            )

    def build(self, schema: Schema, rngs: nnx.Rngs, dtype=jnp.float32) -> "WukongModel":
        """The model with random weights."""
        return WukongModel(self, schema, rngs=rngs, dtype=dtype)


class WukongModel(nnx.Module):
    """Feature tokens, a Wukong stack, an MLP on the flattened tokens. Histories and domains are not used."""

    def __init__(self, config: WukongConfig, schema: Schema, *, rngs: nnx.Rngs, dtype=jnp.float32):
        width = config.embedding_dim
        self.tokens = FeatureTokens(
            schema, width, dense_hidden=config.dense_hidden, dropout_rate=config.dropout, dtype=dtype, rngs=rngs
        )
        self.stack = Wukong(
            self.tokens.num_tokens,
            width,
            fmb_tokens=config.fmb_tokens,
            lcb_tokens=config.lcb_tokens,
            rank=config.rank,
            hidden=config.fmb_hidden,
            dropout_rate=config.dropout,
            dtype=dtype,
            rngs=rngs,
        )
        self.head = PlainHead(
            self.stack.tokens_out * width,
            len(schema.tasks),
            hidden=config.head_hidden,
            dropout_rate=config.dropout,
            dtype=dtype,
            rngs=rngs,
        )

    def __call__(self, batch: Batch, embedded: Embedded, key: jax.Array | None = None) -> Float[Array, "B N"]:
        """Logits, float32."""
        token_key, stack_key, head_key = split_key(key, 3)
        x = self.stack(self.tokens(batch, embedded, token_key), stack_key)
        return self.head(flatten(x), head_key)

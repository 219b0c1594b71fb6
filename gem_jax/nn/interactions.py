"""Feature interactions: those of the classic models, and the choices of InterFormer's interaction arch.

Shape letters: B examples, n tokens, D width, F flattened width.
"""

from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from gem_jax.nn.dense import Dense, GroupedDense, cast_weight, mixed_tokens
from gem_jax.nn.dropout import split_key
from gem_jax.nn.initializers import lecun_normal
from gem_jax.nn.mlp import MLP
from gem_jax.nn.norms import LayerNorm
from gem_jax.nn.parameters import Axis, Names, flattened, numbered, pairs, parameter
from gem_jax.precision import tags
from gem_jax.precision.policy import Policy


def pairwise_dots(x: Float[Array, "B n D"]) -> Float[Array, "B P"]:
    """x_i . x_j for the P = n (n - 1) / 2 pairs i < j (DLRM, arXiv 1906.00091)."""
    rows, columns = np.triu_indices(x.shape[1], k=1)
    return checkpoint_name(jnp.einsum("bnd,bmd->bnm", x, x)[:, rows, columns], tags.INTERACTION)


class CrossNetwork(nnx.Module):
    """DCN-V2's cross network in matrix form (arXiv 2008.13535, Eq 1): x_{l+1} = x_0 * (W_l x_l + b_l) + x_l.

    Args:
      features: names of the F inputs, or F.
      num_layers: depth; the output holds interactions up to order num_layers + 1.
      rank: None for a full W, otherwise W = U V with this inner size (section 4.2, one expert).
      policy: of the computation.
      rngs: initialises the weights.
    """

    def __init__(self, features: Axis, num_layers: int, *, rank: int | None = None, policy: Policy, rngs: nnx.Rngs):
        self.is_low_rank = rank is not None
        inner = features if rank is None else rank
        layers = range(num_layers)
        self.down = nnx.List(
            [Dense(features, inner, use_bias=False, policy=policy, rngs=rngs) for _ in layers if self.is_low_rank]
        )
        self.up = nnx.List([Dense(inner, features, policy=policy, rngs=rngs) for _ in layers])

    def __call__(self, x: Float[Array, "B F"]) -> Float[Array, "B F"]:
        crossed = x
        for layer, up in enumerate(self.up):
            inner = self.down[layer](crossed) if self.is_low_rank else crossed
            crossed = checkpoint_name(x * up(inner) + crossed, tags.INTERACTION)
        return crossed


class MixtureCrossNetwork(nnx.Module):
    """DCN-V2's mixture of low-rank experts (arXiv 2008.13535, Eq 3 and 4), with softmax gates and g = tanh:

      x_{l+1} = sum_i G_i(x_l) x_0 * (U_i g(C_i g(V_i x_l)) + b_l) + x_l,    G = softmax of a linear map

    Args:
      features: names of the F inputs, or F.
      num_layers: depth; the gates and g make the output no polynomial.
      rank: inner size of the experts.
      num_experts: experts of each layer.
      policy: of the computation.
      rngs: initialises the weights.
    """

    def __init__(self, features: Axis, num_layers: int, *, rank: int, num_experts: int, policy: Policy, rngs: nnx.Rngs):
        self.num_experts = num_experts
        self.policy = policy
        layers = range(num_layers)
        inner = num_experts * rank
        make: dict[str, Any] = dict(policy=policy, rngs=rngs)
        # The experts' V and U stand side by side in one matrix each; their sum over gates is then a product as well.
        self.gate = nnx.List([Dense(features, num_experts, **make) for _ in layers])
        self.down = nnx.List([Dense(features, inner, use_bias=False, **make) for _ in layers])
        experts = numbered("expert", num_experts)
        self.between = nnx.List([GroupedDense(experts, rank, rank, **make) for _ in layers])
        self.up = nnx.List([Dense(inner, features, **make) for _ in layers])

    def __call__(self, x: Float[Array, "B F"]) -> Float[Array, "B F"]:
        crossed = x
        for gate, down, between, up in zip(self.gate, self.down, self.between, self.up, strict=True):
            weights = jax.nn.softmax(self.policy.to_reduce(gate(crossed)))
            inner = jnp.tanh(down(crossed)).reshape(len(x), self.num_experts, 1, -1)
            inner = jnp.tanh(between.blocks(inner.swapaxes(0, 1)).swapaxes(0, 1))
            mixed = checkpoint_name(self.policy.cast(weights)[..., None, None] * inner, tags.ACTIVATION)
            # The gates sum to 1, so the layer's bias needs none.
            crossed = checkpoint_name(x * up(mixed.reshape(len(x), -1)) + crossed, tags.INTERACTION)
        return crossed


class LinearCompress(nnx.Module):
    """Tokens mixed linearly to another number of tokens: W X, W [m, n], no bias (Wukong's LCB, arXiv 2403.02545, Eq 4).

    Args:
      tokens_in: names of the n tokens.
      tokens_out: names of the m tokens.
      policy: of the computation.
      rngs: initialises W.
    """

    def __init__(self, tokens_in: Names, tokens_out: Names, *, policy: Policy, rngs: nnx.Rngs):
        shape = (len(tokens_in), len(tokens_out))
        self.weight = parameter(lecun_normal(shape[0]), shape, rngs, decay=True, axes=(tokens_in, tokens_out))
        self.policy = policy

    def __call__(self, x: Float[Array, "B n D"]) -> Float[Array, "B m D"]:
        return checkpoint_name(
            mixed_tokens(self.policy.cast(x), cast_weight(self.weight, self.policy)), tags.PROJECTION
        )


def flatten(x: Float[Array, "B n D"]) -> Float[Array, "B F"]:
    """All tokens of an example in one vector."""
    return x.reshape(x.shape[0], -1)


class Interaction(nnx.Module):
    """MLP(Interaction(X)): dot products of all pairs, or DCN-V2's cross network (InterFormer, arXiv 2411.09852, Eq 7).

    Args:
      kind: "dot" or "dcnv2".
      tokens_in: names of the n tokens; InterFormer puts features and sequence summaries together.
      tokens_out: names of the m tokens.
      width: D.
      hidden: hidden sizes of the MLP.
      dropout_rate: of the MLP.
      policy: of the computation.
      rngs: initialises the weights.
    """

    def __init__(
        self,
        kind: Literal["dot", "dcnv2"],
        tokens_in: Names,
        tokens_out: Names,
        width: int,
        *,
        hidden: Sequence[int],
        dropout_rate: float = 0.0,
        policy: Policy,
        rngs: nnx.Rngs,
    ):
        self.num_tokens = len(tokens_out)
        inputs = pairs(tokens_in) if kind == "dot" else flattened(tokens_in, width)
        self.cross = None if kind == "dot" else CrossNetwork(inputs, 1, policy=policy, rngs=rngs)
        self.mlp = MLP(
            inputs, hidden, flattened(tokens_out, width), dropout_rate=dropout_rate, policy=policy, rngs=rngs
        )

    def __call__(self, x: Float[Array, "B n D"], key: jax.Array | None = None) -> Float[Array, "B m D"]:
        interacted = pairwise_dots(x) if self.cross is None else self.cross(flatten(x))
        return self.mlp(interacted, key).reshape(len(x), self.num_tokens, -1)


class DHEN(nnx.Module):
    """Norm(sum_i Interaction_i(X) + ShortCut(X)) over dot products and DCN-V2 (arXiv 2203.11014).

    The shortcut compresses the tokens linearly. Arguments as in `Interaction`.
    """

    def __init__(
        self,
        tokens_in: Names,
        tokens_out: Names,
        width: int,
        *,
        hidden: Sequence[int],
        dropout_rate: float = 0.0,
        policy: Policy,
        rngs: nnx.Rngs,
    ):
        kinds: tuple[Literal["dot", "dcnv2"], ...] = ("dot", "dcnv2")
        self.interactions = nnx.List(
            [
                Interaction(
                    kind,
                    tokens_in,
                    tokens_out,
                    width,
                    hidden=hidden,
                    dropout_rate=dropout_rate,
                    policy=policy,
                    rngs=rngs,
                )
                for kind in kinds
            ]
        )
        self.shortcut = LinearCompress(tokens_in, tokens_out, policy=policy, rngs=rngs)
        self.norm = LayerNorm(width)

    def __call__(self, x: Float[Array, "B n D"], key: jax.Array | None = None) -> Float[Array, "B m D"]:
        y = self.shortcut(x)
        for interaction, interaction_key in zip(self.interactions, split_key(key, 2), strict=True):
            y = y + interaction(x, interaction_key)
        return self.norm(y)

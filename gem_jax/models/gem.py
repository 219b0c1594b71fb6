"""GEM: features and histories learn from each other layer by layer, then every task and domain gets its own answer.

The trunk follows InterFormer's interleaving (arXiv 2411.09852, Algorithm 1): in each layer both sides are summarised, the
summaries cross over, and both sides go on in parallel with nothing compressed away.

    X_sum = Gate(W X)                                                 features' summary          InterFormer Eq 10
    S_sum = Gate([targets | seeds | recent]) of every module          histories' summaries       Eq 11; `pyramid`
    X'    = LN([FMB | LCB]([X | S_sum]) + CrossLayer(X_0 .. X))       interaction                Wukong Eq 2; `cross_layer`
    S'    = HSTU(GDPA(X_sum, S)) of every module                      sequence                   Kunlun, HSTU; `pyramid`

What is published, approximated or our reading:
- published: optimised factorization machine and LCB (Wukong), gates and interleaving (InterFormer), GDPA (Kunlun), HSTU block.
- our reading of Meta's description, which has no formula: cross-layer attention, the pyramid, heads gated by domain.

What each brings on the built-in stream is in README.md beside this file.

Shape letters: B examples, n tokens, D width, m tokens of X_sum, N tasks.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from gem_jax.data.batch import Batch
from gem_jax.data.schema import Schema
from gem_jax.embedding.tables import Embedded
from gem_jax.models.cross_layer import CrossLayerAttention
from gem_jax.models.heads import DomainGatedHeads, PlainHead
from gem_jax.models.interformer import FeatureSummary
from gem_jax.models.outputs import Outputs
from gem_jax.models.pyramid import HistorySummary, Level, Pyramid, SequenceLayer, Streams
from gem_jax.models.wukong import FactorizationMachineBlock
from gem_jax.nn.dropout import split_key
from gem_jax.nn.interactions import LinearCompress, flatten
from gem_jax.nn.norms import LayerNorm
from gem_jax.nn.parameters import Names, flattened, numbered
from gem_jax.nn.tokens import FeatureTokens
from gem_jax.precision import remat
from gem_jax.precision.policy import Policy


@dataclasses.dataclass(frozen=True, kw_only=True)
class GemConfig:
    """The GEM trunk with multi-task, multi-domain heads."""

    embedding_dim: int = 32
    """Width D of all embedding tables, tokens and events."""
    num_layers: int = 2
    """Interleaved layers."""
    num_heads: int = 2
    """Heads of all attention; divides the width."""
    fmb_tokens: int = 8
    """Tokens that each layer's factorization machine block makes."""
    lcb_tokens: int = 8
    """Tokens that each layer's linear compress block makes."""
    rank: int = 16
    """Columns k of Y in the optimised factorization machine X (X^T Y)."""
    fmb_hidden: tuple[int, ...] = (128,)
    """Hidden sizes of the factorization machine block's MLP."""
    cross_layer: bool = True
    """Attention over the states of all earlier layers; False for Wukong's plain residual."""
    interleave: bool = True
    """Both sides read each other's summary in every layer; False for two towers whose summaries meet before the heads only."""
    levels: tuple[Level, ...] = (Level(), Level(pool=4), Level(recent=8))
    """Levels of the pyramid, each applied to every source of events; none switches the histories off."""
    likeness: bool = True
    """Events carry how like the candidate they are (`gem_jax.nn.candidate.Likeness`, gem_jax's own); False for the ablation."""
    window: int | None = None
    """Each row of a history attends to this many newest rows, itself included; None for all earlier ones."""
    num_summary: int = 4
    """Tokens m of the features' summary."""
    num_seeds: int = 2
    """Tokens of each history's summary pooled by learned queries."""
    num_recent: int = 2
    """Newest rows in each history's summary."""
    head_hidden: int = 64
    """Hidden units that the heads of all tasks share."""
    domain_gates: bool = True
    """Every task and domain has its own gates on the hidden units; False for heads that know no domains."""
    dense_hidden: tuple[int, ...] = (64,)
    """Hidden sizes of the MLP that makes the dense features a token."""
    dropout: float = 0.0
    """Dropout rate of MLPs, sequence blocks and heads."""

    @property
    def tokens(self) -> Names:
        """Names of the n tokens between layers."""
        return numbered("token", self.fmb_tokens + self.lcb_tokens)

    def build(self, schema: Schema, *, policy: Policy, rngs: nnx.Rngs) -> "GemModel":
        """The model with random weights."""
        return GemModel(self, schema, policy=policy, rngs=rngs)


class GemLayer(nnx.Module):
    """One interleaved layer; see the module's docstring for its equations.

    Args:
      config: sizes.
      modules: names of the sequence modules; none leaves the layer without histories.
      num_states: states of the tokens so far: this layer's place, from 1. The first layer has no earlier ones to attend to.
      policy: of the computation.
      rngs: initialises the weights.
    """

    def __init__(self, config: GemConfig, modules: Names, num_states: int, *, policy: Policy, rngs: nnx.Rngs):
        width = config.embedding_dim
        make: dict[str, Any] = dict(policy=policy, rngs=rngs)
        self.cross = Exchange(config, modules, **make) if modules and config.interleave else None
        tokens_in = config.tokens + (self.cross.history_tokens if self.cross is not None else ())
        self.fmb = FactorizationMachineBlock(
            tokens_in,
            config.fmb_tokens,
            width,
            rank=config.rank,
            hidden=config.fmb_hidden,
            dropout_rate=config.dropout,
            **make,
        )
        self.lcb = LinearCompress(tokens_in, config.tokens[config.fmb_tokens :], **make)
        has_earlier = config.cross_layer and num_states > 1
        self.residual = CrossLayerAttention(width, config.num_heads, num_states, **make) if has_earlier else None
        self.norm = LayerNorm(width)
        self.sequences = (
            SequenceLayer(
                width,
                config.num_summary if config.interleave else 0,
                config.num_heads,
                modules,
                window=config.window,
                dropout_rate=config.dropout,
                **make,
            )
            if modules
            else None
        )

    def __call__(
        self, states: list[Float[Array, "B n D"]], streams: Streams | None, key: jax.Array | None
    ) -> tuple[Float[Array, "B n D"], Streams | None]:
        """The next tokens and streams, from all states of the tokens so far (the newest last)."""
        fmb_key, sequence_key = split_key(key, 2)
        both, x_sum = states[-1], None
        if self.cross is not None and streams is not None:
            with jax.named_scope("cross"):
                x_sum, s_sum = self.cross(both, streams)
                both = jnp.concatenate([both, s_sum], axis=1)
        if self.sequences is not None and streams is not None:
            streams = self.sequences(x_sum, streams, sequence_key)
        with jax.named_scope("fmb"):
            products = self.fmb(both, fmb_key)
        with jax.named_scope("lcb"):
            compressed = self.lcb(both)
        with jax.named_scope("cross_layer"):
            residual = states[-1] if self.residual is None else self.residual(states)
        return self.norm(jnp.concatenate([products, compressed], axis=1) + residual), streams


class Exchange(nnx.Module):
    """What crosses over between the two sides: X_sum of the tokens and S_sum of every module's stream.

    Attributes:
      history_tokens: names of the tokens of all S_sum together.
    """

    def __init__(self, config: GemConfig, modules: Names, *, policy: Policy, rngs: nnx.Rngs):
        width = config.embedding_dim
        make: dict[str, Any] = dict(policy=policy, rngs=rngs)
        self.features = FeatureSummary(config.tokens, config.num_summary, width, gate="gated", **make)
        self.histories = HistorySummary(
            width, config.num_summary, config.num_seeds, config.num_recent, config.num_heads, modules, **make
        )
        self.history_tokens = self.histories.names

    def __call__(
        self, x: Float[Array, "B n D"], streams: Streams
    ) -> tuple[Float[Array, "B m D"], Float[Array, "B p D"]]:
        """X_sum and S_sum."""
        x_sum = self.features(x)
        return x_sum, self.histories(x_sum, streams)


class GemModel(nnx.Module):
    """Feature tokens and pyramid streams, interleaved layers, heads on the last tokens and the histories' last summaries."""

    def __init__(self, config: GemConfig, schema: Schema, *, policy: Policy, rngs: nnx.Rngs):
        width = config.embedding_dim
        make: dict[str, Any] = dict(policy=policy, rngs=rngs)
        self.policy = policy
        self.tokens = FeatureTokens(
            schema, width, dense_hidden=config.dense_hidden, dropout_rate=config.dropout, **make
        )
        # Cross-layer attention follows a token through the layers, so all states have the same tokens.
        self.compress = LinearCompress(self.tokens.names, config.tokens, **make)
        self.norm = LayerNorm(width)
        self.pyramid = Pyramid(schema, config.levels, width, likeness=config.likeness, **make)
        modules = self.pyramid.modules
        self.layers = nnx.List([GemLayer(config, modules, i + 1, **make) for i in range(config.num_layers)])
        self.last = Exchange(config, modules, **make) if modules else None
        last = config.tokens + (self.last.history_tokens if self.last is not None else ())
        features, tasks = flattened(last, width), tuple(task.name for task in schema.tasks)
        self.heads: DomainGatedHeads | PlainHead
        if config.domain_gates:
            self.heads = DomainGatedHeads(
                features, tasks, schema.domains, hidden=config.head_hidden, dropout_rate=config.dropout, **make
            )
        else:
            self.heads = PlainHead(features, tasks, hidden=(config.head_hidden,), dropout_rate=config.dropout, **make)
        self.hidden_axis = self.heads.hidden_axis

    def __call__(self, batch: Batch, embedded: Embedded, key: jax.Array | None = None) -> Outputs:
        """Logits; "first": the tokens after the first layer; "last": what the heads read; "hidden": their hidden layer."""
        token_key, head_key, *layer_keys = split_key(key, 2 + len(self.layers))
        with jax.named_scope("tokens"):
            states = [self.norm(self.compress(self.tokens(batch, embedded, token_key)))]
        with jax.named_scope("pyramid"):
            streams = self.pyramid(batch, embedded) if self.pyramid.modules else None
        for i, (layer, layer_key) in enumerate(zip(self.layers, layer_keys, strict=True)):
            with jax.named_scope(f"layer{i}"):
                x, streams = remat.checkpointed(layer, self.policy)(states, streams, layer_key)
            states.append(x)
        tokens = states[-1]
        if self.last is not None and streams is not None:
            with jax.named_scope("cross"):
                tokens = jnp.concatenate([tokens, self.last(tokens, streams)[1]], axis=1)
        last = flatten(tokens)
        if isinstance(self.heads, PlainHead):
            logits, hidden = self.heads.with_hidden(last, head_key)
        else:
            logits, hidden = self.heads.with_hidden(last, batch.domain, head_key)
        return Outputs(
            logits=logits,
            representations={"first": flatten(states[min(1, len(self.layers))]), "last": last, "hidden": hidden},
        )

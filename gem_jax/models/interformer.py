"""InterFormer (arXiv 2411.09852): interactions of features and learning of sequences, interleaved layer by layer.

In each layer the two sides exchange summaries (Summaries, Eq 10 and 11), then move on in parallel: features interact with
the sequences' summary (Interaction, Eq 7), events are personalised by the features' summary and attend to each other
(Sequence, Eq 8 and 9). That is the order of Algorithm 1. Sources have layouts of their own here, so each has its own
preprocessing, summary and sequence arch, and all summaries meet in the interaction arch.

Shape letters: B examples, T packed rows, n feature tokens, m summary tokens, D width.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from gem_jax.data.batch import Batch
from gem_jax.data.schema import Schema
from gem_jax.embedding.tables import Embedded
from gem_jax.models.gdpa import GDPAFeedForward
from gem_jax.models.heads import PlainHead
from gem_jax.models.outputs import Outputs
from gem_jax.nn.attention import JaggedSelfAttention
from gem_jax.nn.candidate import Likeness
from gem_jax.nn.dense import cast_weight
from gem_jax.nn.dropout import split_key
from gem_jax.nn.events import EventEncoder
from gem_jax.nn.gates import Gate, GateForm
from gem_jax.nn.initializers import normal
from gem_jax.nn.interactions import DHEN, Interaction, LinearCompress, flatten
from gem_jax.nn.jagged import Layout, first, prepend, recent, rows_of_examples
from gem_jax.nn.norms import LayerNorm
from gem_jax.nn.parameters import Names, flattened, joined, numbered, parameter
from gem_jax.nn.pooling import PMA
from gem_jax.nn.tokens import FeatureTokens
from gem_jax.precision import remat, tags
from gem_jax.precision.policy import Policy
from pallas_kernels.jagged_attention import Mask

InteractionKind = Literal["dot", "dcnv2", "dhen"]


class PFFN(nnx.Module):
    """Personalised feed-forward network: PFFN(X_sum, S) = W_PFFN S, W_PFFN = X_sum W (Eq 8).

    The paper's columns are our rows: row s becomes sum_i (w_i . s) x_i over the m summary tokens x_i, so that the
    [D, D] matrix of each example is never formed.

    Args:
      width: D.
      num_summary: m.
      policy: of the computation.
      rngs: initialises W [m, D].
    """

    def __init__(self, width: int, num_summary: int, *, policy: Policy, rngs: nnx.Rngs):
        self.weight = parameter(normal((num_summary * width) ** -0.5), (num_summary, width), rngs, decay=True)
        self.policy = policy

    def __call__(self, summary: Float[Array, "B m D"], x: Float[Array, "T D"], layout: Layout) -> Float[Array, "T D"]:
        """Personalised rows, 0 in padding rows."""
        x = self.policy.cast(layout.clear_padding(x))
        scores = checkpoint_name(x @ cast_weight(self.weight, self.policy).T, tags.PROJECTION)
        tokens = rows_of_examples(flatten(self.policy.cast(summary)), layout).reshape(*scores.shape, -1)
        return checkpoint_name(jnp.einsum("tm,tmd->td", scores, tokens), tags.ATTENTION)


class FeatureSummary(nnx.Module):
    """X_sum = Gating(MLP(X)), the MLP being a linear compression of n tokens to m (Eq 10)."""

    def __init__(
        self, tokens_in: Names, num_summary: int, width: int, *, gate: GateForm, policy: Policy, rngs: nnx.Rngs
    ):
        self.compress = LinearCompress(tokens_in, numbered("summary", num_summary), policy=policy, rngs=rngs)
        self.gate = Gate(width, gate, policy=policy, rngs=rngs)

    def __call__(self, x: Float[Array, "B n D"]) -> Float[Array, "B m D"]:
        return self.gate(self.compress(x))


class SequenceSummary(nnx.Module):
    """S_sum = Gating([S_CLS, S_PMA, S_recent]) (Eq 11).

    Args:
      width: D.
      num_cls: tokens at the start of each history that are not events (the first layer's X_sum).
      num_pma: tokens pooled by attention.
      num_recent: newest events; zeros where a history has fewer.
      num_heads: of the pooling.
      gate: form of the gate.
      policy: of the computation.
      rngs: initialises the weights.

    Attributes:
      names: of the tokens, the three kinds together.
    """

    def __init__(
        self,
        width: int,
        *,
        num_cls: int,
        num_pma: int,
        num_recent: int,
        num_heads: int,
        gate: GateForm,
        policy: Policy,
        rngs: nnx.Rngs,
    ):
        self.num_cls = num_cls
        self.num_recent = num_recent
        self.names: Names = (*numbered("cls", num_cls), *numbered("pma", num_pma), *numbered("recent", num_recent))
        self.pma = PMA(width, num_pma, num_heads, policy=policy, rngs=rngs)
        self.gate = Gate(width, gate, policy=policy, rngs=rngs)

    def __call__(self, x: Float[Array, "T D"], layout: Layout) -> Float[Array, "B m D"]:
        newest, _ = recent(x, layout, self.num_recent, skip=self.num_cls)
        return self.gate(jnp.concatenate([first(x, layout, self.num_cls), self.pma(x, layout), newest], axis=1))


class SequenceArch(nnx.Module):
    """S' = MHA(PFFN(X_sum, S)) with rotary positions (Eq 9).

    As printed there is no residual, which leaves every row in the span of the m summary tokens; `residual` (default)
    adds the usual pre-norm ones: P = S + PFFN(X_sum, LN(S)), S' = P + MHA(LN(P)). With `personalise="gdpa"`, Kunlun's
    form, which brings its own norm and residual, takes the PFFN's place.

    Args:
      width: D.
      num_summary: m, tokens of X_sum.
      num_heads: of the attention.
      personalise: "pffn" or "gdpa".
      residual: see above.
      policy: of the computation.
      rngs: initialises the weights.
    """

    def __init__(
        self,
        width: int,
        num_summary: int,
        num_heads: int,
        *,
        personalise: Literal["pffn", "gdpa"] = "pffn",
        residual: bool = True,
        policy: Policy,
        rngs: nnx.Rngs,
    ):
        self.personalise: Literal["pffn", "gdpa"] = personalise
        self.residual = residual
        self.feed_forward: PFFN | GDPAFeedForward
        if personalise == "pffn":
            self.feed_forward = PFFN(width, num_summary, policy=policy, rngs=rngs)
        else:
            self.feed_forward = GDPAFeedForward(
                width, num_summary, num_heads, num_keys=2 * width, policy=policy, rngs=rngs
            )
        # The prepended summary must see the events after it, so the attention is not causal.
        self.attention = JaggedSelfAttention(width, num_heads, mask=Mask(causal=False), policy=policy, rngs=rngs)
        self.norms = nnx.List([LayerNorm(width), LayerNorm(width)]) if residual else None

    def __call__(self, summary: Float[Array, "B m D"], x: Float[Array, "T D"], layout: Layout) -> Float[Array, "T D"]:
        """Next rows, 0 in padding rows."""
        with jax.named_scope("sequence/personalise"):
            if self.norms is None or self.personalise == "gdpa":
                x = self.feed_forward(summary, x, layout)
            else:
                x = layout.clear_padding(x)
                x = x + self.feed_forward(summary, self.norms[0](x), layout)
        with jax.named_scope("sequence/attention"):
            if self.norms is None:
                return self.attention(x, layout)
            return x + self.attention(self.norms[1](x), layout)


@dataclasses.dataclass(frozen=True, kw_only=True)
class InterFormerConfig:
    """InterFormer as a complete model."""

    embedding_dim: int = 32
    """Width of all embedding tables, tokens and events."""
    num_layers: int = 2
    """Layers of cross, interaction and sequence arch."""
    num_heads: int = 4
    """Heads of all attention."""
    num_cls: int = 4
    """Tokens of the features' summary; the first layer's are also prepended to each history as CLS tokens."""
    num_pma: int = 2
    """Summary tokens of each history pooled by attention."""
    num_recent: int = 2
    """Newest events in each history's summary."""
    interaction: InteractionKind = "dhen"
    """Interaction arch: dot products, DCN-V2, or DHEN, an ensemble of both."""
    personalise: Literal["pffn", "gdpa"] = "pffn"
    """How a history meets the features' summary: the paper's PFFN or Kunlun's attention form of it."""
    gate: GateForm = "gated"
    """Form of the gates: X * sigmoid(W X + b), or Eq 10 as printed with the named sigma."""
    residual: bool = True
    """Residuals and norms in the sequence arch; False for Eq 9 as printed."""
    interaction_hidden: tuple[int, ...] = (128,)
    """Hidden sizes of the interaction arch's MLPs."""
    likeness: bool = False
    """Events carry how like the candidate they are (`gem_jax.nn.candidate.Likeness`, gem_jax's own)."""
    dense_hidden: tuple[int, ...] = ()
    """Hidden sizes of the MLP that makes the dense features a token; none in the paper."""
    head_hidden: tuple[int, ...] = (128, 64)
    """Hidden sizes of the MLP on the last summaries."""
    dropout: float = 0.0
    """Dropout rate of the MLPs' hidden layers."""

    def build(self, schema: Schema, *, policy: Policy, rngs: nnx.Rngs) -> "InterFormerModel":
        """The model with random weights."""
        return InterFormerModel(self, schema, policy=policy, rngs=rngs)


class Summaries(nnx.Module):
    """Both sides' summaries in one layer: of the feature tokens and of each source."""

    def __init__(
        self, config: InterFormerConfig, tokens_in: Names, sources: Sequence[str], *, policy: Policy, rngs: nnx.Rngs
    ):
        width = config.embedding_dim
        self.features = FeatureSummary(tokens_in, config.num_cls, width, gate=config.gate, policy=policy, rngs=rngs)
        self.sequences = nnx.Dict(
            {
                name: SequenceSummary(
                    width,
                    num_cls=config.num_cls,
                    num_pma=config.num_pma,
                    num_recent=config.num_recent,
                    num_heads=config.num_heads,
                    gate=config.gate,
                    policy=policy,
                    rngs=rngs,
                )
                for name in sources
            }
        )


class InterFormerModel(nnx.Module):
    """Tokens and events, layers of Algorithm 1, y = MLP([X_sum, S_sum]) of the last layer's outputs.

    Domains are not used.
    """

    def __init__(self, config: InterFormerConfig, schema: Schema, *, policy: Policy, rngs: nnx.Rngs):
        width, layers = config.embedding_dim, range(config.num_layers)
        make: dict[str, Any] = dict(policy=policy, rngs=rngs)
        self.policy = policy
        self.max_lens = {s.name: s.max_len for s in schema.sequences}
        self.tokens = FeatureTokens(
            schema, width, dense_hidden=config.dense_hidden, dropout_rate=config.dropout, policy=policy, rngs=rngs
        )
        self.likeness = nnx.Dict({s.name: Likeness(s, schema, width, used=config.likeness) for s in schema.sequences})
        self.encoders = nnx.Dict(
            {
                s.name: EventEncoder(s, width, width, form="masknet", extra=self.likeness[s.name].names, **make)
                for s in schema.sequences
            }
        )
        tokens = self.tokens.names
        self.crosses = nnx.List([Summaries(config, tokens, tuple(self.max_lens), **make) for _ in (*layers, "last")])
        last = self.crosses[-1]
        summaries = sum((joined((f"sequence/{name}",), last.sequences[name].names) for name in self.max_lens), ())
        self.interactions = nnx.List([_interaction(config, tokens + summaries, tokens, **make) for _ in layers])
        self.sequence_archs = nnx.List(
            [nnx.Dict({name: _sequence_arch(config, **make) for name in self.max_lens}) for _ in layers]
        )
        self.head = PlainHead(
            flattened((*numbered("summary", config.num_cls), *summaries), width),
            tuple(task.name for task in schema.tasks),
            hidden=config.head_hidden,
            dropout_rate=config.dropout,
            **make,
        )
        self.hidden_axis = self.head.hidden_axis

    def __call__(self, batch: Batch, embedded: Embedded, key: jax.Array | None = None) -> Outputs:
        """Logits; "last": the last layer's summaries; "hidden": the head's last hidden layer."""
        token_key, head_key, *layer_keys = split_key(key, 2 + len(self.interactions))
        with jax.named_scope("tokens"):
            x = self.tokens(batch, embedded, token_key)
        x_sum = self.crosses[0].features(x)
        events: dict[str, tuple[Array, Layout]] = {}
        for name, max_len in self.max_lens.items():
            with jax.named_scope("events"):
                layout = Layout.of(batch.sequences[name], max_len)
                likeness = self.likeness[name](embedded.events[name], embedded.features, layout)
                rows = self.encoders[name](batch.sequences[name], embedded.events[name], layout, likeness)
                events[name] = prepend(rows, layout, x_sum)  # S_CLS, before the first layer only

        for i, layer_key in enumerate(layer_keys):
            with jax.named_scope(f"layer{i}"):
                layer = remat.checkpointed(functools.partial(self._layer, i), self.policy)
                x, events = layer(x, events, layer_key)

        # The paper's head takes the summaries of layer L, which it writes as the input of that layer's archs; ours are
        # made from their output, or the last layer would be wasted.
        with jax.named_scope("cross"):
            cross = self.crosses[-1]
            summaries = [cross.features(x), *(cross.sequences[name](*events[name]) for name in events)]
        last = flatten(jnp.concatenate(summaries, axis=1))
        logits, hidden = self.head.with_hidden(last, head_key)
        return Outputs(logits=logits, representations={"last": last, "hidden": hidden})

    def _layer(self, i: int, x: Float[Array, "B n D"], events: dict, key: jax.Array | None):
        """The next tokens and the next rows of each source with their layout."""
        with jax.named_scope("cross"):
            x_sum = self.crosses[i].features(x)
            s_sums = [self.crosses[i].sequences[name](*events[name]) for name in events]
        with jax.named_scope("interaction"):
            x = self.interactions[i](jnp.concatenate([x, *s_sums], axis=1), key)
        archs = self.sequence_archs[i]
        events = {name: (archs[name](x_sum, rows, layout), layout) for name, (rows, layout) in events.items()}
        return x, events


def _interaction(config: InterFormerConfig, tokens_in: Names, tokens_out: Names, *, policy: Policy, rngs: nnx.Rngs):
    options: dict[str, Any] = dict(
        hidden=config.interaction_hidden, dropout_rate=config.dropout, policy=policy, rngs=rngs
    )
    if config.interaction == "dhen":
        return DHEN(tokens_in, tokens_out, config.embedding_dim, **options)
    return Interaction(config.interaction, tokens_in, tokens_out, config.embedding_dim, **options)


def _sequence_arch(config: InterFormerConfig, *, policy: Policy, rngs: nnx.Rngs) -> SequenceArch:
    return SequenceArch(
        config.embedding_dim,
        config.num_cls,
        config.num_heads,
        personalise=config.personalise,
        residual=config.residual,
        policy=policy,
        rngs=rngs,
    )

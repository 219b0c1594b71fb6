"""DIN, the deep interest network (arXiv 1706.06978): each history pooled by how much each event matters for the candidate.

Shape letters: B examples, T packed events, D width of the tables, A attributes of an event, F inputs of the attention unit.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from gem_jax.data.batch import Batch, Events
from gem_jax.data.schema import Schema, Sequence
from gem_jax.embedding.tables import Embedded
from gem_jax.models.heads import PlainHead
from gem_jax.models.outputs import Outputs
from gem_jax.nn.candidate import Likeness, counterparts
from gem_jax.nn.dropout import split_key
from gem_jax.nn.events import NUM_WAVES, time_features
from gem_jax.nn.interactions import flatten
from gem_jax.nn.jagged import Layout, history_sum, rows_of_examples
from gem_jax.nn.mlp import MLP
from gem_jax.nn.parameters import Names, flattened, joined, numbered
from gem_jax.nn.tokens import FeatureTokens
from gem_jax.precision import tags
from gem_jax.precision.policy import Policy


class TargetAttention(nnx.Module):
    """v = sum_t a_t k_t with a_t = MLP([k_t, q, q - k_t, q * k_t, age_t]) (Eq 3), k_t being all of an event's attributes.

    The weights are not normalised, so that many alike events count more than one. q holds the candidate's feature of each
    attribute's table; an attribute without one, such as the action, is in k alone. The age is not in the paper, whose events have
    no time.

    Args:
      sequence: the source.
      schema: names the candidate's features.
      width: D.
      hidden: hidden sizes of the MLP.
      likeness: whether the MLP reads the event's likeness to the candidate too.
      policy: of the computation.
      rngs: initialises the weights.

    Attributes:
      names: of v's A D places.
    """

    def __init__(
        self,
        sequence: Sequence,
        schema: Schema,
        width: int,
        *,
        hidden: tuple[int, ...],
        likeness: bool,
        policy: Policy,
        rngs: nnx.Rngs,
    ):
        self.max_len = sequence.max_len
        self.attributes = tuple(a.name for a in sequence.attributes)
        self.counterparts = counterparts(sequence, schema)
        self.likeness = Likeness(sequence, schema, width, used=likeness)
        self.policy = policy
        self.names: Names = flattened(self.attributes, width)
        compared = joined(("query", "difference", "product"), flattened(tuple(self.counterparts), width))
        inputs = (*joined(("key",), self.names), *compared, *numbered("time/", 2 * NUM_WAVES + 1), *self.likeness.names)
        self.mlp = MLP(inputs, hidden, 1, activation="prelu", policy=policy, rngs=rngs)

    def __call__(self, events: Events, rows: dict[str, Array], features: dict[str, Array]) -> Float[Array, "B A_D"]:
        """The pooled history, 0 of an empty one.

        Args:
          events: of the source.
          rows: attribute -> [T, D].
          features: the candidate's features by name, [B, D].
        """
        layout = Layout.of(events, self.max_len)
        # Zeroed first: a NaN in a padding row would otherwise reach the weights' gradient as 0 * NaN.
        keys = {name: layout.clear_padding(self.policy.cast(rows[name])) for name in self.attributes}
        weights = checkpoint_name(self.mlp(self._inputs(events, keys, features, layout)), tags.ATTENTION)
        return history_sum(weights * jnp.concatenate(list(keys.values()), axis=1), layout)

    def _inputs(
        self, events: Events, keys: dict[str, Array], features: dict[str, Array], layout: Layout
    ) -> Float[Array, "T F"]:
        q = {a: rows_of_examples(self.policy.cast(features[name]), layout) for a, name in self.counterparts.items()}
        parts = [*keys.values(), *q.values()]
        parts += [q[name] - keys[name] for name in q]
        parts += [q[name] * keys[name] for name in q]
        parts.append(self.policy.cast(layout.clear_padding(time_features(events.age_s))))
        likeness = self.likeness(keys, features, layout)
        if likeness is not None:
            parts.append(self.policy.cast(likeness))
        return jnp.concatenate(parts, axis=1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DINConfig:
    """DIN: the features and each history, pooled for the candidate, through an MLP."""

    embedding_dim: int = 32
    """Width of all embedding tables."""
    attention_hidden: tuple[int, ...] = (36,)
    """Hidden sizes of the attention unit's MLP."""
    likeness: bool = False
    """The attention unit also reads how like the candidate an event is (`gem_jax.nn.candidate.Likeness`, gem_jax's own)."""
    head_hidden: tuple[int, ...] = (200, 80)
    """Hidden sizes of the MLP on features and pooled histories."""
    dropout: float = 0.0
    """Dropout rate of that MLP's hidden layers."""

    def build(self, schema: Schema, *, policy: Policy, rngs: nnx.Rngs) -> "DINModel":
        """The model with random weights."""
        return DINModel(self, schema, policy=policy, rngs=rngs)


class DINModel(nnx.Module):
    """y = MLP([tokens, v of each source]). Domains are not used.

    All activations are PReLU, the paper's first choice: its Dice normalises over the batch, which would make an example's answer
    depend on the others.
    """

    def __init__(self, config: DINConfig, schema: Schema, *, policy: Policy, rngs: nnx.Rngs):
        width = config.embedding_dim
        make: dict[str, Any] = dict(policy=policy, rngs=rngs)
        self.policy = policy
        self.tokens = FeatureTokens(schema, width, **make)
        self.attentions = nnx.Dict(
            {
                s.name: TargetAttention(
                    s, schema, width, hidden=config.attention_hidden, likeness=config.likeness, **make
                )
                for s in schema.sequences
            }
        )
        self.sources = tuple(s.name for s in schema.sequences)  # in this order; an `nnx.Dict` has its own
        inputs = flattened(self.tokens.names, width)
        for name in self.sources:
            inputs += joined((f"sequence/{name}",), self.attentions[name].names)
        self.head = PlainHead(
            inputs,
            tuple(task.name for task in schema.tasks),
            hidden=config.head_hidden,
            activation="prelu",
            dropout_rate=config.dropout,
            **make,
        )

    def __call__(self, batch: Batch, embedded: Embedded, key: jax.Array | None = None) -> Outputs:
        """Logits; "last": what the head reads."""
        token_key, head_key = split_key(key, 2)
        parts = [flatten(self.tokens(batch, embedded, token_key))]
        with jax.named_scope("target_attention"):
            for name in self.sources:
                parts.append(self.attentions[name](batch.sequences[name], embedded.events[name], embedded.features))
        last = jnp.concatenate(parts, axis=1)
        return Outputs(logits=self.head(last, head_key), representations={"last": last})

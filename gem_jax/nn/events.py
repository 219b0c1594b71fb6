"""Events of a history as packed rows [T, D].

Shape letters: B examples, T packed rows, A attributes per event, D width.
"""

from typing import Literal

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from gem_jax.data.batch import Batch, Events
from gem_jax.data.schema import Schema, Sequence
from gem_jax.embedding.tables import Embedded
from gem_jax.nn.candidate import Likeness, counterparts
from gem_jax.nn.jagged import Layout, merge, tokens_as_rows
from gem_jax.nn.mlp import MLP
from gem_jax.nn.parameters import Names, flattened, numbered
from gem_jax.precision.policy import Policy

EncoderForm = Literal["linear", "masknet", "mlp"]

LOG_YEAR = 17.27  # log(1 + seconds of a year): maps ages up to a year into [0, 1]
NUM_WAVES = 8


def time_features(age_s: Int[Array, " T"]) -> Float[Array, "T 17"]:
    """The age on a log scale with cosines and sines at 8 frequencies, float32: minutes to months without a table."""
    age = jnp.log1p(age_s.astype(jnp.float32)) / LOG_YEAR
    angle = jnp.pi * age[:, None] * jnp.arange(1, NUM_WAVES + 1)
    return jnp.concatenate([age[:, None], jnp.cos(angle), jnp.sin(angle)], axis=1)


class EventEncoder(nnx.Module):
    """An event's attribute embeddings and its age, projected to the width.

    `linear` projects the concatenation. `masknet` is InterFormer's preprocessing (arXiv 2411.09852, section 3.1):
    MLP_lce(S * MLP_mask(S)). The paper concatenates k sources that share their positions; our sources have layouts of
    their own, so each has its own MaskNet over the concatenation of its attributes. `mlp` has a hidden layer of the output's width,
    as the content MLP of HSTU's ranking code has.

    Args:
      sequence: the source.
      embedding_dim: width of the attributes' embeddings.
      width: D.
      form: "linear", "masknet" or "mlp".
      extra: names of further numbers per event, e.g. its likeness to the candidate.
      policy: of the computation.
      rngs: initialises the weights.
    """

    def __init__(
        self,
        sequence: Sequence,
        embedding_dim: int,
        width: int,
        *,
        form: EncoderForm = "linear",
        extra: Names = (),
        policy: Policy,
        rngs: nnx.Rngs,
    ):
        self.attributes = tuple(a.name for a in sequence.attributes)
        self.policy = policy
        attributes = tuple(f"attribute/{name}" for name in self.attributes)
        inputs = (*flattened(attributes, embedding_dim), *numbered("time/", 2 * NUM_WAVES + 1), *extra)
        self.num_extra = len(extra)
        self.mask = MLP(inputs, (width,), inputs, policy=policy, rngs=rngs) if form == "masknet" else None
        self.project = MLP(inputs, () if form == "linear" else (width,), width, policy=policy, rngs=rngs)

    def __call__(
        self, events: Events, embedded: dict[str, Array], layout: Layout, extra: Float[Array, "T E"] | None = None
    ) -> Float[Array, "T D"]:
        """Rows of the source, 0 in padding rows.

        Args:
          events: for their ages.
          embedded: attribute -> [T, embedding_dim].
          layout: of the events.
          extra: the further numbers.
        """
        parts = [self.policy.cast(embedded[name]) for name in self.attributes]
        parts.append(self.policy.cast(time_features(events.age_s)))
        if extra is not None:
            parts.append(self.policy.cast(extra))
        return layout.clear_padding(self._encode(layout.clear_padding(jnp.concatenate(parts, axis=1))))

    def candidate(self, features: dict[str, Array]) -> Float[Array, "B D"]:
        """The candidate as an event of this source that happens now, so that it lies where its like among the events lie.

        Args:
          features: attribute -> [B, embedding_dim], the candidate's feature in its place; what is left out, and extra, is 0.
        """
        some = next(iter(features.values()))
        parts = [self.policy.cast(features.get(name, jnp.zeros_like(some))) for name in self.attributes]
        parts.append(self.policy.cast(time_features(jnp.zeros(len(some), jnp.int32))))
        parts.append(self.policy.cast(jnp.zeros((len(some), self.num_extra))))
        return self._encode(jnp.concatenate(parts, axis=1))

    def _encode(self, x: Float[Array, "R I"]) -> Float[Array, "R D"]:
        return self.project(x if self.mask is None else x * self.mask(x))


class MergedHistory(nnx.Module):
    """All sources of an example as one history in order of time, and the candidate encoded as an event of each (HSTU, SASRec).

    What the paper's sequences have in items, ours have in several sources with attributes of their own: an encoder a source makes
    rows of one width. The candidate goes through the same encoders, as an item through the same embedding there.

    Args:
      schema: names the sources and the candidate's features.
      embedding_dim: width of the tables.
      width: D.
      form: of the encoders.
      likeness: whether events carry their likeness to the candidate.
      policy: of the computation.
      rngs: initialises one encoder per source.
    """

    def __init__(
        self,
        schema: Schema,
        embedding_dim: int,
        width: int,
        *,
        form: EncoderForm = "linear",
        likeness: bool,
        policy: Policy,
        rngs: nnx.Rngs,
    ):
        self.max_lens = {s.name: s.max_len for s in schema.sequences}
        self.width = width
        self.policy = policy
        self.counterparts = {s.name: counterparts(s, schema) for s in schema.sequences}
        self.likeness = nnx.Dict({s.name: Likeness(s, schema, embedding_dim, used=likeness) for s in schema.sequences})
        self.encoders = nnx.Dict(
            {
                s.name: EventEncoder(
                    s, embedding_dim, width, form=form, extra=self.likeness[s.name].names, policy=policy, rngs=rngs
                )
                for s in schema.sequences
            }
        )

    @property
    def max_len(self) -> int:
        """Of all events together."""
        return sum(self.max_lens.values())

    def candidate(self, embedded: Embedded, num_examples: int) -> Float[Array, "B D"]:
        """The sum of the candidate as an event of each source; 0 of a source that it shares no table with."""
        total = jnp.zeros((num_examples, self.width), self.policy.compute_dtype)
        for name, names in self.counterparts.items():
            if names:
                features = {attribute: embedded.features[feature] for attribute, feature in names.items()}
                total = total + self.encoders[name].candidate(features)
        return total

    def __call__(
        self, batch: Batch, embedded: Embedded, last: Float[Array, "B D"] | None = None
    ) -> tuple[Float[Array, "T D"], Layout, Int[Array, " T"]]:
        """Rows, their layout, and the age of each in seconds.

        Args:
          batch: holds the events.
          embedded: their attributes, and the candidate's features.
          last: one more row at the end of each history, of age 0; must be given where the schema has no sources.
        """
        xs, layouts, ages = [], [], []
        for name, max_len in self.max_lens.items():
            events, rows = batch.sequences[name], embedded.events[name]
            layout = Layout.of(events, max_len)
            likeness = self.likeness[name](rows, embedded.features, layout)
            xs.append(self.encoders[name](events, rows, layout, likeness))
            layouts.append(layout)
            ages.append(events.age_s)
        if last is not None:  # one more source with an event of age 0; sorting is stable, so it comes last
            x, layout = tokens_as_rows(last[:, None])
            xs.append(x)
            layouts.append(layout)
            ages.append(jnp.zeros(layout.num_rows, jnp.int32))
        return merge(xs, layouts, ages)

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
from gem_jax.nn.jagged import Layout, merge, tokens_as_rows
from gem_jax.nn.mlp import MLP
from gem_jax.nn.parameters import Names, flattened, numbered
from gem_jax.precision.policy import Policy

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
    their own, so each has its own MaskNet over the concatenation of its attributes.

    Args:
      sequence: the source.
      embedding_dim: width of the attributes' embeddings.
      width: D.
      form: "linear" or "masknet".
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
        form: Literal["linear", "masknet"] = "linear",
        extra: Names = (),
        policy: Policy,
        rngs: nnx.Rngs,
    ):
        self.attributes = tuple(a.name for a in sequence.attributes)
        self.policy = policy
        attributes = tuple(f"attribute/{name}" for name in self.attributes)
        inputs = (*flattened(attributes, embedding_dim), *numbered("time/", 2 * NUM_WAVES + 1), *extra)
        self.mask = MLP(inputs, (width,), inputs, policy=policy, rngs=rngs) if form == "masknet" else None
        self.project = MLP(inputs, (width,) if form == "masknet" else (), width, policy=policy, rngs=rngs)

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
        x = layout.clear_padding(jnp.concatenate(parts, axis=1))
        if self.mask is not None:
            x = x * self.mask(x)
        return layout.clear_padding(self.project(x))


class MergedHistory(nnx.Module):
    """All sources of an example as one history in order of time, the candidate at its end (HSTU's and SASRec's input).

    Args:
      schema: names the sources.
      embedding_dim: width of the tables.
      width: D.
      policy: of the computation.
      rngs: initialises one encoder per source.
    """

    def __init__(self, schema: Schema, embedding_dim: int, width: int, *, policy: Policy, rngs: nnx.Rngs):
        self.max_lens = {s.name: s.max_len for s in schema.sequences}
        self.encoders = nnx.Dict(
            {s.name: EventEncoder(s, embedding_dim, width, policy=policy, rngs=rngs) for s in schema.sequences}
        )

    @property
    def max_len(self) -> int:
        """Of the history with its candidate."""
        return sum(self.max_lens.values()) + 1

    def __call__(
        self, batch: Batch, embedded: Embedded, candidate: Float[Array, "B D"]
    ) -> tuple[Float[Array, "T D"], Layout, Int[Array, " T"]]:
        """Rows, their layout, and the age of each in seconds: 0 for the candidate."""
        # The candidate is one more source with an event of age 0; sorting is stable, so it comes last.
        names = list(self.max_lens)
        layouts = [Layout.of(batch.sequences[name], self.max_lens[name]) for name in names]
        xs = [
            self.encoders[name](batch.sequences[name], embedded.events[name], layout)
            for name, layout in zip(names, layouts, strict=True)
        ]
        candidate_rows, candidate_layout = tokens_as_rows(candidate[:, None])
        ages = [batch.sequences[name].age_s for name in names]
        ages.append(jnp.zeros(candidate_layout.num_rows, jnp.int32))
        return merge([*xs, candidate_rows], [*layouts, candidate_layout], ages)

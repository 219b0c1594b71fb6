"""What an example's candidate, the ad to be scored, has in common with the events of its histories.

Shape letters: B examples, T packed rows, D width of the tables, P pairs of an event attribute and a candidate feature.
"""

from collections.abc import Mapping

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from gem_jax.data.schema import Categorical, Schema, Sequence
from gem_jax.nn.jagged import Layout, rows_of_examples
from gem_jax.nn.norms import RMSNorm
from gem_jax.nn.parameters import Names

CANDIDATE_ROLES = ("ad", "goal", "format", "measurement", "surface")
"""Features of these roles describe what is to be scored; those of users and context do not."""


def candidate_features(schema: Schema) -> tuple[Categorical, ...]:
    """The single-valued categorical features that describe the candidate."""
    return tuple(f for f in schema.categoricals if f.role in CANDIDATE_ROLES and f.max_ids == 1)


def counterparts(sequence: Sequence, schema: Schema) -> dict[str, str]:
    """Event attribute -> the candidate's feature of the same table: what the candidate would have there, were it an event.

    Of several such features the one of the attribute's name is taken, else the first by name; an attribute without one is left out.
    """
    found = {}
    for attribute in sequence.attributes:
        names = [f.name for f in candidate_features(schema) if f.table == attribute.table]
        if names:
            found[attribute.name] = min(names, key=lambda name: (name != attribute.name, name))
    return found


class Likeness(nnx.Module):
    """How like the candidate each event of a source is: one number per event attribute that shares a table with the candidate.

    This input is gem_jax's own; no paper has it in this form. Equal ids have equal embeddings, so the cosine says "the same ad,
    advertiser, category, surface" from the first step on, and learns which ones are alike; attention alone needs many more labels
    to discover that two features speak of the same thing. It is target attention's idea (DIN, arXiv 1706.06978) and that of
    LLaTTE's target-aware events (arXiv 2601.20083), as an input. Because it is worth much, every model of histories has it as the
    option `likeness`: a comparison of two models says something of them only where both have it or neither.

    Args:
      sequence: the source.
      schema: names the candidate's features.
      width: D.
      used: False for no pairs: the model without this input.

    Attributes:
      pairs: (event attribute, candidate feature), in the schema's order.
      names: theirs, as inputs of a layer.
    """

    def __init__(self, sequence: Sequence, schema: Schema, width: int, *, used: bool = True):
        features = candidate_features(schema) if used else ()
        self.pairs = tuple((a.name, f.name) for a in sequence.attributes for f in features if f.table == a.table)
        self.names: Names = tuple(f"likeness/{attribute}/{feature}" for attribute, feature in self.pairs)
        self.norm = RMSNorm(width, affine=False)

    def __call__(
        self, events: Mapping[str, Array], features: Mapping[str, Array], layout: Layout
    ) -> Float[Array, "T P"] | None:
        """sqrt(D) times the cosine, so of order one for unlike ids; None where there are no pairs."""
        if not self.pairs:
            return None
        columns = []
        for attribute, feature in self.pairs:
            candidate = rows_of_examples(self.norm(features[feature]), layout)
            columns.append((self.norm(events[attribute]) * candidate).sum(axis=-1))
        return jnp.stack(columns, axis=1) * features[feature].shape[-1] ** -0.5

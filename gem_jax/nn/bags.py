"""Histories as bags: the mean embedding of each attribute of each source, for models that have no order in them.

Shape letters: B examples, n tokens, D width, P likenesses of all sources, F flattened width.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from gem_jax.data.batch import Batch
from gem_jax.data.schema import Schema
from gem_jax.embedding.tables import Embedded
from gem_jax.nn.candidate import Likeness
from gem_jax.nn.interactions import flatten
from gem_jax.nn.jagged import Layout, history_mean
from gem_jax.nn.parameters import Names, flattened, joined
from gem_jax.nn.tokens import FeatureTokens
from gem_jax.precision.policy import Policy


class HistoryBags(nnx.Module):
    """Every source's attributes as mean embeddings, and the means of its events' likeness to the candidate.

    Args:
      schema: names the sources.
      width: D, the width of the tables.
      likeness: whether there are likenesses.
      policy: of the computation.

    Attributes:
      names: of the n tokens.
      likeness_names: of the P likenesses.
    """

    def __init__(self, schema: Schema, width: int, *, likeness: bool, policy: Policy):
        self.policy = policy
        self.width = width
        self.sources = {s.name: (s.max_len, tuple(a.name for a in s.attributes)) for s in schema.sequences}
        self.likeness = nnx.Dict({s.name: Likeness(s, schema, width, used=likeness) for s in schema.sequences})
        self.names: Names = ()
        self.likeness_names: Names = ()
        for name, (_, attributes) in self.sources.items():
            self.names += joined((f"sequence/{name}",), attributes)
            self.likeness_names += joined((f"sequence/{name}",), self.likeness[name].names)

    def __call__(self, batch: Batch, embedded: Embedded) -> tuple[Float[Array, "B n D"], Float[Array, "B P"]]:
        """Tokens, 0 for an empty history, and likenesses."""
        num_examples = len(batch.domain)
        bags = [jnp.zeros((num_examples, 0, self.width), self.policy.compute_dtype)]
        likenesses = [jnp.zeros((num_examples, 0), self.policy.compute_dtype)]
        for name, (max_len, attributes) in self.sources.items():
            layout = Layout.of(batch.sequences[name], max_len)
            events = embedded.events[name]
            bags += [history_mean(self.policy.cast(events[a]), layout)[:, None] for a in attributes]
            likeness = self.likeness[name](events, embedded.features, layout)
            if likeness is not None:
                likenesses.append(history_mean(self.policy.cast(likeness), layout))
        return jnp.concatenate(bags, axis=1), jnp.concatenate(likenesses, axis=1)


class PooledFeatures(nnx.Module):
    """Feature tokens, bags and their likenesses in one vector: the shared input of multi-task models.

    Args:
      schema: names features and sources.
      width: D, the width of the tables.
      likeness: whether there are likenesses.
      policy: of the computation.
      rngs: initialises the maps of dense features and vectors.

    Attributes:
      names: of the F numbers.
    """

    def __init__(self, schema: Schema, width: int, *, likeness: bool, policy: Policy, rngs: nnx.Rngs):
        self.tokens = FeatureTokens(schema, width, policy=policy, rngs=rngs)
        self.bags = HistoryBags(schema, width, likeness=likeness, policy=policy)
        self.names: Names = flattened(self.tokens.names + self.bags.names, width) + self.bags.likeness_names

    def __call__(self, batch: Batch, embedded: Embedded, key: jax.Array | None = None) -> Float[Array, "B F"]:
        bags, likeness = self.bags(batch, embedded)
        tokens = jnp.concatenate([self.tokens(batch, embedded, key), bags], axis=1)
        return jnp.concatenate([flatten(tokens), likeness], axis=1)

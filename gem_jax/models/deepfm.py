"""DeepFM (arXiv 1703.04247): a factorization machine beside an MLP, both on the same embeddings. No histories.

Shape letters: B examples, n tokens, D width of an embedding, N tasks.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from gem_jax.data.batch import Batch
from gem_jax.data.schema import Schema
from gem_jax.embedding.tables import Embedded
from gem_jax.models.heads import PlainHead
from gem_jax.models.outputs import Outputs
from gem_jax.nn.dropout import split_key
from gem_jax.nn.initializers import ONES
from gem_jax.nn.interactions import flatten
from gem_jax.nn.parameters import flattened, parameter
from gem_jax.nn.tokens import FeatureTokens
from gem_jax.precision import tags
from gem_jax.precision.policy import Policy


def sum_of_products(x: Float[Array, "B n D"]) -> Float[Array, " B"]:
    """The sum of x_i . x_j over all pairs i < j, in time O(n D): half of |sum_i x_i|^2 - sum_i |x_i|^2."""
    products = jnp.square(x.sum(axis=1)) - jnp.square(x).sum(axis=1)
    return checkpoint_name(0.5 * products.sum(axis=-1), tags.INTERACTION)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DeepFMConfig:
    """DeepFM as a complete model of the non-sequence features."""

    embedding_dim: int = 32
    """Width of all embedding tables: an id's embedding, and in the last column its weight in the first-order part."""
    hidden: tuple[int, ...] = (128, 64)
    """Hidden sizes of the deep part."""
    norm: bool = False
    """LayerNorm in the deep part, where the published recipe normalises over the batch."""
    dropout: float = 0.0
    """Dropout rate of the deep part's hidden layers."""

    def build(self, schema: Schema, *, policy: Policy, rngs: nnx.Rngs) -> "DeepFMModel":
        """The model with random weights."""
        return DeepFMModel(self, schema, policy=policy, rngs=rngs)


class FactorizationMachine(nnx.Module):
    """y_n = sum_i s_{i,n} w_i + t_n sum_{i<j} v_i . v_j of tokens [v_i, w_i].

    The paper has one task; s and t, 1 at first, let several weigh the same terms differently.

    Args:
      tokens: names of the n tokens.
      tasks: names of the N tasks.
      policy: of the computation.
    """

    def __init__(self, tokens: tuple[str, ...], tasks: tuple[str, ...], *, policy: Policy):
        self.scale = parameter(ONES, (len(tokens), len(tasks)), decay=False, axes=(tokens, tasks))
        self.product_scale = parameter(ONES, (len(tasks),), decay=False, axes=(tasks,))
        self.policy = policy

    def __call__(self, x: Float[Array, "B n D_and_1"]) -> Float[Array, "B N"]:
        x = self.policy.to_reduce(x)
        first = x[..., -1] @ self.scale[...]
        return first + sum_of_products(x[..., :-1])[:, None] * self.product_scale[...]


class DeepFMModel(nnx.Module):
    """FM(x) + MLP(x). A table's last column holds the weights of the first-order part, so that the FM is the paper's own; the dense
    features together and each vector are one field, whose embedding and weight are linear maps of them. Domains and histories are
    not used."""

    def __init__(self, config: DeepFMConfig, schema: Schema, *, policy: Policy, rngs: nnx.Rngs):
        tasks = tuple(task.name for task in schema.tasks)
        self.policy = policy
        self.tokens = FeatureTokens(schema, config.embedding_dim, policy=policy, rngs=rngs)
        self.machine = FactorizationMachine(self.tokens.names, tasks, policy=policy)
        inputs = flattened(self.tokens.names, config.embedding_dim - 1)
        self.head = PlainHead(
            inputs, tasks, hidden=config.hidden, norm=config.norm, dropout_rate=config.dropout, policy=policy, rngs=rngs
        )

    def __call__(self, batch: Batch, embedded: Embedded, key: jax.Array | None = None) -> Outputs:
        """Logits; "last": the tokens, which both parts read."""
        token_key, head_key = split_key(key, 2)
        x = self.tokens(batch, embedded, token_key)
        with jax.named_scope("factorization_machine"):
            logits = self.machine(x)
        return Outputs(logits=logits + self.head(flatten(x[..., :-1]), head_key), representations={"last": flatten(x)})

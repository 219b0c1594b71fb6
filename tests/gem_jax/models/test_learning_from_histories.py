"""Models of histories learn fast that a candidate's topic is that of its user's newest event, which only a match can tell.

A model that must first discover that the candidate's feature and the event's attribute speak of the same thing is at AUC .5 after
as many steps: SASRec was, with a head on the last state alone, and HSTU is in its published form, so it is asked with `likeness`.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from sklearn.metrics import roc_auc_score

from gem_jax.data.batch import Batch
from gem_jax.data.schema import Categorical, Schema, Sequence, Table, Task
from gem_jax.models import DINConfig, DLRMConfig, HSTUConfig, SASRecConfig
from tests.gem_jax.models.batches import lookup, random_batch
from tests.gem_jax.nn.running import FLOAT32, quick_jit

NUM_TOPICS = 40
SCHEMA = Schema(
    tables=(Table(name="topic", rows=NUM_TOPICS),),
    categoricals=(Categorical(name="topic", table="topic", role="ad"),),
    sequences=(
        Sequence(name="organic", attributes=(Categorical(name="topic", table="topic", role="event"),), max_len=6),
    ),
    tasks=(Task(name="click"),),
    domains=("all",),
)
SIZES = dict(embedding_dim=16, head_hidden=(32,))
CONFIGS = {
    "dlrm": DLRMConfig(embedding_dim=16, top_hidden=(32,)),
    "din": DINConfig(attention_hidden=(16,), **SIZES),
    "sasrec": SASRecConfig(num_layers=1, width=16, **SIZES),
    "hstu": HSTUConfig(num_layers=1, width=16, head_dim=8, likeness=True, **SIZES),
}
NUM_STEPS = 100
EXAMPLES = 128


def batch_of(seed: int) -> Batch:
    """Half of the candidates are of the newest event's topic, and clicked; all histories have events."""
    batch = random_batch(SCHEMA, EXAMPLES, seed=seed)
    rng = np.random.default_rng(seed)
    events = batch.sequences["organic"]
    topics = rng.integers(0, NUM_TOPICS, len(events.age_s)).astype(np.int32)
    is_event = events.ids["topic"] >= -1
    newest = topics[np.maximum(events.offsets[:-1] + events.lengths - 1, 0)]
    clicked = rng.random(EXAMPLES) < 0.5
    candidates = np.where(clicked, newest, rng.integers(0, NUM_TOPICS, EXAMPLES)).astype(np.int32)
    events.ids["topic"] = np.where(is_event, topics, -1).astype(np.int32)
    batch.ids["topic"] = candidates[:, None]
    batch.labels[:, 0] = clicked
    return batch


@pytest.mark.parametrize("name", CONFIGS)
def test_learns_the_match(name):
    config = CONFIGS[name]
    model = config.build(SCHEMA, policy=FLOAT32, rngs=nnx.Rngs(0))
    graphdef, state = nnx.split(model)
    tables = {"topic": 0.1 * jax.random.normal(jax.random.key(1), (NUM_TOPICS, config.embedding_dim))}
    optimizer = optax.adam(0.01)

    def loss(params, batch):
        state, tables = params
        logits = nnx.merge(graphdef, state)(batch, lookup(SCHEMA, tables, batch)).logits
        return optax.sigmoid_binary_cross_entropy(logits, batch.labels).mean(), logits

    @quick_jit
    def step(params, moments, batch):
        gradient, logits = jax.grad(loss, has_aux=True)(params, batch)
        updates, moments = optimizer.update(gradient, moments)
        return optax.apply_updates(params, updates), moments, logits

    params = (state, tables)
    moments = optimizer.init(params)
    scored = []
    for number in range(NUM_STEPS):
        batch = batch_of(number)
        params, moments, logits = step(params, moments, jax.tree.map(jnp.asarray, batch))
        scored.append((np.asarray(logits)[:, 0], batch.labels[:, 0]))
    logits, labels = (np.concatenate(x) for x in zip(*scored[-20:], strict=True))
    assert roc_auc_score(labels, logits) > 0.65

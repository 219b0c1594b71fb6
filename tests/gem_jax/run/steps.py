"""Training steps of one stream of examples on any mesh, and what they leave behind in a form that no mesh shows in."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from gem_jax.data.batch import Batch, Examples
from gem_jax.data.packing import pack
from gem_jax.data.synthetic import SyntheticConfig
from gem_jax.embedding.placement import Scheme
from gem_jax.embedding.sharded import TablesConfig
from gem_jax.models import DLRMConfig, ModelConfig
from gem_jax.models.gem import GemConfig, Level
from gem_jax.parallel.mesh import local_devices, make_mesh
from gem_jax.parallel.sharding import local_rows, place_batch
from gem_jax.training.optimizer import OptimizerConfig
from gem_jax.training.state import Setup, TrainState, init_state
from gem_jax.training.step import make_eval_step, make_train_step

NUM_STEPS = 30
GLOBAL_BATCH = 32
"""Examples of a step: all on one device, or 4 on each of 8."""

DATA = SyntheticConfig(
    train_examples=NUM_STEPS * GLOBAL_BATCH,
    test_examples=8,
    active_users=40,
    active_ads=16,
    organic_max_len=8,
    impressions_max_len=8,
)
GEM = GemConfig(
    embedding_dim=16,
    fmb_tokens=4,
    lcb_tokens=4,
    rank=4,
    fmb_hidden=(16,),
    levels=(Level(), Level(recent=4)),
    head_hidden=16,
)
"""gem_debug with fewer hidden units: two layers with cross-layer attention, two sources at two levels, heads gated by domain.

Of gem_debug's own units one sits so close to the kink of its ReLU in step 9 that an example's rounding, which depends on how many
rows a product has, decides whether it is on; Adam then moves its weights by a whole step in one run and not at all in the other.
That is the same on 8 x 1 and 2 x 4 devices and has nothing to do with the mesh, but no tolerance tells it from a mistake.
"""
DLRM = DLRMConfig(embedding_dim=16, bottom_hidden=(16,), top_hidden=(32,))
"""Quick to compile; it reads the multi-valued feature and pools the histories."""
OPTIMIZER = OptimizerConfig(learning_rate=1e-3, table_learning_rate=0.02, weight_decay=0.01, table_l2=1e-3)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """Losses and gradient norms by step, how many steps overflowed, the last step's logits and those of evaluation by example, and
    the state after the last step."""

    losses: np.ndarray
    norms: np.ndarray
    overflows: float
    logits: np.ndarray
    evaluated: np.ndarray
    dense: dict[str, np.ndarray]
    tables: dict[str, np.ndarray]
    accumulators: dict[str, np.ndarray]


def train_on(
    replica: int,
    shard: int,
    tables: TablesConfig | None = None,
    *,
    model: ModelConfig = DLRM,
    schemes: dict[str, Scheme] | None = None,
    owners: dict[str, int] | None = None,
) -> Outcome:
    """`NUM_STEPS` steps on a mesh of this process, or of all processes of a job: each then reads its own part of every batch."""
    source = DATA.build().train
    mesh = make_mesh(replica, shard)
    setup, state = init_state(
        model,
        source.schema,
        OPTIMIZER,
        seed=0,
        mesh=mesh,
        tables=tables,
        schemes=schemes,
        owners=owners,
        base_logits=np.float32([-3, -6]),
    )
    step = make_train_step(setup, task_weights={"conversion": 0.5}, domain_weights={"stories": 2.0})
    losses, norms, overflows = [], [], 0.0
    for number in range(NUM_STEPS):
        examples, batch = _batch(source, setup, number)
        placed = place_batch(batch, mesh)
        state, outputs = step(state, placed, np.float32(number / NUM_STEPS))
        losses.append(float(outputs["loss"]))
        norms.append(float(outputs["grad_norm"]))
        overflows += float(outputs["table_overflow"])
    evaluated = make_eval_step(setup)(state, placed)
    return Outcome(
        losses=np.array(losses),
        norms=np.array(norms),
        overflows=overflows,
        logits=_by_example(outputs["logits"], examples, batch),
        evaluated=_by_example(evaluated, examples, batch),
        **_numbers(setup, _whole(state)),
    )


def _batch(source, setup: Setup, number: int) -> tuple[Examples, Batch]:
    """This process's examples of a step, and their batch for its devices."""
    own = GLOBAL_BATCH // jax.process_count()
    first = number * GLOBAL_BATCH + jax.process_index() * own
    examples = source.read(np.arange(first, first + own))
    num_devices = local_devices(setup.mesh)
    slots = own // num_devices
    tokens = {s.name: slots * s.max_len for s in source.schema.sequences}
    batch, host = pack(examples, source.schema, slots, tokens, num_devices=num_devices)
    assert host.num_examples == own
    return examples, batch


def _whole(state: TrainState) -> TrainState:
    """The state as NumPy arrays in every process."""
    state = dataclasses.replace(state, key=jax.random.key_data(state.key))
    if jax.process_count() == 1:
        return jax.tree.map(np.asarray, state)
    return jax.tree.map(np.asarray, multihost_utils.process_allgather(state, tiled=True))


def _numbers(setup: Setup, state: TrainState) -> dict[str, dict[str, np.ndarray]]:
    dense = setup.layout.unflatten(jax.tree.map(jnp.asarray, state.dense))
    names = [table.name for table in setup.schema.tables]
    return dict(
        dense={jax.tree_util.keystr(p): np.asarray(x) for p, x in jax.tree_util.tree_flatten_with_path(dense)[0]},
        tables={name: setup.tables.export(state.tables, name) for name in names},
        accumulators={name: setup.tables.export(state.tables, name, "accumulator") for name in names},
    )


def _by_example(logits: jax.Array, examples: Examples, batch: Batch) -> np.ndarray:
    """Logits in the order of the stream: packing moves examples between devices."""
    filled = batch.weight > 0
    given, packed = (
        np.stack([e.ids[name][:, 0] for name in ("user", "ad", "hour")] + [e.dense[:, 0]]) for e in (examples, batch)
    )
    out = np.empty((len(examples), logits.shape[1]), np.float32)
    out[np.lexsort(given)] = local_rows(logits)[filled][np.lexsort(packed[:, filled])]
    return out

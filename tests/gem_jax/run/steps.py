"""Training steps of one stream of examples on any mesh, and what they leave behind in a form that no mesh shows in."""

import dataclasses

import jax
import numpy as np
from jax.experimental import multihost_utils

from gem_jax.config import Config
from gem_jax.data.batch import Batch, Examples
from gem_jax.data.packing import BatchConfig, pack
from gem_jax.data.schema import Schema
from gem_jax.data.synthetic import SyntheticConfig
from gem_jax.embedding.config import Scheme, TablesConfig
from gem_jax.models import DLRMConfig, ModelConfig
from gem_jax.models.gem import GemConfig, Level
from gem_jax.parallel.mesh import MeshConfig, local_devices
from gem_jax.parallel.sharding import local_rows, place_batch
from gem_jax.run.plan import RunPlan
from gem_jax.run.program import Program
from gem_jax.training.objective import MultiTaskConfig
from gem_jax.training.optimizer import OptimizerConfig

NUM_STEPS = 30
GLOBAL_BATCH = 32
"""Examples of a step: all on one device, or 4 on each of 8."""

DATA = SyntheticConfig(
    train_examples=NUM_STEPS * GLOBAL_BATCH,
    test_examples=8,
    active_users=40,
    active_ads=24,
    organic_max_len=8,
    impressions_max_len=8,
)
SCHEMA = DATA.schema()
GEM = GemConfig(
    embedding_dim=16,
    fmb_tokens=4,
    lcb_tokens=4,
    rank=4,
    fmb_hidden=(16,),
    levels=(Level(), Level(recent=4)),
    head_hidden=10,
)
"""gem_debug with fewer hidden units: two layers with cross-layer attention, two sources at two levels, heads gated by domain.

Of 64, 14 or 12 units one sits so close to the kink of its ReLU in step 9 that an example's rounding, which depends on how many
rows a product has, decides whether it is on; Adam then moves its weights by a whole step in one run and not at all in the other.
That is the same on 8 x 1 and 2 x 4 devices and has nothing to do with the mesh, but no tolerance tells it from a mistake.
"""
DLRM = DLRMConfig(embedding_dim=16, bottom_hidden=(16,), top_hidden=(32,))
"""Quick to compile; it reads the multi-valued feature and pools the histories."""
OPTIMIZER = OptimizerConfig(learning_rate=1e-3, table_learning_rate=0.02, weight_decay=0.01, table_l2=1e-3)
OBJECTIVE = MultiTaskConfig(task_weights={"conversion": 0.5}, domain_weights={"stories": 2.0})
BASE_LOGITS = np.float32([-3, -6])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a run of steps leaves.

    Attributes:
      losses: by step.
      norms: gradient norms by step.
      overflows: how many steps overflowed.
      logits: of the last step, by example.
      evaluated: the logits of the last step's batch after it, by example.
      state: the state by name.
    """

    losses: np.ndarray
    norms: np.ndarray
    overflows: float
    logits: np.ndarray
    evaluated: np.ndarray
    state: dict[str, np.ndarray]


def program_on(
    replica: int,
    shard: int,
    tables: TablesConfig = TablesConfig(),  # noqa: B008 (frozen)
    *,
    model: ModelConfig = DLRM,
    schemes: dict[str, Scheme] | None = None,
    schema: Schema = SCHEMA,
) -> Program:
    """The program of the stream on a mesh; every table by rows unless `schemes` says otherwise."""
    slots = GLOBAL_BATCH // (replica * shard)
    by_rows = dict.fromkeys((table.name for table in schema.tables), "rows")
    config = Config(
        name="steps",
        data=DATA,
        model=model,
        batch=BatchConfig(examples=slots, tokens={s.name: slots * s.max_len for s in SCHEMA.sequences}),
        optimizer=OPTIMIZER,
        objective=OBJECTIVE,
        mesh=MeshConfig(replica=replica, shard=shard),
        tables=dataclasses.replace(tables, schemes=by_rows | (schemes or {})),
    )
    return Program.of(config, schema, RunPlan.of(config, schema, jax.devices()[: replica * shard]))


def train_on(
    replica: int,
    shard: int,
    tables: TablesConfig = TablesConfig(),  # noqa: B008 (frozen)
    *,
    model: ModelConfig = DLRM,
    schemes: dict[str, Scheme] | None = None,
) -> Outcome:
    """`NUM_STEPS` steps on a mesh of this process, or of all processes of a job: each then reads its own part of every batch."""
    program = program_on(replica, shard, tables, model=model, schemes=schemes)
    return take_steps(program, program.init(0, BASE_LOGITS), range(NUM_STEPS))


def take_steps(program: Program, state, numbers: range) -> Outcome:
    """Steps of the stream from a state on, which they consume."""
    source = DATA.build().train
    losses, norms, overflows = [], [], 0.0
    for number in numbers:
        examples, batch = batch_of_step(source, program, number)
        placed = place_batch(batch, program.mesh)
        state, outputs = program.train_step(state, placed, number / NUM_STEPS)
        losses.append(float(outputs["loss"]))
        norms.append(float(outputs["grad_norm"]))
        overflows += float(outputs["table_overflow"])
    return Outcome(
        losses=np.array(losses),
        norms=np.array(norms),
        overflows=overflows,
        logits=_by_example(outputs["logits"], examples, batch),
        evaluated=_by_example(program.eval_step(state, placed), examples, batch),
        state=by_name(program, state),
    )


def by_name(program: Program, state) -> dict[str, np.ndarray]:
    """The state as NumPy arrays, in every process."""
    arrays = program.to_logical(state)
    if jax.process_count() > 1:
        return {n: np.asarray(multihost_utils.process_allgather(x, tiled=True)) for n, x in arrays.items()}
    return {name: np.asarray(x) for name, x in arrays.items()}


def batch_of_step(source, program: Program, number: int) -> tuple[Examples, Batch]:
    """This process's examples of a step, and their batch for its devices."""
    own = GLOBAL_BATCH // jax.process_count()
    first = number * GLOBAL_BATCH + jax.process_index() * own
    examples = source.read(np.arange(first, first + own))
    slots = own // local_devices(program.mesh)
    tokens = {s.name: slots * s.max_len for s in source.schema.sequences}
    batch, host = pack(examples, source.schema, slots, tokens, num_devices=local_devices(program.mesh))
    assert host.num_examples == own
    return examples, batch


def _by_example(logits: jax.Array, examples: Examples, batch: Batch) -> np.ndarray:
    """Logits in the order of the stream: packing moves examples between devices."""
    filled = batch.weight > 0
    given, packed = (
        np.stack([e.ids[name][:, 0] for name in ("user", "ad", "hour")] + [e.dense[:, 0]]) for e in (examples, batch)
    )
    out = np.empty((len(examples), logits.shape[1]), np.float32)
    out[np.lexsort(given)] = local_rows(logits)[filled][np.lexsort(packed[:, filled])]
    return out

"""One arrangement of a run on the GPUs at hand, measured in a process of its own: XLA and NCCL read their flags once.

The process compiles, says so, and waits for a word on standard input: many compile at once, one at a time measures.
"""

import dataclasses
import itertools
import json
import pathlib
import sys
import tempfile
from typing import Any

import jax
import numpy as np

from gem_jax.bench import model_flops, overlap, step
from gem_jax.config import Config
from gem_jax.data.batch import Batch, HostColumns
from gem_jax.data.loader import Loader
from gem_jax.data.packing import BatchConfig
from gem_jax.embedding.config import Scheme
from gem_jax.parallel.lockstep import placed_signals
from gem_jax.parallel.mesh import MeshConfig, local_devices
from gem_jax.parallel.sharding import place_batch
from gem_jax.run.plan import RunPlan
from gem_jax.run.program import NUM_SIGNALS, Program
from gem_jax.scale.__main__ import summary
from gem_jax.scale.aot import compiled_step

NUM_LOSSES = 20
"""Steps whose losses are compared, each on a batch of its own."""

READY, GO = "ready", "go"
"""What the process says once it has compiled, and the word it then waits for."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Variant:
    """An arrangement of a run."""

    name: str
    """As the table calls it."""
    replica: int = 1
    """Groups of the mesh."""
    shard: int = 1
    """GPUs of a group."""
    scheme: Scheme | None = None
    """How every table is cut; None leaves it to the planner."""
    fully_sharded: bool = False
    """Tables cut over the replicas too."""
    times: int = 1
    """Device batches that a device takes as one: all of the mesh's, for one GPU to train on the same examples."""
    flags: tuple[str, ...] = ()
    """Of XLA, beside those of a run."""
    environment: dict[str, str] = dataclasses.field(default_factory=dict)
    """Of NCCL."""

    def applied(self, config: Config) -> Config:
        """The config with this arrangement."""
        schema = config.data.schema()
        budgets = config.batch.budgets(schema)
        batch = BatchConfig(
            examples=self.times * config.batch.examples, tokens={n: self.times * rows for n, rows in budgets.items()}
        )
        schemes = config.tables.schemes if self.scheme is None else {t.name: self.scheme for t in schema.tables}
        return config.replace(
            mesh=MeshConfig(replica=self.replica, shard=self.shard),
            tables=dataclasses.replace(config.tables, schemes=schemes, fully_sharded=self.fully_sharded),
            batch=batch,
        )


def from_json(text: str) -> Variant:
    """The variant that `json.dumps(dataclasses.asdict(variant))` wrote."""
    fields = json.loads(text)
    return Variant(**(fields | {"flags": tuple(fields["flags"])}))


def measure(config: Config, variant: Variant, trace: str | None) -> dict[str, Any]:
    """A row of what one variant does and of what its compiled step promised, JSON-able; see the module.

    Args:
      config: of the run, without the variant.
      variant: to be measured.
      trace: folder where the profiler's trace is kept; None keeps none.
    """
    config = variant.applied(config)
    splits = config.data.build()
    plan = RunPlan.of(config, splits.schema)
    program = Program.of(config, splits.schema, plan)
    batches = _batches(program, Loader(
        splits.train, config.batch, seed=None, num_epochs=None, num_devices=local_devices(plan.mesh)
    ))  # fmt: skip
    compiled = program.lower().compile()
    print(READY, flush=True)
    assert sys.stdin.readline().strip() == GO, "the process that measures has gone"
    run = _Run(program, compiled)
    losses = [run.step(place_batch(batch, plan.mesh)) for batch, _ in batches]
    batch, columns = batches[0]
    placed = place_batch(batch, plan.mesh)
    sample = lambda: [run.step(placed) for _ in range(step.STEPS)]  # noqa: E731
    seconds = step.median_s(sample) / step.STEPS
    tokens = int(sum(events.lengths.sum() for events in batch.sequences.values()))
    return {
        "losses": [float(loss) for loss in losses],
        "ms": seconds * 1e3,
        "examples_per_step": columns.num_examples,
        "tokens_per_s": tokens / seconds,
        **_mfu(program, batch, seconds),
        **_traced(sample, trace),
        "cost_imbalance": float(np.mean([columns.imbalance for _, columns in batches])),
        "peak_bytes": [device.memory_stats()["peak_bytes_in_use"] for device in plan.mesh.devices.flat]
        if plan.mesh.devices.flat[0].memory_stats()
        else None,
        "promised": summary(compiled_step(plan, compiled)),
        "device": jax.devices()[0].device_kind,
        "jax": jax.__version__,
    }


class _Run:
    """A state and the compiled step that takes it on."""

    def __init__(self, program: Program, compiled: jax.stages.Compiled):
        self._compiled = compiled
        self._state = program.init(program.config.train.seed)
        self._signals = placed_signals(np.zeros(NUM_SIGNALS, np.int32), program.mesh)

    def step(self, batch: Batch) -> jax.Array:
        self._state, outputs = self._compiled(self._state, batch, np.float32(0.5), self._signals)
        return outputs["loss"]


def _batches(program: Program, loader: Loader) -> list[tuple[Batch, HostColumns]]:
    stream = iter(loader)
    try:
        return list(itertools.islice(stream, NUM_LOSSES))
    finally:
        stream.close()


def _mfu(program: Program, batch: Batch, seconds: float) -> dict[str, float | None]:
    forward = model_flops.forward_flops(program, batch)
    if forward is None:
        return {"tflops": None, "mfu": None}
    tflops = model_flops.TRAINING * sum(forward.values()) / seconds / program.mesh.size * 1e-12
    return {"tflops": tflops, "mfu": tflops / step.ceiling_tflops()}


def _traced(sample, trace: str | None) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(trace or temporary)
        jax.profiler.start_trace(str(folder))
        jax.block_until_ready(sample())
        jax.profiler.stop_trace()
        return overlap.summary(overlap.timelines(folder), step.STEPS)

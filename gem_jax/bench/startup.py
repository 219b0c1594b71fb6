"""How long a run takes to its first step, by phase, in processes of their own: with an empty compile cache, and with a full one."""

import json
import os
import subprocess
import sys
import tempfile
import time

import jax
import numpy as np

from gem_jax.config import Config
from gem_jax.data.batch import Batch
from gem_jax.data.loader import Loader
from gem_jax.errors import UserError
from gem_jax.parallel.lockstep import placed_signals
from gem_jax.parallel.mesh import local_devices
from gem_jax.parallel.sharding import place_batch
from gem_jax.run.plan import RunPlan
from gem_jax.run.program import NUM_SIGNALS, Program
from gem_jax.training.state import TrainState

type Phases = dict[str, float]
"""Seconds: data (with plan and program), state, lower (with tracing), compile, first_step, total; imports are left out."""


class Started:
    """A run after its first step.

    Attributes:
      program: its functions.
      loader: of its training data.
      compiled: the training step.
      host_batch: the first batch, on the host.
      batch: the same, on the mesh.
      state: after the step.
      phases: what each took.
    """

    program: Program
    loader: Loader
    compiled: jax.stages.Compiled
    host_batch: Batch
    batch: Batch
    state: TrainState

    def __init__(self, config: Config):
        self.phases: Phases = {}
        began = self._last = time.perf_counter()
        splits = config.data.build()
        self.program = Program.of(config, splits.schema, RunPlan.of(config, splits.schema))
        mesh = self.program.mesh
        seed = config.train.seed if config.train.shuffle else None
        self.loader = Loader(splits.train, config.batch, seed=seed, num_epochs=None, num_devices=local_devices(mesh))
        batches = iter(self.loader)
        self.host_batch, _ = next(batches)
        batches.close()
        self.batch = place_batch(self.host_batch, mesh)
        self._signals = placed_signals(np.zeros(NUM_SIGNALS, np.int32), mesh)
        self._lap("data")
        self.state = self.program.init(config.train.seed)
        jax.block_until_ready(self.state)
        self._lap("state")
        lowered = self.program.lower()
        self._lap("lower")
        self.compiled = lowered.compile()
        self._lap("compile")
        jax.block_until_ready(self.step(self.batch))
        self._lap("first_step")
        self.phases["total"] = time.perf_counter() - began

    def recompile(self, options: dict[str, str]) -> None:
        """Takes steps by a program compiled with other options of XLA's from here on."""
        self.compiled = self.program.lower().compile(compiler_options=options)

    def step(self, batch: Batch) -> jax.Array:
        """Takes a step and returns its loss, which need not be there yet."""
        self.state, outputs = self.compiled(self.state, batch, np.float32(0.5), self._signals)
        return outputs["loss"]

    def _lap(self, name: str) -> None:
        now = time.perf_counter()
        self.phases[name], self._last = now - self._last, now


def measure(words: list[str]) -> tuple[Phases, Phases]:
    """Cold and warm, for a config and its overrides as on a command line; this process's device stays free.

    Raises:
      UserError: a process failed; the message ends with what it said last.
    """
    with tempfile.TemporaryDirectory() as folder:
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_COMPILATION", "JAX_PERSISTENT"))}
        environment["GEM_JAX_CACHE"] = folder
        command = [sys.executable, "-m", "gem_jax.bench", "start", *words]
        cold, warm = (_phases(command, environment) for _ in range(2))
    return cold, warm


def _phases(command: list[str], environment: dict[str, str]) -> Phases:
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        said = done.stderr.strip().splitlines() or ["nothing was said"]
        raise UserError(f"the start of a run failed: {said[-1].removeprefix('error: ')}")
    return json.loads(done.stdout.strip().splitlines()[-1])

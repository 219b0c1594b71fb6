"""The main job: train a model on ads examples, evaluate it, write a run folder. Read it from top to bottom.

    python -m gem_jax.train configs/gem_debug.py                          train the default
    python -m gem_jax.train configs/gem_debug.py train.seed=1             with a field changed
    python -m gem_jax.train configs/gem_debug.py --resume                 continue the newest run of that name
    python -m gem_jax.train configs/gem_debug.py --init-from runs/other   start from another run's parameters
    python -m gem_jax.train configs/gem_debug.py --help                   every field, its meaning and its value

What is wrong with a config, data or a checkpoint is said in one line; with GEM_TRACEBACK=1 in the environment it comes with Python's
traceback, as every other error does.

The way of the data:  source -> loader (shuffle, pack) -> Batch -> train step -> logits -> metrics -> run folder.
"""

import dataclasses
import math
import os
import pathlib
import shlex
import sys
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from rich.console import Console

from gem_jax import checkpoint as ckpt
from gem_jax.cli import Command, main_of
from gem_jax.config import Config, ConfigError, to_dict
from gem_jax.data.loader import Loader
from gem_jax.data.source import Source, Splits
from gem_jax.embedding.planner import table_of
from gem_jax.evaluation.evaluate import evaluate
from gem_jax.evaluation.evaluator import scalars
from gem_jax.files import write_json
from gem_jax.parallel import processes, xla_flags
from gem_jax.parallel.lockstep import Lockstep
from gem_jax.parallel.mesh import local_devices
from gem_jax.parallel.sharding import place_batch
from gem_jax.report.console import print_table
from gem_jax.report.html import write_report
from gem_jax.report.log import RunLogger
from gem_jax.report.window import Window
from gem_jax.run.memory import device_batch, embedded_shapes
from gem_jax.run.plan import RunPlan
from gem_jax.run.program import Program
from gem_jax.training.cost import forward_flops
from gem_jax.training.progress import Progress, interruption
from gem_jax.training.state import TrainState


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """What the command takes beside a config and its fields."""

    resume: bool = False
    """Continue the newest run of that name from its last checkpoint."""
    init_from: str | None = None
    """Folder of a run whose parameters a new run starts from."""
    init_only: tuple[str, ...] = ("*",)
    """With init_from: patterns of the parameters to take, e.g. 'tables/*' or 'dense/layers/*'."""


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class Result:
    """A finished run.

    Attributes:
      run_dir: its folder.
      summary: the contents of its summary.json.
      program: its functions.
      state: what it learned.
      interrupted: whether it was stopped before its end.
    """

    run_dir: pathlib.Path
    summary: dict[str, Any]
    program: Program
    state: TrainState
    interrupted: bool

    def __repr__(self) -> str:
        measures = {task: {k: m[k] for k in ("ne", "auc")} for task, m in self.summary["eval"].items()}
        return f"Result({self.run_dir}, {self.summary['examples']:,} examples, eval={measures})"


def train(
    config: Config,
    options: Options = Options(),  # noqa: B008 (frozen)
    *,
    console: Console | None = None,
) -> Result:
    """Train, evaluate and report one run.

    Args:
      config: everything about the run.
      options: how it begins.
      console: where progress and results are shown; standard output unless given, `Console(quiet=True)` for nothing.

    Raises:
      UserError: something that the user gave is wrong; the message says what to change.
      DivergedError: the loss or a logit became NaN or infinite.
    """
    started = time.perf_counter()
    console = console or Console()
    _check_platform(config)

    # --- Data: examples by index, shuffled and packed into batches of static shape --------------------------------------------
    splits = config.data.build()
    total = max(round(config.train.epochs * len(splits.train)), 1)

    # --- Plan and program: where everything lies, and the jitted steps; nothing is allocated yet -------------------------------
    plan = RunPlan.of(config, splits.schema)
    program = Program.of(config, splits.schema, plan)
    loader = Loader(
        splits.train,
        config.batch,
        seed=config.train.seed if config.train.shuffle else None,
        num_epochs=math.ceil(config.train.epochs),
        shard_index=jax.process_index(),
        shard_count=jax.process_count(),
        num_devices=local_devices(plan.mesh),
    )

    # --- Where the run stands: at its start, or at a checkpoint ----------------------------------------------------------------
    run = ckpt.Run.newest(config, console) if options.resume else ckpt.Run.new(config, console)
    progress = Progress()
    if options.resume:
        state, position = run.restore(program, splits.identity())
        progress = Progress(**position["progress"])
        progress.position = position["positions"][jax.process_index()]
        loader.restore(position["loader"] | {"position": progress.position})
    else:
        state = program.init(config.train.seed, base_rate_logits(splits.train))
        if options.init_from is not None:
            state = run.take(state, program, options.init_from, options.init_only)
    resume_step = progress.step if options.resume else None
    batches = iter(loader)
    turns = iter(Lockstep(_placed(batches, program), lambda: _place(loader.empty_batch(), program), (stop, is_due)))

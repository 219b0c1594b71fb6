"""The main job: train a model on ads examples, evaluate it, write a run folder. Read it from top to bottom.

    python -m gem_jax.train configs/gem_debug.py                    train the default
    python -m gem_jax.train configs/gem_debug.py train.seed=1       with a field changed
    python -m gem_jax.train configs/gem_debug.py --resume           continue the newest run of that name
    python -m gem_jax.train configs/gem_debug.py --help             every field, its meaning and its default

An error in a config or in data is one line; with GEM_TRACEBACK=1 in the environment it comes with Python's traceback.

The way of the data:  source -> loader (shuffle, pack) -> Batch -> train step -> logits -> metrics -> run folder.
"""

import dataclasses
import itertools
import math
import os
import pathlib
import shlex
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console

from gem_jax.config import Config, ConfigError, from_command_line
from gem_jax.data.loader import Loader
from gem_jax.data.source import Source, Splits
from gem_jax.layout import plan_run
from gem_jax.parallel import processes, xla_flags
from gem_jax.parallel.mesh import local_devices
from gem_jax.parallel.sharding import place_batch
from gem_jax.checkpoint.checkpoint import Checkpointer, write_json
from gem_jax.training.cost import forward_flops
from gem_jax.evaluation.evaluate import evaluate
from gem_jax.report.console import RunLogger, print_table
from gem_jax.evaluation.metrics import scalars
from gem_jax.report.html import write_report
from gem_jax.checkpoint.run_folder import new_run_folder, newest_run_folder
from gem_jax.training.state import Setup, TrainState, count_parameters, init_state
from gem_jax.training.step import make_eval_step, make_table_average, make_train_step
from gem_jax.training.window import DivergedError, Window


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
    """A finished run: its folder, the contents of its summary.json, and the trained state."""

    run_dir: pathlib.Path
    summary: dict[str, Any]
    setup: Setup
    state: TrainState
    interrupted: bool


@dataclasses.dataclass(kw_only=True)
class Progress:
    """What a run counts; kept in its checkpoints.

    examples: of all processes; truncated: source -> events dropped because a history was longer than its max_len, of this process;
    seconds: of training, start-up left out; timed_examples: trained on in those seconds.
    """

    step: int = 0
    examples: int = 0
    truncated: dict[str, int] = dataclasses.field(default_factory=dict)
    seconds: float = 0.0
    timed_examples: int = 0

    def advance(self, num_examples: int, truncated: dict[str, int]) -> None:
        self.step += 1
        self.examples += num_examples
        for source, dropped in truncated.items():
            self.truncated[source] = self.truncated.get(source, 0) + dropped

    def count_seconds(self, since: float) -> float:
        """Adds the time since `since`, a value of `time.perf_counter`; returns the time now."""
        now = time.perf_counter()
        self.seconds += now - since
        return now


def train(config: Config, *, resume: bool = False, console: Console | None = None) -> Result:
    """Train, evaluate and report one run.

    Args:
      config: everything about the run.
      resume: continue the newest run of that name from its last checkpoint.
      console: where progress and results are shown; standard output unless given, `Console(quiet=True)` for nothing.

    Raises:
      DataError, ConfigError, CheckpointError, ValueError: something the user gave is wrong; the message says what to change.
      DivergedError: the loss or a logit became NaN or infinite.
    """
    started = time.perf_counter()
    console = console or Console()

    _check_dtype(config)

    # --- Data: examples by index, shuffled and packed into batches of static shape --------------------------------------------
    splits = config.data.build()
    _check_names(config, splits)
    total = max(round(config.train.epochs * len(splits.train)), 1)

    # --- Mesh: the devices of all processes, and where the tables lie on them -------------------------------------------------
    layout = plan_run(config, splits.schema, console)
    loader = Loader(
        splits.train,
        config.batch,
        seed=config.train.seed if config.train.shuffle else None,
        num_epochs=math.ceil(config.train.epochs),
        shard_index=jax.process_index(),
        shard_count=jax.process_count(),
        num_devices=local_devices(layout.mesh),
    )

    # --- Model, tables and optimizers: one state, one jitted step that trains it ----------------------------------------------
    setup, state = init_state(
        config.model,
        splits.schema,
        config.optimizer,
        seed=config.train.seed,
        base_logits=base_rate_logits(splits.train),
        dtype=jnp.dtype(config.train.compute_dtype),
        mesh=layout.mesh,
        tables=config.tables,
        schemes=layout.schemes,
        owners=layout.owners,
    )
    train_step = make_train_step(
        setup, task_weights=config.train.task_weights, domain_weights=config.train.domain_weights
    )
    eval_step, in_step = make_eval_step(setup), make_table_average(setup)

    def evaluation(source: Source) -> dict[str, Any]:
        return evaluate(setup, eval_step, in_step(state), source, config.batch, config.train.eval_examples)

    # --- Where the run stands: at its start, or at the last checkpoint of the newest run of this name -------------------------
    progress = Progress()
    resume_step = None
    if resume:
        run_dir = pathlib.Path(processes.first_process_says(str(newest_run_folder(config.runs_dir, config.name))))
        checkpointer = Checkpointer(run_dir)
        state, position = checkpointer.restore(state)
        progress = Progress(**position["progress"])
        index = jax.process_index()
        loader.restore({**position["loader"], "shard_index": index, "position": position["positions"][index]})
        resume_step = progress.step
    batches = iter(loader)
    steps = processes.side_by_side(batches, loader.empty_batch)
    # Data that cannot be read shows here, before anything is written. A finished run that is resumed has nothing left.
    first = next(steps, None) if progress.examples < total else None
    if not resume:
        run_dir = pathlib.Path(processes.first_process_says(str(new_run_folder(config.runs_dir, config.name))))
        checkpointer = Checkpointer(run_dir)
    if processes.is_first():
        write_json(run_dir / "config.json", config.to_dict())

    def save(since: float) -> float:
        window.flush()  # raises before a diverged model takes the place of a checkpoint
        now = progress.count_seconds(since)
        stream = loader.state()
        positions = processes.gather_rows(np.array([stream["position"]])).tolist()  # every process has its own
        checkpointer.save(
            in_step(state), {"progress": dataclasses.asdict(progress), "loader": stream, "positions": positions}
        )
        return now

    # --- The loop: one step a batch; what a step returns is looked at while the next one runs ---------------------------------
    log = RunLogger(
        run_dir if processes.is_first() else None, total_examples=total, resume_step=resume_step, console=console
    )
    window = Window(log, setup)
    time_to_first_step_s = None
    with log, _interruption() as interrupted:
        clock = time.perf_counter()
        for batch, host, num_examples in itertools.chain([first], steps) if first else ():
            before = progress.examples
            state, outputs = train_step(state, place_batch(batch, layout.mesh), np.float32(before / total))
            progress.advance(num_examples, host.truncated)
            if time_to_first_step_s is None:  # this step was compiled: start-up, not training
                jax.block_until_ready(outputs)
                clock = time.perf_counter()
                time_to_first_step_s = clock - started
            else:
                progress.timed_examples += num_examples
            window.add(progress.step, progress.examples, outputs, host)
            if processes.any_process(interrupted()) or progress.examples >= total:
                break
            if _passed(config.train.checkpoint_every, before, progress.examples):
                clock = save(clock)
            if _passed(config.train.eval_every, before, progress.examples):
                pause = time.perf_counter()
                result = evaluation(splits.valid or splits.test)
                log.log(progress.step, progress.examples, scalars("valid" if splits.valid else "eval", result))
                clock += time.perf_counter() - pause
        save(clock)
        batches.close()
        checkpointer.close()

        # --- Evaluation and report --------------------------------------------------------------------------------------------
        stopped = processes.any_process(interrupted())
        result = {}
        if not stopped:
            result = evaluation(splits.test)
            log.log(progress.step, progress.examples, scalars("eval", result))

    summary = {
        "config": config.to_dict(),
        "device": f"{layout.mesh.size} x {jax.devices()[0].device_kind}",
        "mesh": dict(layout.mesh.shape),
        "jax": jax.__version__,
        "examples": progress.examples,
        "examples_per_s": progress.timed_examples / progress.seconds if progress.timed_examples else None,
        "time_to_first_step_s": time_to_first_step_s,
        "parameters": count_parameters(setup),
        "forward_flops_per_example": forward_flops(setup, loader.device_batch()),
        "truncated_events": progress.truncated,
        "eval": result,
    }
    if processes.is_first():
        if not stopped:
            write_json(run_dir / "summary.json", summary)
            print_table(result, console)
        write_report(run_dir)
    return Result(run_dir=run_dir, summary=summary, setup=setup, state=state, interrupted=stopped)


def base_rate_logits(source: Source, limit: int = 20_000) -> np.ndarray:
    """[N] float32: the logit of each task's base rate among the first `limit` examples; a new model starts from there."""
    labels = source.read(np.arange(min(limit, len(source)))).labels
    observed = np.maximum((~np.isnan(labels)).sum(axis=0), 1)
    rate = (np.nansum(labels, axis=0) + 0.5) / (observed + 1.0)  # never 0 or 1
    return np.log(rate / (1 - rate)).astype(np.float32)


def _passed(every: int | None, before: int, now: int) -> bool:
    return every is not None and before // every < now // every


def _check_dtype(config: Config) -> None:
    """XLA's fused matmuls (YNNPACK) of bfloat16 end the process on a CPU, without a word: seen with jax 0.11.2."""
    unfused = "--xla_cpu_experimental_ynn_fusion_type="
    if config.train.compute_dtype != "bfloat16" or jax.default_backend() != "cpu":
        return
    if unfused not in os.environ.get("XLA_FLAGS", "").split():
        raise ConfigError(
            "train.compute_dtype=bfloat16 would crash XLA on a CPU; leave it float32, or set XLA_FLAGS to "
            f"'{unfused}' before Python starts, which turns off the fused matmuls that crash"
        )


def _check_names(config: Config, splits: Splits) -> None:
    """Weights that name no task or domain of the data would silently do nothing."""
    tasks = [task.name for task in splits.schema.tasks]
    for field, given, known in (
        ("task_weights", config.train.task_weights, tasks),
        ("domain_weights", config.train.domain_weights, list(splits.schema.domains)),
    ):
        for name in given:
            if name not in known:
                raise ConfigError(
                    f"train.{field} names '{name}', which the data does not have; it has {', '.join(known)}"
                )


@contextmanager
def _interruption() -> Iterator[Callable[[], bool]]:
    """Within it, the first Ctrl-C or SIGTERM only sets a flag, so that the loop can save; a second Ctrl-C stops at once."""
    caught: list[int] = []

    def handler(signum, frame):
        if caught:
            signal.default_int_handler(signum, frame)
        caught.append(signum)

    previous = {s: signal.signal(s, handler) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(caught)
    finally:
        for s, old in previous.items():
            signal.signal(s, old)


def main(arguments: list[str]) -> int:
    """The command line; returns the exit code: 0, 1 (diverged), 2 (the user's input is wrong), 130 (interrupted).

    An error is one line on standard error; GEM_TRACEBACK=1 in the environment lets it through with its traceback.
    """
    console = Console()
    try:
        _, config, resume = from_command_line(arguments)
        xla_flags.set_flags()
        processes.start()
        console.quiet = not processes.is_first()
        result = train(config, resume=resume, console=console)
    except KeyboardInterrupt:
        print("interrupted: stopped at once; what the last checkpoint does not hold is lost", file=sys.stderr)
        return 130
    except (ValueError, OSError, DivergedError) as error:  # DataError, ConfigError and CheckpointError are ValueErrors
        if os.environ.get("GEM_TRACEBACK") == "1":
            raise
        diverged = isinstance(error, DivergedError)
        message = " ".join(str(error).split())
        print(f"{'diverged' if diverged else 'error'}: {message}", file=sys.stderr)
        return 1 if diverged else 2
    if result.interrupted:
        command = ["python", "-m", "gem_jax.train", *(a for a in arguments if a != "--resume"), "--resume"]
        done = f"Interrupted and saved after {result.summary['examples']:,} examples."
        _say(console, f"{done} Continue with:\n  {shlex.join(command)}")
        return 130
    _say(console, f"Run folder: {result.run_dir}  (open report.html in a browser)")
    return 0


def _say(console: Console, message: str) -> None:
    """Prints a message as it is: a path or a command to copy may be longer than a line and hold brackets."""
    console.print(message, markup=False, highlight=False, soft_wrap=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""The main job: train a model on ads examples, evaluate it, write a run folder. Read it from top to bottom.

    python -m gem_jax.train configs/gem_debug.py                          train the default
    python -m gem_jax.train configs/gem_debug.py train.seed=1             with a field changed
    python -m gem_jax.train configs/gem_debug.py --resume                 continue the newest run of that name
    python -m gem_jax.train configs/gem_debug.py --init-from runs/other   start from another run's parameters
    python -m gem_jax.train configs/gem_debug.py --help                   every field, its meaning and its value

What is wrong with a config, data or a checkpoint is said in one line; GEM_TRACEBACK=1 in the environment shows its traceback too.

The way of the data:  source -> loader (shuffle, pack) -> Batch -> train step -> logits -> metrics -> run folder.
"""

import dataclasses
import math
import os
import pathlib
import shlex
import sys
import time
from typing import Any

import jax
import numpy as np
from rich.console import Console

from gem_jax.checkpoint.resume import Change
from gem_jax.checkpoint.run_folder import new_run_folder, newest_run_folder
from gem_jax.cli import Command, Request, run
from gem_jax.config import Config, to_dict
from gem_jax.data.loader import Loader
from gem_jax.data.source import Source
from gem_jax.embedding.planner import table_of
from gem_jax.errors import UserError
from gem_jax.evaluation.errors import DivergedError
from gem_jax.evaluation.evaluate import check_counts, evaluate
from gem_jax.evaluation.metrics import Measures, scalars
from gem_jax.evaluation.oracle import oracle_ne
from gem_jax.files import write_json
from gem_jax.parallel import processes, xla_flags
from gem_jax.parallel.lockstep import Lockstep, placed_signals
from gem_jax.parallel.mesh import local_devices
from gem_jax.parallel.sharding import place_batch
from gem_jax.report.console import print_table
from gem_jax.report.log import RunLogger
from gem_jax.report.page import render_inline, write_report
from gem_jax.report.window import Window
from gem_jax.run.best import Criterion
from gem_jax.run.checks import check_parts, check_platform, explained, total_examples
from gem_jax.run.observer import Observer
from gem_jax.run.plan import RunPlan
from gem_jax.run.program import Program
from gem_jax.run.saves import Saves
from gem_jax.training.progress import Progress, interruption
from gem_jax.training.state import TrainState


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """How a run begins."""

    resume: bool = False
    """Continue the newest run of that name from its last checkpoint."""
    init_from: str | None = None
    """Folder of a run whose parameters this new run starts from."""
    init_only: tuple[str, ...] = ("*",)
    """Which parameters init_from takes, by patterns such as tables/* or dense/layers."""

    def __post_init__(self):
        if self.resume and self.init_from is not None:
            raise UserError("--resume goes on with a run and --init-from begins one; give one of them")


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class Result:
    """A finished run.

    Attributes:
      run_dir: its folder.
      summary: the contents of its summary.json.
      program: its functions.
      state: what it learned; with train.keep_best what it had learned at its best.
      interrupted: whether it was stopped before its end.
    """

    run_dir: pathlib.Path
    summary: dict[str, Any]
    program: Program
    state: TrainState
    interrupted: bool

    def __repr__(self) -> str:
        measures = {task: {"ne": m["ne"], "auc": m["auc"]} for task, m in self.summary["eval"].items()}
        return f"Result(run_dir={str(self.run_dir)!r}, examples={self.summary['examples']:,}, eval={measures})"

    def _repr_html_(self) -> str:
        """What a notebook shows: the learning curves and the table of results."""
        return render_inline(self.run_dir, self.summary)


def train(
    config: Config, options: Options | None = None, *, console: Console | None = None, observer: Observer | None = None
) -> Result:
    """Train, evaluate and report one run.

    Args:
      config: everything about the run.
      options: how it begins; anew unless given.
      console: where progress and results are shown; standard output unless given, `Console(quiet=True)` for nothing.
      observer: sees what each step returned, e.g. a teacher's labels of examples that it has not trained on yet.

    Raises:
      UserError: something that the user gave is wrong; the message says what to change.
      DivergedError: the loss or a logit became NaN or infinite.
    """
    started = time.perf_counter()
    options, console, observer = options or Options(), console or Console(), observer or Observer()
    check_platform(config)

    # --- Data: examples by index, shuffled and packed into batches of static shape --------------------------------------------
    splits = config.data.build()
    total = total_examples(config, splits.train)
    criterion = Criterion.of(config.train, splits)

    # --- Plan and program: where everything lies, and the jitted steps; nothing is allocated yet -------------------------------
    plan = RunPlan.of(config, splits.schema)
    program = Program.of(config, splits.schema, plan, observer.representations)
    loader = Loader(
        splits.train,
        config.batch,
        seed=config.train.seed if config.train.shuffle else None,
        num_epochs=math.ceil(config.train.epochs),
        shard_index=jax.process_index(),
        shard_count=jax.process_count(),
        num_devices=local_devices(plan.mesh),
    )

    # --- Where the run stands: at its start, or at the newest checkpoint of the newest run of this name ------------------------
    find = newest_run_folder if options.resume else new_run_folder
    run_dir = pathlib.Path(processes.first_process_says(str(find(config.runs_dir, config.name))))
    saves = Saves(run_dir, program, loader, splits.identity(), lambda line: _say(console, line))
    progress = Progress()
    changes: tuple[Change, ...] = ()
    if options.resume:
        state, progress, changes = saves.resume()
    else:
        state = program.init(config.train.seed, base_rate_logits(splits.train))
        if options.init_from is not None:
            state = saves.take(state, options.init_from, options.init_only)
    resume_step = progress.step if options.resume else None
    check_parts(splits, config.batch.examples)  # a table that shrank is the checkpoint's to refuse, by its name

    def is_over() -> bool:
        return progress.examples >= total or (criterion is not None and criterion.is_exhausted(progress))

    # --- The loop: one step a batch; what a step returns is looked at while the next one runs ----------------------------------
    with interruption() as interrupted:
        batches = iter(loader)
        lockstep = Lockstep(
            ((place_batch(batch, plan.mesh), host) for batch, host in batches),
            lambda: (place_batch(loader.empty_batch()[0], plan.mesh), loader.empty_batch()[1]),
            flags=(lambda: interrupted() or lockstep.has_failed(), lambda: saves.is_due(progress)),
        )
        turns = iter(lockstep)
        # Data that cannot be read shows here, before anything is written. A finished run that is resumed has nothing left.
        turn = None if is_over() else next(turns, None)
        lockstep.check()
        saves.begin(progress, changes)
        observer.begin(program, splits, progress)
        _show(plan, console)
        log = RunLogger(
            run_dir if processes.is_first() else None, total_examples=total, resume_step=resume_step, console=console
        )
        window = Window(log, splits.schema)
        time_to_first_step_s = None
        stopped = False

        def save(since: float) -> float:
            window.flush()  # raises before a diverged model takes the place of a checkpoint
            observer.flush()
            now = progress.count_seconds(since)
            saves.save(state, progress)
            return now

        def say_saved() -> None:
            after = f"Saved after {progress.examples:,} examples"
            _say(console, f"{after}: --resume goes on with the same data, --init-from {run_dir} begins anew from there")

        def evaluation(part: str, source: Source) -> dict[str, Measures]:
            limit = config.train.eval_examples
            try:
                result = evaluate(program, program.in_step(state), source, config.batch, limit)
            except DivergedError as error:
                raise explained(error, source, limit) from error
            check_counts(result, part)
            return result

        def evaluate_on_the_way() -> None:
            """Shows how good the model is by now, and keeps it if it is the best so far."""
            part, source = ("eval", splits.test) if splits.valid is None else ("valid", splits.valid)
            try:
                result = evaluation("test" if part == "eval" else part, source)
            except (UserError, OSError):
                if jax.process_count() == 1:  # a save needs all processes, and the others know nothing of this
                    save(time.perf_counter())
                    saves.close(progress)
                    say_saved()
                raise
            log.evaluation(progress.step, progress.examples, part, result)
            if criterion is not None and criterion.is_best(result, progress):
                window.flush()
                observer.flush()
                saves.save_best(state, progress)

        def is_evaluation_due(before: int) -> bool:
            if progress.examples >= total:  # the test is to come; the last state may still be the best
                return criterion is not None
            every = config.train.eval_every
            return every is not None and before // every < progress.examples // every

        with log:
            clock = time.perf_counter()
            if turn is None:
                reason = "raise train.epochs" if progress.examples >= total else "raise train.patience"
                log.print(f"already trained on {progress.examples:,} of {total:,} examples; {reason} to go on")
                if criterion is not None and progress.best is None:  # asked for only now
                    evaluate_on_the_way()
            while turn is not None and not is_over():
                stopped, is_due = turn.flags
                if stopped:
                    break
                if is_due:
                    clock = save(clock)
                before = progress.examples
                signals = placed_signals(turn.signals, plan.mesh)
                state, outputs = program.train_step(state, turn.batch, before / total, signals)
                turn.sums = outputs["signals"]
                progress.advance(turn.num_examples, turn.host.position, turn.host.truncated)
                if time_to_first_step_s is None:  # this step was compiled: start-up, not training
                    jax.block_until_ready(outputs)
                    clock = time.perf_counter()
                    time_to_first_step_s = clock - started
                else:
                    progress.timed_examples += turn.num_examples
                window.add(progress.step, progress.examples, outputs, turn.batch, turn.host)
                observer.step(outputs, turn.host)
                if is_evaluation_due(before):
                    clock = progress.count_seconds(clock)
                    evaluate_on_the_way()
                    clock = time.perf_counter()
                turn = next(turns, None)
            save(clock)
            batches.close()
            saves.close(progress)
            if not is_over():  # what was read ahead of the end may fail
                if processes.any_process(lockstep.has_failed()):
                    say_saved()
                lockstep.check()
            window.check_counted()

            # --- Evaluation and report ----------------------------------------------------------------------------------------
            stopped = processes.any_process(stopped or interrupted())
            result: dict[str, Measures] = {}
            if not stopped:
                if criterion is not None:
                    log.print(criterion.line(progress))
                    state = saves.take_best(state, progress)
                result = evaluation("test", splits.test)
                tested = progress.best or progress
                log.log(tested.step, tested.examples, scalars("eval", result))

    summary = {
        "config": to_dict(config),
        "device": f"{plan.mesh.size} x {jax.devices()[0].device_kind}",
        "mesh": dict(plan.mesh.shape),
        "jax": jax.__version__,
        "examples": progress.examples,
        "examples_per_s": progress.timed_examples / progress.seconds if progress.timed_examples else None,
        "time_to_first_step_s": time_to_first_step_s,
        "parameters": program.count_parameters(),
        "forward_flops_per_example": program.forward_flops(),
        "truncated_events": progress.truncated,
        "eval": result,
        "oracle_ne": oracle_ne(splits.test, config.train.eval_examples) if result else {},
    }
    if criterion is not None:
        summary |= criterion.summary(progress)
    if processes.is_first():
        if not stopped:
            write_json(run_dir / "summary.json", summary)
            print_table(result, console)
        write_report(run_dir)
    return Result(run_dir=run_dir, summary=summary, program=program, state=state, interrupted=stopped)


def base_rate_logits(source: Source, limit: int = 20_000) -> np.ndarray:
    """[N] float32: the logit of each task's base rate among the first `limit` examples; a new model starts from there."""
    labels = source.read(np.arange(min(limit, len(source)))).labels
    observed = np.maximum((~np.isnan(labels)).sum(axis=0), 1)
    rate = (np.nansum(labels, axis=0) + 0.5) / (observed + 1.0)  # never 0 or 1
    return np.log(rate / (1 - rate)).astype(np.float32)


def _show(plan: RunPlan, console: Console) -> None:
    """The tables' places where there are several devices, and what the plan predicts of memory."""
    if processes.is_first():
        if plan.mesh.size > 1:
            console.print(table_of(plan.tables))
        _say(console, plan.memory.line())


def _say(console: Console, message: str) -> None:
    """Prints a message as it is: a path or a command to copy may be longer than a line and hold brackets."""
    console.print(message, markup=False, highlight=False, soft_wrap=True)


COMMAND = Command(name="gem_jax.train", about="Train a model on ads examples, evaluate it, report.", options=Options)


def main(arguments: list[str]) -> int:
    """The command line; returns the exit code: 0, 1 (diverged), 2 (the user's input is wrong), 130 (interrupted)."""
    console = Console()

    def body(request: Request) -> int:
        xla_flags.set_flags()
        processes.start()
        console.quiet = not processes.is_first()
        try:
            result = train(request.config, request.options, console=console)
        except DivergedError as error:
            if os.environ.get("GEM_TRACEBACK") == "1":
                raise
            print(f"diverged: {error}", file=sys.stderr)
            return 1
        if result.interrupted:
            command = ["python", "-m", "gem_jax.train", *(a for a in arguments if a != "--resume"), "--resume"]
            done = f"Interrupted and saved after {result.summary['examples']:,} examples."
            _say(console, f"{done} Continue with:\n  {shlex.join(command)}")
            return 130
        _say(console, f"Run folder: {result.run_dir}  (open report.html in a browser)")
        return 0

    return run(COMMAND, arguments, body)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

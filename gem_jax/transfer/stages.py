"""The stages of a transfer, each of which leaves a folder: a run that is trained and scored, a teacher's labels.

A stage that was finished is recognised by what it left and is not repeated; one that was killed goes on from its run's newest
checkpoint, or from the first file of labels that is missing.
"""

import dataclasses
import fnmatch
import json
import pathlib
from collections.abc import Callable
from typing import Any

from rich.console import Console

from gem_jax.checkpoint.checkpoints import Checkpoints
from gem_jax.checkpoint.errors import CheckpointError
from gem_jax.checkpoint.manifest import as_json
from gem_jax.checkpoint.resume import differences
from gem_jax.checkpoint.run_folder import newest_run_folder
from gem_jax.config import Config, to_dict
from gem_jax.errors import UserError
from gem_jax.evaluation.evaluate import scored_examples
from gem_jax.evaluation.scores import Scores
from gem_jax.evaluation.scores_file import FILE_NAME, read_scores, write_scores
from gem_jax.run.observer import Observer
from gem_jax.run.saves import CHECKPOINTS
from gem_jax.scoring.run import load_run
from gem_jax.scoring.saved import classes_of
from gem_jax.train import Options, train
from gem_jax.transfer.manifest import EmbeddingConfig
from gem_jax.transfer.scoring import ProgressiveLabels, label

WHERE = ("runs_dir", "data.*path", "data.*labels")
"""Patterns of config fields that say where something is, not what it is."""

type Say = Callable[[str], None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage:
    """A finished run.

    Attributes:
      run_dir: its folder.
      summary: the contents of its summary.json.
      scores: task -> its test examples as they are scored by what serves.
    """

    run_dir: pathlib.Path
    summary: dict[str, Any]
    scores: dict[str, Scores]


def trained(config: Config, options: Options, say: Say, observer: Observer | None = None) -> Stage:
    """The run of a config, trained to its end and scored on its test part.

    Scored is what serves, from the run's folder alone: the student without what only its training needed.

    Args:
      config: of the run; its name is the stage's.
      options: how the run begins, if it has not yet.
      say: takes a line for the user.
      observer: of the training.

    Raises:
      UserError: the stage was finished with another config, or its run or data are wrong.
      KeyboardInterrupt: the run was stopped; it has saved itself.
    """
    run_dir = _newest(config)
    if run_dir is None or not (run_dir / "summary.json").exists():
        goes_on = run_dir is not None and Checkpoints(run_dir / CHECKPOINTS).candidates()
        say(f"{config.name}: {'goes on' if goes_on else 'begins'}")
        options = Options(resume=True) if goes_on else options
        result = train(config, options, console=Console(quiet=True), observer=observer)
        if result.interrupted:  # the run caught the signal to save itself; it was meant for the whole transfer
            raise KeyboardInterrupt
        run_dir = result.run_dir
    else:
        _check_same(config, run_dir)
    if not (run_dir / FILE_NAME).exists():
        run = load_run(run_dir, classes=classes_of(config), say=say)
        source = run.source(config.data.build().test)
        scores = scored_examples(run.program, run.state, source, config.batch, config.train.eval_examples)
        write_scores(run_dir / FILE_NAME, scores, [task.name for task in run.schema.tasks])
    scored, tasks = read_scores(run_dir / FILE_NAME)
    return Stage(
        run_dir=run_dir,
        summary=json.loads((run_dir / "summary.json").read_text(encoding="utf-8")),
        scores={task: scored.task(n) for n, task in enumerate(tasks)},
    )


def taught_while_training(
    config: Config, options: Options, labels: pathlib.Path, embedding: EmbeddingConfig, say: Say
) -> Stage:
    """A teacher trained to its end, with labels of its training part from its own pass over it, and of the others from its end.

    Raises:
      UserError: as for `trained`, or the labels are of another teacher or other data.
    """
    stage = trained(config, options, say, observer=ProgressiveLabels(labels, embedding))
    _label(config, stage, labels, ("valid", "test"), embedding, say)
    return stage


def taught_afterwards(
    config: Config, data: Config, labels: pathlib.Path, embedding: EmbeddingConfig, say: Say
) -> Stage:
    """A teacher trained to its end, which then labels all parts of the data of another run.

    Raises:
      UserError: as for `trained`, or the labels are of another teacher or other data.
    """
    stage = trained(config, Options(), say)
    _label(data, stage, labels, ("train", "valid", "test"), embedding, say)
    return stage


def _label(
    data: Config, stage: Stage, labels: pathlib.Path, parts: tuple[str, ...], embedding: EmbeddingConfig, say: Say
) -> None:
    done = labels / "done"
    if done.exists():
        return
    run = load_run(stage.run_dir, classes=classes_of(data), say=say)
    label(run, data.data, labels, parts=parts, embedding=embedding, say=lambda line: None)
    done.touch()


def _newest(config: Config) -> pathlib.Path | None:
    try:
        return newest_run_folder(config.runs_dir, config.name)
    except CheckpointError:
        return None


def _check_same(config: Config, run_dir: pathlib.Path) -> None:
    was = json.loads((run_dir / "config.json").read_text(encoding="utf-8"))
    found = differences(was, as_json(to_dict(config)))
    changed = [name for name in found if not any(fnmatch.fnmatchcase(name, pattern) for pattern in WHERE)]
    if changed:
        raise UserError(
            f"{run_dir} was trained with another {', '.join(sorted(changed)[:3])}; give the transfer another name, or "
            "remove this run"
        )

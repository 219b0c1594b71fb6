"""What a run asks of its checkpoints: save now, keep the best, and go on from the newest."""

import dataclasses
import pathlib
import time
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np

from gem_jax.checkpoint.cadence import Cadence
from gem_jax.checkpoint.checkpoints import Checkpoints, snapshot
from gem_jax.checkpoint.history import record
from gem_jax.checkpoint.manifest import Manifest
from gem_jax.checkpoint.restore import init_from, restore
from gem_jax.checkpoint.resume import Change, compare
from gem_jax.config import to_dict
from gem_jax.data.loader import Loader
from gem_jax.files import write_json
from gem_jax.parallel import processes
from gem_jax.run.program import Program
from gem_jax.training.progress import Progress
from gem_jax.training.state import TrainState

CHECKPOINTS, BEST, PREPARATION = "checkpoints", "best", "preparation"
"""Folders of a run's folder."""

type Say = Callable[[str], None]


@runtime_checkable
class Prepared(Protocol):
    """The config of data that were prepared from a raw log; what was done to them is kept with the run."""

    def preparation(self) -> Any:
        """What has `save(folder)`; None where the data need none."""
        ...


class Saves:
    """The checkpoints of one run. Every method is called by all processes.

    Args:
      run_dir: the run's folder; made by the first save or `begin`.
      program: of the run.
      loader: of its training data, whose position is saved and restored.
      identity: of its data, `Splits.identity`.
      say: takes a line for the user.
    """

    def __init__(self, run_dir: pathlib.Path, program: Program, loader: Loader, identity: dict[str, Any], say: Say):
        self.run_dir = run_dir
        self._program, self._loader, self._identity, self._say = program, loader, identity, say
        self._checkpoints = Checkpoints(run_dir / CHECKPOINTS, program.config.checkpoint.keep)
        self._best = Checkpoints(run_dir / BEST, keep=2)
        self._cadence = Cadence(program.config.checkpoint, time.monotonic(), 0)

    def resume(self) -> tuple[TrainState, Progress, tuple[Change, ...]]:
        """The state and the counters of the newest whole checkpoint, and what has changed since; the loader goes on from there.

        Raises:
          UserError: there is no whole checkpoint, it does not fit, or something has changed that may not.
        """
        config = to_dict(self._program.config)
        changes: tuple[Change, ...] = ()

        def check(manifest: Manifest) -> None:
            nonlocal changes
            changes = compare(manifest, config, self._identity)

        restored = restore(self._checkpoints, self._program, self._say, check=check)
        position = restored.manifest.position
        progress = Progress.of(position["progress"])
        if progress.best is not None and progress.best.metric != self._program.config.train.keep_best:
            progress.best, progress.stale_evaluations = None, 0  # it is sought anew
        if len(position["positions"]) == jax.process_count():
            progress.position = position["positions"][jax.process_index()]
        own = {"shard_index": jax.process_index(), "position": progress.position}
        self._loader.restore(position["loader"] | own)
        self._cadence.saved(time.monotonic(), progress.examples)
        for line in (*restored.report.lines, *map(str, changes)):
            self._say(line)
        return restored.state, progress, changes

    def take(self, state: TrainState, folder: str, patterns: tuple[str, ...]) -> TrainState:
        """The state with another run's parameters, as far as they match the patterns and fit; says what was taken.

        Raises:
          UserError: the folder has no whole checkpoint, or nothing in it fits.
        """
        other = Checkpoints(pathlib.Path(folder) / CHECKPOINTS)
        restored = init_from(other, self._program, state, patterns, self._say)
        self._say(f"From {folder}, step {restored.manifest.step}:")
        self._say(str(restored.report))
        return restored.state

    def begin(self, progress: Progress, changes: tuple[Change, ...]) -> None:
        """Writes config.json, the history and the data's preparation; what an earlier end left no longer holds."""
        if processes.is_first():
            description = self._program.describe()
            (self.run_dir / "summary.json").unlink(missing_ok=True)
            write_json(self.run_dir / "config.json", description["config"])
            record(self.run_dir, progress.step, changes, description["mesh"], description["versions"])
            data = self._program.config.data
            if isinstance(data, Prepared) and (preparation := data.preparation()) is not None:
                preparation.save(self.run_dir / PREPARATION)
        self._begin_best(progress)

    def _begin_best(self, progress: Progress) -> None:
        """Leaves the best checkpoint that `progress` knows. Another one is of steps that were lost and will be taken again."""
        if self._program.config.train.keep_best is None:
            return
        known = progress.best.step if progress.best is not None else None
        self._best.remove_all_but(known)
        if progress.best is not None and known not in self._best.candidates():
            self._say(
                f"the best checkpoint, of step {known}, is no longer in {self._best.folder}; another one is sought"
            )
            progress.best = None

    def is_due(self, progress: Progress) -> bool:
        """Whether it is time to save; asked of the first process alone, whose clock counts."""
        return processes.is_first() and self._cadence.is_due(time.monotonic(), progress.examples)

    def save(self, state: TrainState, progress: Progress) -> None:
        """Saves in the background; returns once the state may be overwritten.

        Raises:
          UserError: this save or the one before failed at the file system.
        """
        self._checkpoints.save(*self._snapshot(state, progress))
        self._cadence.saved(time.monotonic(), progress.examples)

    def save_best(self, state: TrainState, progress: Progress) -> None:
        """Saves the best state so far, waits for it, and saves the run, whose checkpoint names it; otherwise as `save`.

        The best before stays beside it until the next, or `close`: a run that dies meanwhile finds the one that its own newest
        checkpoint names.
        """
        self._checkpoints.wait()  # the one that names the best before
        self._best.save(*self._snapshot(state, progress))
        self._best.wait()
        self.save(state, progress)

    def take_best(self, state: TrainState, progress: Progress) -> TrainState:
        """The best state; the one given is consumed.

        Raises:
          UserError: it cannot be read.
        """
        if progress.best is None or progress.best.step == progress.step:
            return state
        for array in jax.tree.leaves(state):  # there may be no room for both
            array.delete()
        return restore(self._best, self._program, self._say, set_aside=False).state

    def close(self, progress: Progress) -> None:
        """Waits until everything is written; of the best checkpoints one is left.

        Raises:
          UserError: the last save failed at the file system.
        """
        self._checkpoints.close()
        self._best.close()
        if progress.best is not None:
            self._best.remove_all_but(progress.best.step)

    def _snapshot(self, state: TrainState, progress: Progress) -> tuple[dict[str, jax.Array], Manifest]:
        position = {
            "progress": dataclasses.asdict(progress),
            "loader": self._loader.position_state(progress.position),
            "positions": processes.gather_rows(np.array([progress.position])).tolist(),  # every process has its own
        }
        return snapshot(self._program, state, step=progress.step, data=self._identity, position=position)

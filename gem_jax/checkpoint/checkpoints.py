"""The checkpoints of a run: `<run>/checkpoints/<step>`, the newest few of them kept."""

import pathlib
import re
import shutil
from typing import Any

import jax

from gem_jax.checkpoint import store
from gem_jax.checkpoint.arrays import Program
from gem_jax.checkpoint.checksums import checksums
from gem_jax.checkpoint.errors import CheckpointError, Damage, reason
from gem_jax.checkpoint.manifest import Manifest, SavedArray
from gem_jax.parallel.processes import any_process, first_process_says, is_first


class Checkpoints:
    """Saves and finds a run's checkpoints. Called by all processes, where nothing else is said.

    A folder without a manifest, whatever its name, is none: it is neither counted nor removed by a save.

    Args:
      folder: `<run>/checkpoints`; made by the first save.
      keep: newest checkpoints kept.

    Example:
      checkpoints = Checkpoints(run_dir / "checkpoints", keep=2)
      checkpoints.save(*snapshot(program, state, step=step, data=data, position=position))  # goes on in the background
      checkpoints.close()                        # waits for it
    """

    def __init__(self, folder: pathlib.Path, keep: int = 2):
        self.folder = folder
        self._keep = keep
        self._writer: store.Writer | None = None
        self._writing: int | None = None

    def path(self, step: int) -> pathlib.Path:
        """The checkpoint's folder."""
        return self.folder / str(step)

    def steps(self) -> list[int]:
        """Steps of the checkpoints that are there whole, as far as their folders tell, oldest first. Asks no other process."""
        return [step for step in self._named() if store.manifest_file(self.path(step)).is_file()]

    def candidates(self) -> list[int]:
        """Folders with a step's name, the newest 50, oldest first: also what is damaged, and what is no checkpoint.

        What the first process sees: a shared disk may show the others an older state.
        """
        return [int(step) for step in first_process_says(" ".join(map(str, self._named()[-50:]))).split()]

    def _named(self) -> list[int]:
        if not self.folder.is_dir():
            return []
        names = [p.name for p in self.folder.iterdir() if re.fullmatch("0|[1-9][0-9]{0,17}", p.name, re.ASCII)]
        return sorted(map(int, names))

    def save(self, arrays: dict[str, jax.Array], manifest: Manifest) -> None:
        """Saves in the background; returns once the arrays may be overwritten. A step that was saved is not saved again.

        Args:
          arrays: the state as `Program.to_logical` gives it.
          manifest: whose arrays and checksums are these (`snapshot`).

        Raises:
          CheckpointError: this save, or the one before in the background, failed at the file system.
        """
        step = manifest.step
        assert manifest.arrays.keys() == arrays.keys()
        self.wait()
        if any_process(store.manifest_file(self.path(step)).is_file()):
            return
        try:
            if is_first():
                self._tidy(step)
            any_process(False)  # nobody writes before it is tidy
            self._writer = self._writer or store.Writer()
            self._writer.start(self.path(step), arrays, manifest.to_json())
        except Exception as error:
            self._give_up(step, error)
            raise
        self._writing = step

    def wait(self) -> None:
        """Until nothing is being written; older checkpoints than the newest `keep` are then removed.

        Raises:
          CheckpointError: the save failed at the file system.
        """
        if self._writer is None or self._writing is None:
            return
        step, self._writing = self._writing, None
        try:
            self._writer.wait()
        except Exception as error:
            self._give_up(step, error)
            raise
        if is_first():
            for old in self.steps()[: -self._keep]:
                self._remove(self.path(old))

    def remove_all_but(self, step: int | None) -> None:
        """Removes every other whole checkpoint, while none is being written. Called by all processes."""
        if is_first():
            for other in self.steps():
                if other != step:
                    self._remove(self.path(other))
        any_process(False)  # nobody looks before it is tidy

    def close(self) -> None:
        """Waits for what is being written, and ends the threads that write.

        Raises:
          CheckpointError: as `wait` says.
        """
        self.wait()
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def manifest(self, step: int) -> Manifest:
        """What the checkpoint says of itself; no process waits for another.

        Raises:
          Damage: it cannot be read or was changed.
          CheckpointError: another version of gem_jax wrote it.
        """
        path = self.path(step)
        try:
            text = store.manifest_file(path).read_text(encoding="utf-8")
        except FileNotFoundError as error:
            if (path / "state").is_dir() and not (path / store.ARRAYS).exists():
                raise CheckpointError(
                    f"checkpoint {path} is of format 0, whose arrays lie in the order of a mesh and cannot be told apart; "
                    "train anew, or go on with the gem_jax that wrote it"
                ) from error
            raise Damage("it has no manifest") from error
        except (OSError, UnicodeDecodeError) as error:
            raise Damage(f"its manifest cannot be read ({reason(error)})") from error
        manifest = Manifest.from_text(text, str(path))
        if manifest.step != step:
            raise Damage(f"its manifest is of step {manifest.step}")
        return manifest

    def read(self, step: int, wanted: dict[str, store.Read]) -> dict[str, jax.Array]:
        """The named arrays; no process waits for another, and nothing is verified.

        Raises:
          Damage: one cannot be read.
        """
        try:
            return store.read(self.path(step), wanted)
        except OSError as error:
            raise Damage(f"its arrays cannot be read ({reason(error)})") from error

    def set_aside(self, step: int) -> str | None:
        """Moves a damaged checkpoint out of the way, so that its step can be saved again; the new name, or None if it stays."""
        name = None
        if is_first():
            try:
                name = self._move(step)
            except OSError:  # a folder that cannot be written can still be read
                name = None
        any_process(False)  # nobody looks before it is moved
        return name

    def _move(self, step: int) -> str:
        name, number = f"damaged-{step}", 2
        while (self.folder / name).exists():
            name, number = f"damaged-{step}-{number}", number + 1
        self.path(step).rename(self.folder / name)
        return name

    def _tidy(self, step: int) -> None:
        """Out of the way: what an interrupted save or removal left, and what has the step's name but is no checkpoint."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for path in self.folder.iterdir():
            if ".orbax-checkpoint-tmp" in path.name or path.name.startswith("removed-"):
                self._remove(path)
        if self.path(step).exists():
            self._move(step)

    def _remove(self, path: pathlib.Path) -> None:
        """By a new name first: a removal that is interrupted leaves no half checkpoint."""
        removed = path if path.name.startswith("removed-") else path.rename(path.with_name(f"removed-{path.name}"))
        shutil.rmtree(removed, ignore_errors=True)

    def _give_up(self, step: int, error: Exception) -> None:
        """Ends the failed write; raises CheckpointError where the disk is to blame, and returns for any other bug."""
        if self._writer is not None:
            self._writer.abandon()
            self._writer = None
        if _is_of_the_disk(error):
            raise CheckpointError(
                f"checkpoint {self.path(step)} could not be written ({reason(error)}); see to space and rights in "
                f"{self.folder}"
            ) from error


def _is_of_the_disk(error: BaseException | None) -> bool:
    """Whether the user's disk failed, and not a program: tensorstore says so by a ValueError's text."""
    signs = ("RESOURCE_EXHAUSTED", "PERMISSION_DENIED", "No space left", "Disk quota", "Read-only file system")
    while error is not None:
        if isinstance(error, OSError) or any(sign in str(error) for sign in signs):
            return True
        error = error.__cause__ or error.__context__
    return False


def snapshot(
    program: Program, state: Any, *, step: int, data: dict[str, dict[str, Any]], position: dict[str, Any]
) -> tuple[dict[str, jax.Array], Manifest]:
    """What `Checkpoints.save` takes. Waits for the state, whose checksums are computed on the devices.

    Args:
      program: the run's.
      state: its state.
      step: optimizer steps taken.
      data: part of the data -> {'examples': number, 'digest': text}.
      position: where the run stands, JSON-able: the loader's state and what the run counts.
    """
    arrays, specs, described = program.to_logical(state), program.logical_specs(), program.describe()
    assert arrays.keys() == specs.keys(), arrays.keys() ^ specs.keys()
    for name, x in arrays.items():
        assert (x.shape, x.dtype) == (specs[name].shape, specs[name].dtype), (name, x.shape, x.dtype, specs[name])
    saved = {name: SavedArray.of(specs[name], checksum) for name, checksum in checksums(arrays).items()}
    about = {field: described[field] for field in ("config", "schema", "mesh", "placement", "versions")}
    return arrays, Manifest(step=step, arrays=saved, data=data, position=position, **about)

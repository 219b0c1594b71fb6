"""A state from a checkpoint: the newest one that is whole, on any mesh; what it knows alone, to score; or a new run's start."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from gem_jax.checkpoint.arrays import Program, is_value, matches
from gem_jax.checkpoint.checkpoints import Checkpoints
from gem_jax.checkpoint.checksums import checksums
from gem_jax.checkpoint.errors import CheckpointError, Damage
from gem_jax.checkpoint.fit import Fit, Report, Take, apply, check_positions, check_strictly, fit
from gem_jax.checkpoint.manifest import Manifest, as_json
from gem_jax.models.outputs import TRAINING_ONLY
from gem_jax.parallel.processes import any_process

type Say = Callable[[str], None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Restored:
    """A state from a checkpoint.

    Attributes:
      state: the program's.
      manifest: of the checkpoint that was taken.
      report: what of it was taken.
    """

    state: Any
    manifest: Manifest
    report: Report


def restore(
    checkpoints: Checkpoints,
    program: Program,
    say: Say = print,
    *,
    check: Callable[[Manifest], None] = lambda manifest: None,
    set_aside: bool = True,
) -> Restored:
    """The newest checkpoint that is whole, for a run that goes on. Called by all processes.

    Args:
      checkpoints: of the run.
      program: today's, on any mesh.
      say: takes a line for the user.
      check: refuses a manifest before its arrays are read, see `compare`; raises CheckpointError.
      set_aside: whether damaged checkpoints are moved to `damaged-<step>`; off for who only reads.

    Raises:
      CheckpointError: no checkpoint is whole, or it does not fit the program.
    """
    specs = program.logical_specs()

    def choose(manifest: Manifest) -> Fit:
        check(manifest)
        schema = as_json(program.describe()["schema"])
        check_positions(program.positional, manifest.schema, schema)
        fitted = fit(manifest.arrays, specs)
        check_strictly(fitted, schema_changed=manifest.schema != schema)
        return fitted

    manifest, fitted, read = _newest(checkpoints, choose, say, set_aside=set_aside)
    needs_new = bool(fitted.missing) or any(take.needs_new_values for take in fitted.takes.values())
    fresh = program.to_logical(program.init(_seed(manifest))) if needs_new else {}
    arrays = {name: fresh[name] for name in fitted.missing} | apply(fitted.takes, read, fresh)
    return Restored(state=program.from_logical(arrays), manifest=manifest, report=Report.of(fitted))


def init_from(
    checkpoints: Checkpoints, program: Program, state: Any, patterns: tuple[str, ...] = ("*",), say: Say = print
) -> Restored:
    """A new run's state with parameters and table rows of another run, as far as they fit. Called by all processes.

    Optimizer state, step and random key stay the new run's. The other run's folder is only read.

    Args:
      checkpoints: of the other run.
      program: the new run's.
      state: its new state.
      patterns: which arrays to take, e.g. `tables/*` or `dense/layers`; a folder's name stands for all in it.
      say: takes a line for the user.

    Raises:
      CheckpointError: no checkpoint is whole, or nothing in it fits.
    """
    wanted = {n: s for n, s in program.logical_specs().items() if is_value(n) and matches(n, patterns)}

    def choose(manifest: Manifest) -> Fit:
        positional = {kind: name for kind, name in program.positional.items() if any(name in n for n in wanted)}
        check_positions(positional, manifest.schema, as_json(program.describe()["schema"]))
        saved = {n: a for n, a in manifest.arrays.items() if is_value(n) and matches(n, patterns)}
        fitted = fit(saved, wanted)
        if not fitted.takes:
            raise CheckpointError(
                f"init_from takes nothing from {checkpoints.path(manifest.step)}: no parameter that matches "
                f"({', '.join(patterns)}) fits the model; name others of its {len(manifest.arrays)} arrays, e.g. "
                f"'{min(manifest.arrays)}'"
            )
        return fitted

    manifest, fitted, read = _newest(checkpoints, choose, say, set_aside=False)
    fresh = program.to_logical(state)
    arrays = fresh | apply(fitted.takes, read, fresh)
    return Restored(state=program.from_logical(arrays), manifest=manifest, report=Report.of(fitted))


def restore_values[P: Program](
    checkpoints: Checkpoints, program_of: Callable[[Manifest], P], say: Say = print, *, step: int | None = None
) -> tuple[P, Restored]:
    """What the newest whole checkpoint knows, for who only scores: parameters and table rows, and zeros for the rest of the state.

    Nothing of an optimizer is read, nor of parts of the model that only training needs, and the program may have another optimizer
    than the run. Called by all processes.

    Args:
      checkpoints: of the run; its folder is only read.
      program_of: makes the program of the run that a manifest describes; called for each checkpoint that is tried.
      say: takes a line for the user.
      step: of the checkpoint to take, which must then be whole.

    Returns:
      The program of the checkpoint that was taken, and its state.

    Raises:
      CheckpointError: no checkpoint is whole, or it does not fit the program.
    """
    programs: list[P] = []

    def choose(manifest: Manifest) -> Fit:
        programs.append(program_of(manifest))
        wanted = {n: s for n, s in programs[-1].logical_specs().items() if is_value(n)}
        saved = {
            n: a for n, a in manifest.arrays.items() if is_value(n) and not n.startswith(f"dense/{TRAINING_ONLY}/")
        }
        fitted = fit(saved, wanted)
        check_strictly(fitted, schema_changed=False)
        return fitted

    steps = None if step is None else [step]
    manifest, fitted, read = _newest(checkpoints, choose, say, set_aside=False, steps=steps)
    program = programs[-1]
    rest = {n: s for n, s in program.logical_specs().items() if not is_value(n)}
    zeros = jax.jit(
        lambda: {n: jnp.zeros(s.shape, s.dtype) for n, s in rest.items()},
        out_shardings={n: s.sharding for n, s in rest.items()},
    )
    state = program.from_logical(zeros() | apply(fitted.takes, read, {}))
    return program, Restored(state=state, manifest=manifest, report=Report.of(fitted))


def newest_manifest(checkpoints: Checkpoints, say: Say = print) -> Manifest:
    """The newest manifest that is whole: what the run was, for who has neither its config file nor its data.

    Raises:
      CheckpointError: there is none.
    """
    for step in reversed(checkpoints.candidates()):
        manifest, why = _together(functools.partial(checkpoints.manifest, step))
        if manifest is not None:
            return manifest
        say(f"checkpoint {checkpoints.path(step)} is damaged: {why}")
    raise _none(checkpoints)


def _newest(
    checkpoints: Checkpoints,
    choose: Callable[[Manifest], Fit],
    say: Say,
    *,
    set_aside: bool,
    steps: list[int] | None = None,
) -> tuple[Manifest, Fit, dict[str, jax.Array]]:
    """The newest checkpoint, of all or of some steps, that can be read and verified, and its arrays; each damaged one is named."""
    candidates = checkpoints.candidates() if steps is None else steps
    for step in reversed(candidates):
        manifest, why = _together(functools.partial(checkpoints.manifest, step))
        if manifest is not None:
            fitted = choose(manifest)
            arrays, why = _together(functools.partial(_read, checkpoints, step, fitted.takes))
            if arrays is not None:
                why = _verify(manifest, fitted.takes, arrays)
                if why is None:
                    return manifest, fitted, arrays
            arrays = None  # the memory is wanted for the one before
        name = checkpoints.set_aside(step) if set_aside else None
        moved = f"; it was moved to {name}" if name else ""
        back = "; going back to the one before" if step != candidates[0] else ""
        say(f"checkpoint {checkpoints.path(step)} is damaged: {why}{moved}{back}")
    raise _none(checkpoints)


def _read(checkpoints: Checkpoints, step: int, takes: dict[str, Take]) -> dict[str, jax.Array]:
    return checkpoints.read(step, {name: take.read for name, take in takes.items()})


def _verify(manifest: Manifest, takes: dict[str, Take], arrays: dict[str, jax.Array]) -> str | None:
    """Why the arrays are not those that were saved; the same in all processes."""
    rows = {name: take.rows for name, take in takes.items() if take.rows is not None}
    for name, checksum in checksums(arrays, rows).items():
        if checksum != manifest.arrays[name].checksum:
            return f"the numbers of array '{name}' were changed: their checksum differs"
    return None


def _together[T](action: Callable[[], T]) -> tuple[T | None, str | None]:
    """What the action returns, or why it found damage; None in all processes if it failed in one.

    A CheckpointError is the user's, and the same in all processes since it follows from what all of them read.
    """
    result, why, refusal = None, None, None
    try:
        result = action()
    except CheckpointError as error:
        refusal = error
    except Damage as damage:
        why = str(damage)
    if any_process(why is not None):
        return None, why or "another process could not read it"
    if refusal is not None:
        raise refusal
    return result, None


def _none(checkpoints: Checkpoints) -> CheckpointError:
    return CheckpointError(
        f"there is no whole checkpoint in {checkpoints.folder}; name another run's, or start a new run without --resume"
    )


def _seed(manifest: Manifest) -> int:
    """Of the run, which also makes what is new in it."""
    return int(manifest.config.get("train", {}).get("seed", 0))

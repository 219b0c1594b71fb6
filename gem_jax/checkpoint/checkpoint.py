"""Save and restore a run: model, tables, optimizers, data position, config. The only file that imports Orbax."""

import json
import pathlib
from typing import Any

import jax
import orbax.checkpoint as ocp

from gem_jax.training.state import TrainState


class CheckpointError(ValueError):
    """A checkpoint cannot be used; the message is one sentence saying why and what to change."""


class Checkpointer:
    """Checkpoints of one run under `<run_dir>/checkpoints/<step>`; the newest two are kept.

    Writing is atomic (Orbax renames a finished folder), so an interrupted save never leaves a half-written checkpoint behind.
    """

    def __init__(self, run_dir: pathlib.Path):
        self._manager = ocp.CheckpointManager(
            (run_dir / "checkpoints").absolute(),
            options=ocp.CheckpointManagerOptions(max_to_keep=2, enable_async_checkpointing=False),
            item_handlers={"state": ocp.StandardCheckpointHandler(), "position": ocp.JsonCheckpointHandler()},
        )

    def latest_step(self) -> int | None:
        return self._manager.latest_step()

    def save(self, state: TrainState, position: dict[str, Any]) -> None:
        """Save `state` and the JSON-able `position` (data state, counters). Returns once device memory may be reused."""
        step = int(state.step)
        if step == self._manager.latest_step():
            return
        self._manager.save(
            step,
            args=ocp.args.Composite(state=ocp.args.StandardSave(_raw(state)), position=ocp.args.JsonSave(position)),
        )

    def restore(self, like: TrainState) -> tuple[TrainState, dict[str, Any]]:
        """The newest checkpoint, laid out as `like`.

        Raises:
          CheckpointError: there is none, it cannot be read, or its arrays differ in name or shape from `like`.
        """
        step = self._manager.latest_step()
        if step is None:
            raise CheckpointError(f"no checkpoint in {self._manager.directory}; start without --resume")
        raw = _raw(like)
        self._check_shapes(step, {name: x.shape for name, x in raw.items()})
        target = jax.tree.map(ocp.utils.to_shape_dtype_struct, raw)
        try:
            restored = self._manager.restore(
                step,
                args=ocp.args.Composite(state=ocp.args.StandardRestore(target), position=ocp.args.JsonRestore()),
            )
        except (ValueError, KeyError, OSError) as e:
            reason = (str(e).strip() or type(e).__name__).splitlines()[0]
            raise CheckpointError(
                f"checkpoint {self._manager.directory}/{step} cannot be read ({reason}); "
                "remove it to resume from the one before"
            ) from e
        return _unraw(restored["state"], like), restored["position"]

    def _check_shapes(self, step: int, wanted: dict[str, tuple[int, ...]]) -> None:
        """Before anything is read: Orbax would find a difference too, but leave threads at work on the other arrays."""
        metadata = self._manager.item_metadata(step)["state"] or {}
        found = {name: tuple(array.shape) for name, array in metadata.items()}
        for name in sorted(found.keys() | wanted.keys()):
            if found.get(name) != wanted.get(name):
                raise CheckpointError(
                    f"checkpoint {self._manager.directory}/{step} does not fit the configured model: '{name}' is "
                    f"{found.get(name, 'absent')} in the checkpoint and {wanted.get(name, 'absent')} in the model; "
                    "resume with the config and the mesh it was trained with"
                )

    def close(self) -> None:
        """Wait until everything is written."""
        self._manager.wait_until_finished()
        self._manager.close()


def _raw(state: TrainState) -> dict[str, Any]:
    """Plain arrays by path: Orbax then depends on names and shapes alone, not on our classes."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(state)
    return {jax.tree_util.keystr(p, simple=True, separator="/"): _key_data(x) for p, x in leaves}


def _key_data(x: jax.Array) -> jax.Array:
    return jax.random.key_data(x) if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key) else x


def _unraw(raw: dict[str, Any], like: TrainState) -> TrainState:
    leaves, treedef = jax.tree_util.tree_flatten_with_path(like)
    values = []
    for path, leaf in leaves:
        value = raw[jax.tree_util.keystr(path, simple=True, separator="/")]
        is_key = jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        values.append(jax.random.wrap_key_data(value) if is_key else value)
    return jax.tree_util.tree_unflatten(treedef, values)


def write_json(path: pathlib.Path, value: Any) -> None:
    """Write JSON so that readers see either the old file or the whole new one."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n")
    partial.replace(path)

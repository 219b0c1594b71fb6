"""Arrays to and from a folder, by Orbax: the only file that imports it, and only where something is written or read, since that
takes a fifth of a second that --help and compare --table have no use for."""

import asyncio
import concurrent.futures
import contextlib
import dataclasses
import pathlib
import threading
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gem_jax.checkpoint.errors import Damage, reason

ARRAYS, MANIFEST = "arrays", "manifest"
"""Folders in a checkpoint's folder."""

ABANDON_S = 30.0
"""Seconds that a thread of a failed write is waited for."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Read:
    """How an array is to be read.

    Attributes:
      shape: what the array is made to be: as saved, or with more rows, which are then 0.
      dtype: as saved.
      sharding: over the devices.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    sharding: jax.sharding.Sharding


class Writer:
    """Writes checkpoints in the background, one at a time; a folder has its final name only when it is whole."""

    def __init__(self) -> None:
        import orbax.checkpoint as ocp

        self._args = ocp.args
        self._orbax = ocp.AsyncCheckpointer(ocp.CompositeCheckpointHandler())

    def start(self, folder: pathlib.Path, arrays: dict[str, jax.Array], manifest: dict[str, Any]) -> None:
        """Returns once the arrays may be overwritten. Called by all processes."""
        whole = {
            name: x for name, x in arrays.items() if x.size
        }  # Orbax takes no empty arrays, and there is nothing to keep
        items = {ARRAYS: self._args.PyTreeSave(whole), MANIFEST: self._args.JsonSave(manifest)}
        self._orbax.save(folder.absolute(), args=self._args.Composite(**items))

    def wait(self) -> None:
        """Until nothing is being written; raises what a write in the background raised."""
        self._orbax.wait_until_finished()

    def close(self) -> None:
        """Waits as `wait` does, and ends the threads that write."""
        self._orbax.close()

    def abandon(self) -> None:
        """After a failed write: lets what is left of it end, which would else write into the folder of the next try."""
        for thread in threading.enumerate():
            if type(thread).__module__.startswith("orbax."):
                thread.join(timeout=ABANDON_S)
        with contextlib.suppress(Exception):  # the failure was told already
            self._orbax.close()


def manifest_file(folder: pathlib.Path) -> pathlib.Path:
    """The file in a checkpoint's folder that holds the manifest's JSON."""
    return folder / MANIFEST / "metadata"


def read(folder: pathlib.Path, wanted: dict[str, Read]) -> dict[str, jax.Array]:
    """The named arrays of the checkpoint; no process waits for another.

    Every array is read by its name and the given shape alone, without Orbax's own descriptions, so that damage to those does no
    harm. All reads have ended when this returns or raises, and no thread of theirs is left.

    Raises:
      Damage: an array cannot be read.
      MemoryError, JaxRuntimeError: there is no room for it, which is not the checkpoint's fault.
    """
    with concurrent.futures.ThreadPoolExecutor(1) as pool:  # a notebook's thread has an event loop already
        results = pool.submit(asyncio.run, _read_all(folder.absolute() / ARRAYS, wanted)).result()
    for name, result in results.items():
        if isinstance(result, MemoryError | jax.errors.JaxRuntimeError) or not isinstance(
            result, Exception | jax.Array
        ):
            raise result
        if isinstance(result, Exception):  # damaged bytes lead a library anywhere
            raise Damage(f"array '{name}' cannot be read ({reason(result)})") from result
    return results


async def _read_all(folder: pathlib.Path, wanted: dict[str, Read]) -> dict[str, Any]:
    """Each array, or the exception that it met."""
    import orbax.checkpoint as ocp

    context = ocp.type_handlers.get_ts_context(use_ocdbt=True)
    handler = ocp.type_handlers.ArrayHandler()

    async def one(name: str, how: Read) -> jax.Array:
        if 0 in how.shape:
            return jax.device_put(jnp.zeros(how.shape, how.dtype), how.sharding)
        info = ocp.type_handlers.ParamInfo(
            name=name, parent_dir=folder, is_ocdbt_checkpoint=True, use_zarr3=False, ts_context=context
        )
        args = ocp.ArrayRestoreArgs(sharding=how.sharding, global_shape=how.shape, dtype=how.dtype, strict=False)
        return (await handler.deserialize([info], [args]))[0]

    results = await asyncio.gather(*(one(*item) for item in wanted.items()), return_exceptions=True)
    # A failed array leaves reads of its other parts behind; an event loop that closes before they end prints tracebacks.
    while others := asyncio.all_tasks() - {asyncio.current_task()}:
        await asyncio.gather(*others, return_exceptions=True)
    return dict(zip(wanted, results, strict=True))

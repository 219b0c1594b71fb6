"""Several processes as one run: start-up, and the little that they tell each other beside the step itself.

Every function is the identity, at no cost, in a run of one process.
"""

import os
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from gem_jax.errors import UserError


def start() -> None:
    """Joins the processes of a job, before JAX first looks for devices.

    A job is recognised by its environment: JAX_COORDINATOR_ADDRESS with JAX_NUM_PROCESSES and JAX_PROCESS_ID, by hand; or SLURM,
    Open MPI or a Kubernetes indexed job of more than one task, whose variables JAX reads itself.

    Raises:
      UserError: the variables by hand are incomplete.
    """
    environment = os.environ
    if "JAX_COORDINATOR_ADDRESS" in environment:
        try:
            count, index = int(environment["JAX_NUM_PROCESSES"]), int(environment["JAX_PROCESS_ID"])
        except (KeyError, ValueError) as error:
            raise UserError(
                "JAX_COORDINATOR_ADDRESS is set; set JAX_NUM_PROCESSES and JAX_PROCESS_ID to whole numbers too, or none of them"
            ) from error
        jax.distributed.initialize(num_processes=count, process_id=index)
        return
    num_tasks = max(int(environment.get(name, "1")) for name in ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE"))
    if num_tasks > 1 or {"KUBERNETES_SERVICE_HOST", "JOB_COMPLETION_INDEX"} <= environment.keys():
        jax.distributed.initialize()


def is_first() -> bool:
    """Whether this process writes the run's files and speaks to the user."""
    return jax.process_index() == 0


def gather(values: np.ndarray) -> np.ndarray:
    """Every process's array of the same shape, stacked: [processes, ...]."""
    if jax.process_count() == 1:
        return values[None]
    return np.asarray(multihost_utils.process_allgather(values))


def gather_rows(values: np.ndarray) -> np.ndarray:
    """Every process's rows, of any number, one process after the other."""
    if jax.process_count() == 1:
        return values
    counts = gather(np.array(len(values)))
    padded = np.zeros((counts.max(), *values.shape[1:]), values.dtype)
    padded[: len(values)] = values
    # 64-bit columns would be cut to 32 bits on their way through JAX.
    parts = gather(padded.view(np.uint8).reshape(len(padded), -1)) if padded.itemsize == 8 else gather(padded)
    rows = [np.ascontiguousarray(part[:count]) for part, count in zip(parts, counts, strict=True)]
    if padded.itemsize == 8:
        rows = [row.view(values.dtype).reshape(-1, *values.shape[1:]) for row in rows]
    return np.concatenate(rows)


def total(values: np.ndarray) -> np.ndarray:
    """The sum over the processes, float64 in and out."""
    if jax.process_count() == 1:
        return values
    return gather_rows(np.asarray(values, np.float64)[None]).sum(axis=0)


def any_process(flag: bool) -> bool:
    """Whether the flag is set in any process: the same answer in all."""
    return bool(gather(np.array(flag)).any())


def first_process_says(text: str) -> str:
    """The first process's text, in every process."""
    if jax.process_count() == 1:
        return text
    letters = np.zeros(1024, np.uint8)
    encoded = text.encode()[: len(letters)]
    letters[: len(encoded)] = np.frombuffer(encoded, np.uint8)
    return bytes(multihost_utils.broadcast_one_to_all(letters)).rstrip(b"\0").decode()


def side_by_side(
    batches: Iterator[tuple[Any, Any]], empty: Callable[[], tuple[Any, Any]]
) -> Iterator[tuple[Any, Any, int]]:
    """Each process's batches, (batch, host columns, examples of all processes), until the last process has none left.

    A step needs all processes. Packed batches hold varying numbers of examples, so one process may end before another: it then
    feeds empty batches. Costs one small exchange a step, since no process may start a step that another does not.
    """
    while True:
        item = next(batches, None)
        counts = gather(np.array([item is not None, item[1].num_examples if item else 0], np.int32))
        if not counts[:, 0].any():
            return
        batch, host = item or empty()
        yield batch, host, int(counts[:, 1].sum())

"""The batches of all processes, side by side, without a step that waits for the host.

A step needs all processes, and packed batches hold varying numbers of examples, so one process may run out before another: it
then feeds empty batches. Who still has a batch, how many examples a step has in all, and whether someone wants to stop must be
known alike in every process before a step starts. Each process therefore looks two batches ahead and sends what it sees along with
the step that it starts now, as numbers which the step sums (`signals`); two steps later the sums have long been computed.
"""

import collections
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from gem_jax.data.source import DataError
from gem_jax.parallel import processes
from gem_jax.parallel.mesh import local_devices
from gem_jax.parallel.sharding import place_batch

AHEAD = 2
"""Steps between a signal and its use: one at work on the device, one waiting behind it."""


@dataclasses.dataclass(kw_only=True)
class Turn:
    """One step to take.

    Attributes:
      batch: this process's device batches.
      host: its host columns.
      num_examples: of all processes.
      flags: what `Lockstep`'s callables said, in any process.
      signals: int32 [K], to be fed to the step by this process.
      sums: what the step made of all processes' signals; to be set by whoever takes the step.
    """

    batch: Any
    host: Any
    num_examples: int
    flags: tuple[bool, ...]
    signals: np.ndarray
    sums: jax.Array | None = None


class Lockstep:
    """Iterates over `Turn`s until no process has a batch left.

    A process whose batches end with an exception ends as if it had none left, so that all processes can stop and save together:
    ask `has_failed` in a flag, and `check` afterwards.

    Args:
      batches: of this process, as (batch, host columns).
      empty: makes a batch of empty slots.
      flags: questions that each process asks at every step, e.g. whether it was interrupted; the answer is yes where it is in any.
    """

    def __init__(
        self,
        batches: Iterator[tuple[Any, Any]],
        empty: Callable[[], tuple[Any, Any]],
        flags: tuple[Callable[[], bool], ...],
    ):
        self._batches, self._empty, self._flags = batches, empty, flags
        self._error: Exception | None = None

    def has_failed(self) -> bool:
        """Whether this process could not get its next batch."""
        return self._error is not None

    def check(self) -> None:
        """Raises what ended this process's batches, or a DataError where it was another process's. Called by all processes."""
        failed = processes.any_process(self.has_failed())
        if self._error is not None:
            raise self._error
        if failed:
            raise DataError("another process could not read its data; it says why")

    def __iter__(self) -> Iterator[Turn]:
        ahead = collections.deque(self._next() for _ in range(AHEAD))
        first = np.array([self._signals(item) for item in ahead], np.int32)
        told = collections.deque(processes.gather(first).sum(axis=0))
        while True:
            known = np.asarray(told.popleft())  # of a step that has long been taken
            if not known[0]:
                return
            ahead.append(self._next())
            batch, host = ahead.popleft() or self._empty()
            signals = self._signals(ahead[-1])
            # Alone, a process need not wait for its own answers.
            flags = signals[2:] if jax.process_count() == 1 else known[2:]
            turn = Turn(
                batch=batch,
                host=host,
                num_examples=int(known[1]),
                flags=tuple(bool(flag) for flag in flags),
                signals=signals,
            )
            yield turn
            if jax.process_count() > 1:
                assert turn.sums is not None
                told.append(turn.sums)
            else:
                told.append(signals)

    def _next(self) -> tuple[Any, Any] | None:
        try:
            return None if self.has_failed() else next(self._batches, None)
        except Exception as error:  # whatever a reader raises
            self._error = error
            return None

    def _signals(self, item: tuple[Any, Any] | None) -> np.ndarray:
        """int32: whether there is a batch, its examples, and the flags as they are now."""
        count = 0 if item is None else item[1].num_examples
        return np.array([item is not None, count, *(flag() for flag in self._flags)], np.int32)


def placed_signals(signals: np.ndarray, mesh: Mesh) -> jax.Array:
    """This process's signals as its part of an int32 array [devices, K]: its first device has them, the others zeros."""
    rows = np.zeros((local_devices(mesh), len(signals)), np.int32)
    rows[0] = signals
    return place_batch(rows, mesh)

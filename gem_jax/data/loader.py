"""From a source to packed batches: shuffling, sharding by host and prefetch by Grain, then `packing.pack`.

    indices -> shuffle each epoch -> this host's part -> chunks -> source.read -> pack -> background thread -> the step

The stream's order depends on (seed, epoch, number of hosts) alone, and a batch depends on its position in the stream
alone, so one integer is the whole state: a restored loader delivers byte-identical batches.
"""

import atexit
import dataclasses
import weakref
from collections.abc import Generator
from typing import Any, Protocol, runtime_checkable

import numpy as np

from gem_jax.data.batch import Batch, Examples, HostColumns
from gem_jax.data.columns import empty_examples
from gem_jax.data.packing import BatchConfig, pack
from gem_jax.data.source import DataError, Source
from gem_jax.errors import UserError

_SHUFFLE_ROUNDS = 4

_RUNNING: weakref.WeakSet = weakref.WeakSet()
"""Iterations under way."""


@atexit.register
def _stop_running() -> None:
    """Stops the threads of a program that ends in mid-stream before the interpreter takes their modules apart."""
    for batches in list(_RUNNING):
        batches.close()


@runtime_checkable
class OrdersItself(Protocol):
    """A source whose storage prefers a shuffle of its own, e.g. one that stays within a few row groups at a time."""

    def shuffled_indices(self, positions: range, seed: int, epoch: int) -> np.ndarray:
        """The indices at `positions` of an epoch's order, int64; all positions together name every index once."""
        ...


class Loader:
    """Batches of a source, as (`Batch`, `HostColumns`) with NumPy leaves.

    Each iteration starts at the beginning of the stream, or where `restore` put it. A finite stream ends with a batch
    that has empty slots; no example is lost or repeated.

    Args:
      source: where examples are read.
      batch: size of one device's batch.
      seed: of the shuffle; None keeps the source's order.
      num_epochs: passes over the source; None never ends.
      shard_index: this host's place among `shard_count` hosts, each of which sees its own contiguous part of every
        epoch's order.
      shard_count: number of hosts.
      num_devices: device batches in each delivered batch (see `packing`).
      read_threads: threads that read chunks ahead of packing.
      prefetch: batches packed ahead of the consumer, in one background thread; 0 packs in the consumer's thread.

    Raises:
      UserError: the batch cannot hold one full history, or there are more hosts than examples, or too many examples to
        shuffle (2^32).
    """

    def __init__(
        self,
        source: Source,
        batch: BatchConfig,
        *,
        seed: int | None,
        num_epochs: int | None,
        shard_index: int = 0,
        shard_count: int = 1,
        num_devices: int = 1,
        read_threads: int = 2,
        prefetch: int = 2,
    ):
        if len(source) < shard_count:
            raise DataError(
                f"the data has {len(source)} examples for {shard_count} hosts; give each at least one, or take fewer hosts"
            )
        if seed is not None and len(source) > 2**32:
            raise DataError(
                f"the data has {len(source)} examples and the shuffle addresses 2^32; set train.shuffle=False"
            )
        self._packing = Packing(
            source=source, num_slots=batch.examples, tokens=batch.budgets(source.schema), num_devices=num_devices
        )
        self._order = {"seed": seed, "shard_index": shard_index, "shard_count": shard_count}
        self._start = self._position = 0

        # Grain takes a third of a second to import: whoever only names a loader, as --help does, goes without.
        from gem_jax.data.stream import packed_stream

        order = Order(source=source, seed=seed, num_epochs=num_epochs, shard_index=shard_index, shard_count=shard_count)
        self._dataset = packed_stream(order, self._packing, read_threads, prefetch)

    def __iter__(self) -> Generator[tuple[Batch, HostColumns]]:
        batches = self._batches()
        _RUNNING.add(batches)
        return batches

    def _batches(self) -> Generator[tuple[Batch, HostColumns]]:
        iterator = iter(self._dataset)
        iterator.set_state({"position": self._start})
        self._position = self._start
        try:
            for batch, columns in iterator:
                self._position = columns.position
                yield batch, columns
        finally:
            iterator.close()

    def position_state(self, position: int) -> dict[str, Any]:
        """The stream's state after the batch whose `HostColumns.position` is `position` (0: at the start); small and JSON-able.

        It depends on no iteration, so the consumer may have pulled batches ahead of the one it trained on last.
        """
        return {**self._order, "position": position}

    def restore(self, state: dict[str, Any]) -> None:
        """Makes the next iteration continue after the batch at which `state` was taken.

        Whether the data are the same is not asked here: `Source.identity` says so.

        Raises:
          UserError: the state is of another order (other seed or number of hosts), where its position means other examples.
        """
        for name, value in self._order.items():
            if state[name] != value:
                raise UserError(
                    f"the checkpoint's data position has {name}={state[name]}, this run has {name}={value}; "
                    "resume with the same data, seed and hosts, or start a new run"
                )
        self._start = self._position = state["position"]

    def empty_batch(self) -> tuple[Batch, HostColumns]:
        """A batch of empty slots: what a host feeds whose part of the data ended first."""
        return self._packing.pack(empty_examples(self._packing.source.schema), self._position)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Order:
    """The order of one host's stream: the arguments of `Loader` with these names."""

    source: Source
    seed: int | None
    num_epochs: int | None
    shard_index: int
    shard_count: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Packing:
    """`pack` with everything but the examples and their position filled in."""

    source: Source
    num_slots: int
    tokens: dict[str, int]
    num_devices: int

    @property
    def chunk(self) -> int:
        """Examples read at once: the most that one batch takes."""
        return self.num_slots * self.num_devices

    def pack(self, examples: Examples, position: int) -> tuple[Batch, HostColumns]:
        return pack(
            examples,
            self.source.schema,
            self.num_slots,
            self.tokens,
            num_devices=self.num_devices,
            position=position,
        )


def shuffle(positions: range, size: int, seed: int) -> np.ndarray:
    """Images of `positions` under a pseudo-random permutation of `0 .. size` (Grain's index shuffle), int64."""
    from grain import experimental  # see Loader

    return np.array([experimental.index_shuffle(p, size - 1, seed, _SHUFFLE_ROUNDS) for p in positions], np.int64)

"""From a source to packed batches: shuffling, sharding by host and prefetch by Grain, then `packing.pack`.

    indices -> shuffle each epoch -> this host's part -> chunks -> source.read -> pack -> background thread -> the step

The stream's order depends on (seed, epoch, number of hosts) alone, and a batch depends on its position in the stream
alone, so one integer is the whole state: a restored loader delivers byte-identical batches.
"""

import atexit
import dataclasses
import sys
import weakref
from collections.abc import Generator
from typing import Any, Protocol, runtime_checkable

import grain
import numpy as np
from grain import experimental

from gem_jax.data.batch import Batch, Examples, HostColumns
from gem_jax.data.columns import empty_examples, join_examples, slice_examples
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
        self._packing = _Packing(
            source=source, num_slots=batch.examples, tokens=batch.budgets(source.schema), num_devices=num_devices
        )
        self._order = {"seed": seed, "shard_index": shard_index, "shard_count": shard_count}
        self._start = self._position = 0

        indices = _IndexChunks(source, self._packing.chunk, seed, num_epochs, shard_index, shard_count)
        chunks = indices.map(source.read)
        reading = grain.ReadOptions(num_threads=read_threads, prefetch_buffer_size=2 * read_threads)
        packed = _PackIterDataset(chunks.to_iter_dataset(reading), self._packing)
        self._dataset = experimental.ThreadPrefetchIterDataset(packed, prefetch_buffer_size=prefetch)

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


class _IndexChunks(grain.MapDataset):
    """Element k: the source indices of examples `k * chunk .. (k + 1) * chunk` of this host's stream, int64.

    Grain's own `range().shuffle().slice().repeat().batch()` does the same one example at a time, at 27 us each; this
    calls its index shuffle directly, at 4 us.
    """

    def __init__(
        self, source: Source, chunk: int, seed: int | None, num_epochs: int | None, shard_index: int, shard_count: int
    ):
        super().__init__()
        self._source = source
        self._chunk = chunk
        # Neighbouring seeds must not share epochs: `shuffle` adds the epoch to the seed.
        self._seed = None if seed is None else int(np.random.SeedSequence(seed).generate_state(1)[0])
        self._first, last = (len(source) * (shard_index + k) // shard_count for k in (0, 1))
        self._per_epoch = last - self._first
        self._total = sys.maxsize if num_epochs is None else num_epochs * self._per_epoch

    def __len__(self) -> int:
        return -(-self._total // self._chunk)

    def __getitem__(self, index: int) -> np.ndarray:
        position = index * self._chunk
        stop = min(position + self._chunk, self._total)
        parts = []
        while position < stop:
            epoch, offset = divmod(position, self._per_epoch)
            count = min(stop - position, self._per_epoch - offset)
            parts.append(self._epoch_order(range(self._first + offset, self._first + offset + count), epoch))
            position += count
        return np.concatenate(parts)

    def _epoch_order(self, positions: range, epoch: int) -> np.ndarray:
        if self._seed is None:
            return np.arange(positions.start, positions.stop)
        if isinstance(self._source, OrdersItself):
            return self._source.shuffled_indices(positions, self._seed, epoch)
        return shuffle(positions, len(self._source), (self._seed + epoch) % 2**32)


def shuffle(positions: range, size: int, seed: int) -> np.ndarray:
    """Images of `positions` under a pseudo-random permutation of `0 .. size` (Grain's index shuffle), int64."""
    return np.array([experimental.index_shuffle(p, size - 1, seed, _SHUFFLE_ROUNDS) for p in positions], np.int64)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Packing:
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


class _PackIterDataset(grain.IterDataset):
    """Packs the chunks of its parent into batches."""

    def __init__(self, parent: grain.IterDataset, packing: _Packing):
        super().__init__(parent)
        self._packing = packing

    def __iter__(self) -> grain.DatasetIterator:
        return _PackIterator(iter(self._parent), self._packing)


class _PackIterator(grain.DatasetIterator):
    """Holds up to two chunks of examples not yet packed; its state is the number of examples delivered."""

    def __init__(self, parent: grain.DatasetIterator, packing: _Packing):
        super().__init__(parent)
        self._packing = packing
        self._position = 0
        self._waiting: list[Examples] = []  # no part is empty

    def __next__(self) -> tuple[Batch, HostColumns]:
        while sum(map(len, self._waiting)) < self._packing.chunk:
            try:
                self._waiting.append(next(self._parent))
            except StopIteration:
                break
        if not self._waiting:
            raise StopIteration
        examples = join_examples(self._waiting)
        batch, columns = self._packing.pack(examples, self._position)
        self._waiting = _after(examples, columns.num_examples)
        self._position = columns.position
        return batch, columns

    def get_state(self) -> dict[str, Any]:
        return {"position": self._position}

    def set_state(self, state: dict[str, Any]) -> None:
        self._position = state["position"]
        chunks, skip = divmod(self._position, self._packing.chunk)
        experimental.set_next_index(self._parent, chunks)
        self._waiting = _after(next(self._parent), skip) if skip else []


def _after(examples: Examples, count: int) -> list[Examples]:
    """What is left of `examples` after the first `count`, if anything."""
    return [slice_examples(examples, count, len(examples))] if count < len(examples) else []

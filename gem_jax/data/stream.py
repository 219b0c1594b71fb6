"""What of the loader is Grain's: chunks of indices, read by threads ahead and packed in one background thread."""

import sys
from typing import Any

import grain
import numpy as np
from grain import experimental

from gem_jax.data.batch import Batch, Examples, HostColumns
from gem_jax.data.columns import join_examples, slice_examples
from gem_jax.data.loader import Order, OrdersItself, Packing, shuffle


def packed_stream(order: Order, packing: Packing, read_threads: int, prefetch: int) -> grain.IterDataset:
    """Batches as `Packing.pack` makes them; the state of an iterator is {"position": examples delivered}.

    Args:
      order: of the examples.
      packing: makes batches of them.
      read_threads: threads that read chunks ahead of packing.
      prefetch: batches packed ahead of the consumer; 0 packs in the consumer's thread.
    """
    chunks = _IndexChunks(order, packing.chunk).map(packing.source.read)
    reading = grain.ReadOptions(num_threads=read_threads, prefetch_buffer_size=2 * read_threads)
    packed = _PackIterDataset(chunks.to_iter_dataset(reading), packing)
    return experimental.ThreadPrefetchIterDataset(packed, prefetch_buffer_size=prefetch)


class _IndexChunks(grain.MapDataset):
    """Element k: the source indices of examples `k * chunk .. (k + 1) * chunk` of this host's stream, int64.

    Grain's own `range().shuffle().slice().repeat().batch()` does the same one example at a time, at 27 us each; this
    calls its index shuffle directly, at 4 us.
    """

    def __init__(self, order: Order, chunk: int):
        super().__init__()
        self._source = source = order.source
        self._chunk = chunk
        # Neighbouring seeds must not share epochs: `shuffle` adds the epoch to the seed.
        self._seed = None if order.seed is None else int(np.random.SeedSequence(order.seed).generate_state(1)[0])
        self._first, last = (len(source) * (order.shard_index + k) // order.shard_count for k in (0, 1))
        self._per_epoch = last - self._first
        self._total = sys.maxsize if order.num_epochs is None else order.num_epochs * self._per_epoch

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


class _PackIterDataset(grain.IterDataset):
    """Packs the chunks of its parent into batches."""

    def __init__(self, parent: grain.IterDataset, packing: Packing):
        super().__init__(parent)
        self._packing = packing

    def __iter__(self) -> grain.DatasetIterator:
        return _PackIterator(iter(self._parent), self._packing)


class _PackIterator(grain.DatasetIterator):
    """Holds up to two chunks of examples not yet packed; its state is the number of examples delivered."""

    def __init__(self, parent: grain.DatasetIterator, packing: Packing):
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

"""Lays out a chunk of examples as one batch of static shape: histories back to back, no padding between examples.

Shape letters: n examples of the chunk, m examples taken, M devices, B slots and T packed rows of one device.

With several devices the arrays of the device batches are concatenated along axis 0, and each device's offsets count
from its own first row, so sharding axis 0 over the devices gives every device a complete batch. Examples go to devices
sorted by attention cost, back and forth (0 1 .. M-1, M-1 .. 1 0, ..), which pairs the longest histories with the
shortest: the idea of Meta's base batch shuffling (engineering.fb.com, GEM training, August 2026), on the exact batch.
"""

import dataclasses

import numpy as np

from gem_jax.data.batch import START_ALIGNMENT, Batch, Events, Examples, Histories, HostColumns
from gem_jax.data.columns import ragged_ranges
from gem_jax.data.schema import Schema
from gem_jax.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class BatchConfig:
    """The static size of one device's batch."""

    examples: int
    """Example slots of one device (B)."""
    tokens: dict[str, int] = dataclasses.field(default_factory=dict)
    """Packed rows of one device per event source (T); a source not named gets room for B full histories."""

    def __post_init__(self):
        if self.examples < 1:
            raise UserError(f"batch.examples is {self.examples}; it needs at least 1")
        for name, rows in self.tokens.items():
            if rows < START_ALIGNMENT:
                raise UserError(f"batch.tokens['{name}'] is {rows}; a history takes {START_ALIGNMENT} rows or more")

    def budgets(self, schema: Schema) -> dict[str, int]:
        """Rows T of every source of `schema`.

        Raises:
          UserError: a budget is for an unknown source, or smaller than a single full history.
        """
        known = {s.name for s in schema.sequences}
        for name in self.tokens:
            if name not in known:
                raise UserError(f"batch.tokens names source '{name}'; the data has {sorted(known) or 'no sequences'}")
        budgets = {}
        for sequence in schema.sequences:
            full = int(_aligned(sequence.max_len))
            rows = self.tokens.get(sequence.name, self.examples * full)
            if rows < full:
                raise UserError(
                    f"batch.tokens['{sequence.name}'] is {rows}, less than the {full} rows of one full history "
                    f"(max_len {sequence.max_len}); raise it to {full} or more, or lower max_len"
                )
            budgets[sequence.name] = rows
        return budgets


def pack(
    examples: Examples,
    schema: Schema,
    num_slots: int,
    tokens: dict[str, int],
    *,
    num_devices: int = 1,
    position: int = 0,
) -> tuple[Batch, HostColumns]:
    """Packs as many leading examples as fit; `num_examples` of the host columns says how many.

    Args:
      examples: the candidates; histories longer than their sequence's max_len lose their oldest events.
      schema: names the columns.
      num_slots: B, example slots of each device.
      tokens: source -> T, packed rows of each device; at least one full history each (`BatchConfig.budgets`).
      num_devices: M, device batches to make.
      position: examples of the stream before these.

    Returns:
      Batch with axis 0 of size M * B (events M * T, offsets M * (B + 1)) and its host columns.
    """
    candidates = min(len(examples), num_devices * num_slots)
    kept = {s.name: np.minimum(examples.sequences[s.name].lengths[:candidates], s.max_len) for s in schema.sequences}
    device = _assign_devices(candidates, kept, tokens, num_devices)
    taken = len(device)
    slot = _slots(device, num_slots, num_devices)

    def column(values: np.ndarray, fill: int | float) -> np.ndarray:
        out = np.full((num_devices * num_slots, *values.shape[1:]), fill, values.dtype)
        out[slot] = values[:taken]
        return out

    sequences, truncated = {}, {}
    for name, lengths in kept.items():
        history = examples.sequences[name]
        sequences[name] = _pack_events(history, lengths[:taken], slot, num_slots, tokens[name], num_devices)
        truncated[name] = int(history.lengths[:taken].sum() - lengths[:taken].sum())
    labels, domain = column(examples.labels, np.nan), column(examples.domain, 0)
    weight = column(examples.weight, 0)
    batch = Batch(
        ids={f.name: column(examples.ids[f.name], -1) for f in schema.categoricals},
        dense=column(examples.dense, 0),
        vectors={v.name: column(examples.vectors[v.name], 0) for v in schema.vectors},
        sequences=sequences,
        labels=labels,
        domain=domain,
        weight=weight,
        training={t.name: column(examples.training[t.name], 0) for t in schema.training},
    )
    columns = HostColumns(
        labels=labels,
        domain=domain,
        weight=weight,
        user=column(examples.user, -1),
        example_id=column(examples.example_id, -1),
        time_s=column(examples.time_s, -1),
        true_probability=column(examples.true_probability, np.nan),
        num_examples=taken,
        slots=slot,
        truncated=truncated,
        position=position + taken,
        imbalance=_imbalance(np.bincount(device, attention_cost(kept, taken), minlength=num_devices)),
    )
    return batch, columns


def _imbalance(cost: np.ndarray) -> float:
    """The largest of the devices' costs over their mean."""
    return float(cost.max() / cost.mean()) if cost.any() else 1.0


def attention_cost(lengths: dict[str, np.ndarray], num_examples: int) -> np.ndarray:
    """Sum over sources of length^2, the number of query-key pairs: int64 [num_examples]."""
    cost = np.zeros(num_examples, np.int64)
    for source_lengths in lengths.values():
        cost += source_lengths[:num_examples].astype(np.int64) ** 2
    return cost


def _assign_devices(
    candidates: int, kept: dict[str, np.ndarray], tokens: dict[str, int], num_devices: int
) -> np.ndarray:
    """Device of each example taken, int64 [m]: the most leading examples whose rows fit, found by bisection."""
    cost = attention_cost(kept, candidates)
    rows = {name: _aligned(lengths) for name, lengths in kept.items()}

    def assign(count: int) -> np.ndarray:
        device = np.empty(count, np.int64)
        lap, place = np.divmod(np.arange(count), num_devices)
        device[np.argsort(-cost[:count], kind="stable")] = np.where(lap % 2 == 0, place, num_devices - 1 - place)
        return device

    def fits(device: np.ndarray) -> bool:
        return all(
            np.bincount(device, weights=rows[name][: len(device)], minlength=num_devices).max() <= tokens[name]
            for name in rows
        )

    best = assign(candidates)
    if fits(best):
        return best
    # One example a device always fits (`BatchConfig.budgets`).
    low, high = min(num_devices, candidates), candidates
    best = assign(low)
    while high - low > 1:
        middle = (low + high) // 2
        trial = assign(middle)
        if fits(trial):
            low, best = middle, trial
        else:
            high = middle
    return best


def _slots(device: np.ndarray, num_slots: int, num_devices: int) -> np.ndarray:
    """Slot of each example in the concatenated batch, int64 [m]; examples keep their order within a device."""
    order = np.argsort(device, kind="stable")
    counts = np.bincount(device, minlength=num_devices)
    slot = np.empty_like(device)
    slot[order] = ragged_ranges(np.arange(num_devices) * num_slots, counts)
    return slot


def _pack_events(
    history: Histories, kept: np.ndarray, slot: np.ndarray, num_slots: int, num_rows: int, num_devices: int
) -> Events:
    """The newest `kept` [m] events of each example, at the rows of its slot."""
    lengths = np.zeros(num_devices * num_slots, np.int32)
    lengths[slot] = kept
    offsets = np.zeros((num_devices, num_slots + 1), np.int32)
    np.cumsum(_aligned(lengths).reshape(num_devices, num_slots), axis=1, out=offsets[:, 1:])
    first_row = (offsets[:, :-1] + num_rows * np.arange(num_devices)[:, None]).reshape(-1)

    end = np.cumsum(history.lengths[: len(kept)], dtype=np.int64)
    source = ragged_ranges(end - kept, kept)
    target = ragged_ranges(first_row[slot], kept)

    def column(values: np.ndarray, fill: int) -> np.ndarray:
        out = np.full(num_devices * num_rows, fill, np.int32)
        out[target] = values[source]
        return out

    return Events(
        ids={name: column(values, -1) for name, values in history.ids.items()},
        age_s=column(history.age_s, 0),
        offsets=offsets.reshape(-1),
        lengths=lengths,
    )


def _aligned(lengths):
    """Rows that histories of these lengths take: rounded up to the start alignment."""
    return -(-lengths // START_ALIGNMENT) * START_ALIGNMENT

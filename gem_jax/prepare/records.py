"""Examples and events as files of fixed rows, which are memory-mapped: an example is one read, wherever it stands.

NumPy's own format (.npy) with a structured dtype: `numpy.load(file, mmap_mode="r")` shows every column by name. Histories are not
in them: an example has the rows of each event log at which its history begins and ends (`gem_jax.data.event_log`).

Shape letters: n examples, E events.
"""

import hashlib
import pathlib
from collections.abc import Iterable

import numpy as np

from gem_jax.data.batch import Examples, Histories
from gem_jax.data.event_log import EventLog
from gem_jax.data.schema import Schema, Sequence
from gem_jax.data.source import DataError
from gem_jax.prepare.spec import Spec

BLOCK = 2**16
"""Rows that are worked on at once where all of a file are."""


def example_dtype(schema: Schema) -> np.dtype:
    """A row of an example: all of `Examples` but what a prepared log never has; `time` is in ticks."""
    return np.dtype(
        [
            ("user", "<i8"),
            ("time", "<i8"),
            ("example_id", "<i8"),
            ("domain", "<i4"),
            ("labels", "<f4", (len(schema.tasks),)),
            ("dense", "<f4", (len(schema.dense),)),
            ("ids", [(f.name, "<i4", (f.max_ids,)) for f in schema.categoricals]),
            ("vectors", [(v.name, "<f4", (v.dim,)) for v in schema.vectors]),
            ("first", [(s.name, "<i8") for s in schema.sequences]),
            ("stop", [(s.name, "<i8") for s in schema.sequences]),
        ]
    )


def event_dtype(sequence: Sequence) -> np.dtype:
    """A row of an event."""
    return np.dtype([("user", "<i8"), ("time", "<i8"), ("ids", [(a.name, "<i4") for a in sequence.attributes])])


def examples_of(records: np.ndarray, spec: Spec, schema: Schema, logs: dict[str, EventLog]) -> Examples:
    """Records [n] of `example_dtype` as examples, with their histories.

    Args:
      records: in memory.
      spec: how rows became examples.
      schema: that of the spec.
      logs: sequence -> the events in whose rows `first` and `stop` count.
    """
    time = records["time"].copy()

    def column(*path: str) -> np.ndarray:
        values = records
        for name in path:
            values = values[name]
        return np.ascontiguousarray(values)

    def histories(name: str, log: EventLog) -> Histories:
        stop = column("stop", name)
        return log.histories(np.maximum(column("first", name), stop - spec.max_len), stop, time)

    return Examples(
        ids={f.name: column("ids", f.name) for f in schema.categoricals},
        dense=column("dense"),
        vectors={v.name: column("vectors", v.name) for v in schema.vectors},
        sequences={name: histories(name, log) for name, log in logs.items()},
        labels=column("labels"),
        domain=column("domain"),
        weight=np.ones(len(records), np.float32),
        user=column("user"),
        example_id=column("example_id"),
        time_s=time // spec.clock.ticks_per_s,
        true_probability=np.full((len(records), len(schema.tasks)), np.nan, np.float32),
    )


def log_of(records: np.ndarray, ticks_per_s: int) -> EventLog:
    """Records [E] of `event_dtype`, sorted, as a log; a memory map stays one."""
    ids = {name: records["ids"][name] for name in records.dtype["ids"].names or ()}
    return EventLog(user=records["user"], time=records["time"], ids=ids, ticks_per_s=ticks_per_s)


def event_order(records: np.ndarray) -> np.ndarray:
    """Order of records [E] of `event_dtype` by user, time and then their ids: the order of the rows of a log says nothing."""
    ids = [records["ids"][name] for name in records.dtype["ids"].names or ()]
    return np.lexsort((*reversed(ids), records["time"], records["user"]))


def find_histories(records: np.ndarray, logs: dict[str, EventLog], max_len: int) -> None:
    """Fills in `first` and `stop` of records [n] of `example_dtype`: the newest events strictly before; none of unknown users."""
    for start in range(0, len(records), BLOCK):
        block = records[start : start + BLOCK]
        for name, log in logs.items():
            first, stop = log.earlier(block["user"], block["time"], max_len)
            known = block["user"] >= 0
            block["first"][name], block["stop"][name] = np.where(known, first, 0), np.where(known, stop, 0)


def save_records(file: pathlib.Path, records: np.ndarray) -> None:
    """Writes records under another name and moves them there: they may be a memory map of the file that they replace."""
    partial = file.with_name(file.name + ".partial")
    with partial.open("wb") as opened:
        np.save(opened, records)
    partial.replace(file)


def open_records(file: pathlib.Path, dtype: np.dtype) -> np.ndarray:
    """A file of records as a memory map.

    Raises:
      DataError: it is missing, damaged or of other columns.
    """
    try:
        records = np.load(file, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{file} cannot be read ({str(error).splitlines()[0]}); prepare the log again") from error
    if records.dtype != dtype or records.ndim != 1:
        raise DataError(f"{file} has other columns than the preparation says; prepare the log again")
    return records


def file_digest(files: Iterable[pathlib.Path]) -> str:
    """Hex digest of all bytes of files, in this order."""
    found = hashlib.blake2b(digest_size=16)
    for file in files:
        with file.open("rb") as opened:
            found.update(hashlib.file_digest(opened, "blake2b").digest())
    return found.hexdigest()

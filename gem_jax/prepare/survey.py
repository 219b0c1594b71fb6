"""The first pass over a log: is it one, when did its rows happen, how do its first rows look; and the split by time."""

import dataclasses

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from gem_jax.data.source import PARTS, DataError
from gem_jax.prepare.encoder import EXAMPLE_ID, check_columns, column_batches
from gem_jax.prepare.log import Log
from gem_jax.prepare.spec import Columns
from gem_jax.prepare.types import family, is_list
from gem_jax.prepare.values import Clock

_list_lengths = pc.list_value_length  # pyright: ignore[reportAttributeAccessIssue]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Survey:
    """What the first pass found.

    Attributes:
      ticks: int64 [n], the rows' times.
      clock: what they count.
      sample: the first rows.
      longest: list column -> the most values of a row.
    """

    ticks: np.ndarray
    clock: Clock
    sample: pa.Table
    longest: dict[str, int]


def survey(log: Log, columns: Columns) -> Survey:
    """Reads a log once.

    Raises:
      DataError: a column that the user named is missing or of a type that it cannot have, there are no rows, a label is not 0, 1
        or null, a time is null or no time, or an example id stands twice.
    """
    shown = [name for name in (columns.item, columns.domain) if name is not None]
    named = [*columns.label, columns.time, columns.user, *shown]
    check_columns(log, named)
    for name in shown:
        if family(kind := log.schema.field(name).type) not in ("boolean", "integer", "unsigned", "number", "string"):
            raise DataError(
                f"{log.name}: column '{name}' is {kind}; an item or a domain must be an integer or a string"
            )
    names = log.schema.names
    ids: list[np.ndarray] = []
    ticks: list[np.ndarray] = []
    longest = {name: 0 for name in names if is_list(log.schema.field(name).type)}
    sample = next(log.batches(names), None)
    if sample is None:
        raise DataError(f"{log.name} holds no rows: it needs at least one example")
    given = [name for name in (EXAMPLE_ID,) if name in names]
    for batch in column_batches(log, dict.fromkeys([*columns.label, columns.time, *longest, *given])):
        for name in columns.label:
            batch[name].labels()
        ids += [batch[name].example_ids() for name in given]
        ticks.append(batch[columns.time].ticks())
        for name in longest:
            longest[name] = max(longest[name], pc.max(_list_lengths(batch[name].values)).as_py() or 0)
    if ids:
        _check_unique(np.concatenate(ids), log)
    times = np.concatenate(ticks)
    clock = Clock.of(log.schema.field(columns.time).type, int(times.max()))
    clock.check_span(times, log.name, columns.time)
    return Survey(ticks=times, clock=clock, sample=sample, longest=longest)


def _check_unique(ids: np.ndarray, log: Log) -> None:
    order = np.argsort(ids, kind="stable")
    again = order[1:][ids[order[1:]] == ids[order[:-1]]]
    if len(again):
        row = int(again.min())
        raise DataError(f"{log.name}, row {row}: '{EXAMPLE_ID}' is {ids[row]} again; ids of examples must be unique")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cut:
    """The split by time: rows of one time are in one part.

    Attributes:
      valid_from: first time of the validation part; that of the test part where there is none.
      test_from: first time of the test part.
      counts: part -> rows.
    """

    valid_from: int
    test_from: int
    counts: dict[str, int]

    @classmethod
    def of(cls, ticks: np.ndarray, *, valid_share: float, test_share: float, log: Log) -> "Cut":
        """The cut whose shares come nearest to those wanted.

        Raises:
          DataError: a part would be empty.
        """
        ordered = np.sort(ticks)
        test_place = _nearest_step(ordered, (1 - test_share) * len(ordered))
        valid_place = (
            _nearest_step(ordered, (1 - test_share - valid_share) * len(ordered)) if valid_share else test_place
        )
        counts = dict(zip(PARTS, (valid_place, test_place - valid_place, len(ordered) - test_place), strict=True))
        for part, share in zip(PARTS, (1, valid_share, test_share), strict=True):
            if share and not counts[part]:
                raise DataError(
                    f"{log.name}: the {part} part would be empty, since {len(ordered):,} rows have only "
                    f"{len(np.unique(ordered)):,} times; give finer times or another share"
                )
        # One number past the end is the time of no row.
        at = np.append(ordered, ordered[-1] + 1)
        return cls(valid_from=int(at[valid_place]), test_from=int(at[test_place]), counts=counts)


def _nearest_step(ordered: np.ndarray, place: float) -> int:
    """Of the places at which a sorted array steps up, or its ends, the one nearest to `place`; the earlier of two."""
    value = ordered[min(int(place), len(ordered) - 1)]
    left, right = (int(np.searchsorted(ordered, value, side)) for side in ("left", "right"))
    return left if place - left <= right - place else right

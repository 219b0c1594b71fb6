"""Raw columns as numbers: labels, users, times, reals; what is not one is refused with its row."""

import dataclasses
import hashlib
from typing import NoReturn

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from gem_jax.data.checks import first_true
from gem_jax.data.source import DataError
from gem_jax.prepare.types import family

_TICKS_OF_TIMESTAMPS = 10**6
_USER_BITS = 2**63 - 1
_LONGEST_AGE_S = 2**31 - 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Column:
    """A raw column's values in some rows of a log, of a plain type.

    Attributes:
      values: one a row.
      name: of the column.
      log: name of the log, for messages.
      first_row: row of the log at which the values start; rows count from 0.
    """

    values: pa.Array
    name: str
    log: str
    first_row: int = 0

    @property
    def family(self) -> str:
        """The family of its values."""
        return family(self.values.type)

    def refuse(self, bad: np.ndarray, what: str) -> NoReturn:
        """Raises DataError that names the first bad row and its value."""
        row = first_true(bad)
        raise DataError(f"{self.log}, row {self.first_row + row}: '{self.name}' is {self.values[row]}; {what}")

    def refuse_type(self, wanted: str) -> NoReturn:
        """Raises DataError that names the column's type."""
        raise DataError(f"{self.log}: column '{self.name}' is {self.values.type}; {wanted}")

    def labels(self) -> np.ndarray:
        """0, 1, or NaN where it is null (unobserved): float32 [n].

        Raises:
          DataError: a value is anything else.
        """
        labels = self.reals("a label must be 0, 1 or null (unobserved)")
        bad = ~np.isnan(labels) & (labels != 0) & (labels != 1)
        if bad.any():
            self.refuse(bad, "a label must be 0, 1 or null (unobserved)")
        return labels.astype(np.float32)

    def reals(self, wanted: str = "it must be numbers") -> np.ndarray:
        """Numbers, NaN where they are null: float64 [n].

        Raises:
          DataError: the column has no numbers, or one is infinite.
        """
        if self.family not in ("boolean", "integer", "unsigned", "number", "empty"):
            self.refuse_type(wanted)
        number = self.values.cast(pa.int8()) if self.family == "boolean" else self.values
        # Not all integers of 64 bits are float64 numbers; the nearest one does.
        reals = number.cast(pa.float64(), safe=False).fill_null(np.nan).to_numpy(zero_copy_only=False)
        if np.isinf(reals).any():
            self.refuse(np.isinf(reals), "it must be finite, or null where it is unknown")
        return reals

    def users(self) -> np.ndarray:
        """Users as int64 [n]: integers of 0 or more as they are, all other values by a stable hash of 63 bits, null as -1.

        Raises:
          DataError: the column is of a type that cannot name a user.
        """
        values = whole_numbers(self.values)
        kind = family(values.type)
        if kind not in ("integer", "unsigned", "string", "empty"):
            self.refuse_type("users must be integers or strings")
        if kind == "integer":
            users = values.cast(pa.int64()).fill_null(-1).to_numpy(zero_copy_only=False)
            if not ((users < 0) & np.asarray(values.is_valid())).any():
                return users
        encoded = values.cast(pa.string()).dictionary_encode()
        of_code = np.array([_user_of(text) for text in encoded.dictionary.to_pylist()] + [-1], np.int64)
        return of_code[encoded.indices.fill_null(len(of_code) - 1).to_numpy(zero_copy_only=False)]

    def example_ids(self) -> np.ndarray:
        """Ids of examples, int64 [n].

        Raises:
          DataError: one is no integer, null or negative.
        """
        if self.family != "integer":
            self.refuse_type("ids of examples must be integers")
        ids = self.values.cast(pa.int64()).fill_null(-1).to_numpy(zero_copy_only=False)
        if (ids < 0).any():
            self.refuse(ids < 0, "ids of examples must be 0 or more")
        return ids

    def ticks(self) -> np.ndarray:
        """Times as ticks of the column's own clock, int64 [n]: integers as they are, all else microseconds.

        Raises:
          DataError: a time is null, before 1970 or not a time.
        """
        if self.values.null_count:
            self.refuse(np.asarray(self.values.is_null()), "every row needs a time")
        if self.family == "integer":
            ticks = self.values.cast(pa.int64()).to_numpy(zero_copy_only=False)
        elif self.family == "number":
            seconds = self.reals()
            bad = np.isnan(seconds) | (seconds > 2**33)
            if bad.any():
                self.refuse(bad, "real times must be seconds; give other units as integers")
            ticks = np.round(seconds * _TICKS_OF_TIMESTAMPS).astype(np.int64)
        else:
            ticks = self._timestamps().cast(pa.int64()).to_numpy(zero_copy_only=False)
        if (ticks < 0).any():
            self.refuse(ticks < 0, "times must be 0 or more, or 1970 or later")
        return ticks

    def _timestamps(self) -> pa.Array:
        """The values as microseconds since 1970; those without a time zone are taken as UTC."""
        values = self.values
        if self.family == "string":
            try:
                values = values.cast(pa.timestamp("us"))
            except pa.ArrowException as error:
                raise DataError(
                    f"{self.log}: column '{self.name}' has text that is no time: {str(error).splitlines()[0]}; "
                    "write times as 2026-01-31 23:59:59, or as integers"
                ) from error
        elif self.family != "time":
            self.refuse_type("times must be timestamps, dates, integers or seconds")
        zone = getattr(values.type, "tz", None)
        if pa.types.is_date(values.type):
            values = values.cast(pa.timestamp("s"))
        return values.cast(pa.timestamp("us", zone), safe=False)


def whole_numbers(values: pa.Array) -> pa.Array:
    """Floats that are whole numbers as int64, NaN as null: what pandas makes of integers with absent ones; else the values."""
    if family(values.type) != "number":
        return values
    known = pc.if_else(pc.is_nan(values), None, values)
    is_whole = pc.and_(pc.equal(known, pc.floor(known)), pc.less(pc.abs(known), 2.0**63))
    return known.cast(pa.int64()) if pc.all(is_whole, skip_nulls=True, min_count=0).as_py() else values


def _user_of(text: str) -> int:
    """A small number as it is, else a hash of 63 bits that is the same everywhere."""
    if text.isdecimal() and str(int(text)) == text and int(text) <= _USER_BITS:
        return int(text)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") & _USER_BITS


@dataclasses.dataclass(frozen=True, kw_only=True)
class Clock:
    """What the log's times count.

    Attributes:
      family: of the column's values: "time", "integer" or "number".
      ticks_per_s: ticks of a second.
    """

    family: str
    ticks_per_s: int

    @classmethod
    def of(cls, kind: pa.DataType, latest: int) -> "Clock":
        """The clock of a column of this type, whose largest value is `latest`, in its own ticks.

        Integers are taken for seconds, or, where those would lie beyond the year 5138, for milli-, micro- or nanoseconds.
        """
        if family(kind) == "integer":
            powers = [power for power in (0, 3, 6, 9) if latest < 10 ** (11 + power)]
            return cls(family="integer", ticks_per_s=10 ** (powers[0] if powers else 9))
        return cls(family="number" if family(kind) == "number" else "time", ticks_per_s=_TICKS_OF_TIMESTAMPS)

    @property
    def unit(self) -> str:
        """What an integer counts, in words."""
        names = {1: "seconds", 10**3: "milliseconds", 10**6: "microseconds", 10**9: "nanoseconds"}
        return names[self.ticks_per_s]

    def ticks(self, column: Column) -> np.ndarray:
        """Times of a column as ticks of this clock, int64 [n].

        Raises:
          DataError: the column's times are of another kind, or a value is no time.
        """
        found = "time" if column.family == "string" else column.family
        if found != self.family:
            wanted = {"time": "timestamps", "integer": f"integers ({self.unit})", "number": "seconds"}[self.family]
            column.refuse_type(f"times were {wanted} when the log was prepared")
        return column.ticks()

    def check_span(self, ticks: np.ndarray, log: str, name: str) -> None:
        """Raises DataError where times lie so far apart that an age in seconds would not fit 32 bits."""
        span = (int(ticks.max()) - int(ticks.min())) // self.ticks_per_s
        if span > _LONGEST_AGE_S:
            raise DataError(
                f"{log}: times of '{name}' lie {span / 31_556_952:.0f} years apart; correct those that are 0 or in another unit"
            )

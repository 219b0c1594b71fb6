"""From the rows of a Parquet table to `Examples`, by the columns of `gem_jax.data.parquet`, and their checks.

Shape letters: n rows of the table, E events of all rows.
"""

import dataclasses

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from gem_jax.data.batch import Examples, Histories
from gem_jax.data.checks import (
    MAX_AGE_S,
    MAX_MAGNITUDE,
    MAX_WEIGHT,
    BadRows,
    Rows,
    check_ids,
    check_labels,
    check_numbers,
)
from gem_jax.data.columns import empty_examples, join_examples, take_examples
from gem_jax.data.parquet.columns import AGE, label_column, training_column, truth_column
from gem_jax.data.parquet.values import float32, in_one, integers, is_text, lists, numbers
from gem_jax.data.schema import Categorical, Schema, Sequence
from gem_jax.data.source import DataError

# pyarrow makes this function at import, where type checkers do not see it.
_index_in = pc.index_in  # pyright: ignore[reportAttributeAccessIssue]


def decode(table: pa.Table, schema: Schema, rows: Rows, row_ids: np.ndarray, sort_histories: bool = False) -> Examples:
    """Examples of a table.

    Args:
      table: columns as `check_columns` wants them.
      schema: names the columns.
      rows: the table's rows in their file.
      row_ids: int64 [n], the examples' ids where the table has none.
      sort_histories: sort each history's events by age, oldest first; else one in another order is refused.

    Raises:
      BadRows: rows break a rule of `gem_jax.data.parquet`: an id outside its table, a number that is not finite, a label not from
        0 to 1, lists of one sequence or vector that do not have the right length, an age that is negative, implausible or grows,
        an unknown domain, an example id that stands twice, or a null where none may be.
    """
    return _Decoder(table=table, schema=schema, rows=rows, row_ids=row_ids, sort_histories=sort_histories).examples()


def decode_good(
    table: pa.Table, schema: Schema, rows: Rows, row_ids: np.ndarray, sort_histories: bool
) -> tuple[Examples, int, DataError | None]:
    """Like `decode`, but a row that breaks a rule becomes an empty example, which has weight 0 and counts nowhere.

    Returns:
      (examples, count, error): as many examples as rows, the number of empty ones, and what is wrong with one of them.
    """
    count, first = len(rows), None
    kept = np.arange(count)
    while True:
        try:
            of_kept = dataclasses.replace(rows, numbers=rows.numbers[kept])
            remaining = table if len(kept) == count else table.take(kept)
            good = decode(remaining, schema, of_kept, row_ids[kept], sort_histories)
            break
        except BadRows as error:  # rows that break another rule as well are found in the next round
            first = first or error
            kept = kept[~error.bad]
    place = np.full(count, len(kept))
    place[kept] = np.arange(len(kept))
    examples = take_examples(join_examples([good, empty_examples(schema, 1)]), place)
    return examples, count - len(kept), first


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Decoder:
    table: pa.Table
    schema: Schema
    rows: Rows
    row_ids: np.ndarray
    sort_histories: bool

    def examples(self) -> Examples:
        schema, count = self.schema, len(self.rows)
        dense = [self._finite(feature.name) for feature in schema.dense]
        return Examples(
            ids={f.name: self._ids(f) for f in schema.categoricals},
            dense=np.stack(dense, axis=1) if dense else np.zeros((count, 0), np.float32),
            vectors={v.name: self._vector(v.name, v.dim) for v in schema.vectors},
            sequences={s.name: self._histories(s) for s in schema.sequences},
            labels=np.stack([self._probability(label_column(t)) for t in schema.tasks], axis=1),
            domain=self._domain(),
            weight=self._weight(),
            user=self._user(),
            example_id=self._example_id(),
            time_s=self._time(),
            true_probability=np.stack([self._probability(truth_column(t)) for t in schema.tasks], axis=1),
            training={c.name: self._training(training_column(c), c.dim) for c in schema.training},
        )

    def _has(self, name: str) -> bool:
        return name in self.table.column_names

    def _column(self, name: str) -> pa.Array:
        return in_one(self.table[name])

    def _finite(self, name: str, largest: float = MAX_MAGNITUDE) -> np.ndarray:
        values = numbers(self._column(name))
        check_numbers(values, self.rows, name, largest)
        return values.astype(np.float32, copy=False)

    def _weight(self) -> np.ndarray:
        if not self._has("weight"):
            return np.ones(len(self.rows), np.float32)
        weight = self._finite("weight", MAX_WEIGHT)
        self.rows.refuse(weight < 0, lambda row: f"'weight' is {weight[row]:g}; it must be 0 or more")
        return weight

    def _ids(self, feature: Categorical) -> np.ndarray:
        name = feature.name
        if feature.max_ids == 1:
            ids, _ = integers(self._column(name), self.rows, name)
            return self._in_table(ids, feature, name)[:, None]
        flat, lengths = lists(self._column(name))
        self.rows.refuse(
            lengths > feature.max_ids,
            lambda row: f"'{name}' has {lengths[row]} ids; raise its max_ids ({feature.max_ids}) or shorten the list",
        )
        ids = np.full((len(lengths), feature.max_ids), -1, np.int64)
        ids[np.arange(feature.max_ids) < lengths[:, None]] = integers(flat, self.rows, name, lengths)[0]
        return self._in_table(ids, feature, name)

    def _in_table(self, ids: np.ndarray, feature: Categorical, field: str, lengths=None) -> np.ndarray:
        check_ids(ids, feature.table, self.schema.table(feature.table).rows, self.rows, field, lengths)
        return ids.astype(np.int32, copy=False)

    def _vector(self, name: str, dim: int) -> np.ndarray:
        flat, lengths = lists(self._column(name))
        self.rows.refuse(lengths != dim, lambda row: f"'{name}' has {lengths[row]} numbers; the schema says dim={dim}")
        values = numbers(flat).reshape(-1, dim)
        check_numbers(values, self.rows, name)
        return values.astype(np.float32, copy=False)

    def _training(self, name: str, dim: int) -> np.ndarray:
        values = np.full((len(self.rows), dim), np.nan)
        if not self._has(name):
            return values.astype(np.float32)
        column = self._column(name)
        if dim == 1:
            values[:, 0] = numbers(column)
        else:
            flat, lengths = lists(column)
            known = np.asarray(column.is_valid())
            self.rows.refuse(
                known & (lengths != dim),
                lambda row: f"'{name}' has {lengths[row]} numbers; the schema says dim={dim}",
            )
            values[known] = numbers(flat).reshape(-1, dim)
        self.rows.refuse(
            np.isinf(values), lambda row: f"'{name}' is infinite; give a number, or null where it is unknown"
        )
        check_numbers(np.nan_to_num(values), self.rows, name)
        return values.astype(np.float32)

    def _user(self) -> np.ndarray:
        if not self._has("user"):
            return np.full(len(self.rows), -1, np.int64)
        return integers(self._column("user"), self.rows, "user", as_bits=True)[0].astype(np.int64, copy=False)

    def _example_id(self) -> np.ndarray:
        if not self._has("example_id"):
            return self.row_ids
        ids, absent = integers(self._column("example_id"), self.rows, "example_id")
        self.rows.refuse(absent, lambda _: "'example_id' is null; give every example one, or leave the column out")
        self.rows.refuse(ids < 0, lambda row: f"'example_id' is {ids[row]}; it must be 0 or more")
        order = np.argsort(ids, kind="stable")
        again = np.zeros(len(ids), bool)
        again[order[1:]] = ids[order[1:]] == ids[order[:-1]]
        self.rows.refuse(again, lambda row: f"'example_id' is {ids[row]} again; ids must be unique")
        return ids.astype(np.int64, copy=False)

    def _time(self) -> np.ndarray:
        if not self._has("time_s"):
            return np.full(len(self.rows), -1, np.int64)
        time_s, absent = integers(self._column("time_s"), self.rows, "time_s")
        self.rows.refuse(
            ~absent & (time_s < 0),
            lambda row: f"'time_s' is {time_s[row]}; it must be 0 or more, or null where it is unknown",
        )
        return time_s.astype(np.int64, copy=False)

    def _events(self, sequence: Sequence) -> dict[str, tuple[pa.Array, np.ndarray]]:
        """Attribute or age -> its values [E] and lengths [n], from lists of structs or from a list of each."""
        names = [*(a.name for a in sequence.attributes), AGE]
        if not self._has(sequence.name) or self._has(f"{sequence.name}.{AGE}"):
            return {name: lists(self._column(f"{sequence.name}.{name}")) for name in names}
        events, lengths = lists(self._column(sequence.name))
        fields = dict(zip(events.type.names, events.flatten(), strict=True))
        return {name: (fields[name], lengths) for name in names}

    def _histories(self, sequence: Sequence) -> Histories:
        events = self._events(sequence)
        age_name = f"{sequence.name}.{AGE}"
        values, lengths = events.pop(AGE)
        age, _ = integers(values, self.rows, age_name, lengths)
        self._check_ages(age, values, age_name, lengths)
        ids = {}
        for attribute in sequence.attributes:
            name = f"{sequence.name}.{attribute.name}"
            found, _ = integers(
                self._matching(events[attribute.name], lengths, name, age_name), self.rows, name, lengths
            )
            ids[attribute.name] = self._in_table(found, attribute, name, lengths)
        histories = Histories(ids=ids, age_s=age.astype(np.int32, copy=False), lengths=lengths)
        return self._oldest_first(histories, age_name)

    def _matching(
        self, lists_of: tuple[pa.Array, np.ndarray], lengths: np.ndarray, name: str, age_name: str
    ) -> pa.Array:
        """An attribute's values [E], one for each age."""
        values, own = lists_of
        self.rows.refuse(
            own != lengths,
            lambda row: f"'{name}' has {own[row]} events and '{age_name}' {lengths[row]}; they must agree",
        )
        return values

    def _check_ages(self, age: np.ndarray, values: pa.Array, name: str, lengths: np.ndarray) -> None:
        def what(index: int) -> str:
            looks = ", which looks like a Unix time" if age[index] > MAX_AGE_S else ""
            return f"'{name}' has {values[index]}{looks}; an event's age is 0 to {MAX_AGE_S} seconds before the example"

        self.rows.refuse((age < 0) | (age > MAX_AGE_S), what, lengths)

    def _oldest_first(self, histories: Histories, name: str) -> Histories:
        age, lengths = histories.age_s, histories.lengths
        grows = np.zeros(len(age) + 1, bool)
        grows[1:-1] = age[1:] > age[:-1]
        grows[np.cumsum(lengths)[:-1]] = False  # the first event of another example
        grows = grows[:-1]
        if not grows.any():
            return histories
        if self.sort_histories:
            example = np.repeat(np.arange(len(lengths)), lengths)
            order = np.lexsort((-age, example))  # stable: events of one age keep their order
            return Histories(ids={k: v[order] for k, v in histories.ids.items()}, age_s=age[order], lengths=lengths)
        self.rows.refuse(
            grows,
            lambda k: (
                f"'{name}' grows from {age[k - 1]} to {age[k]} along the list; histories are oldest first, "
                "so reverse the lists or set data.sort_histories=True"
            ),
            lengths,
        )
        return histories

    def _probability(self, name: str) -> np.ndarray:
        """A label or a true probability; NaN where it is null or the file has no such column."""
        if not self._has(name):
            return np.full(len(self.rows), np.nan, np.float32)
        values = float32(self._column(name))
        check_labels(values, self.rows, name)
        return values

    def _domain(self) -> np.ndarray:
        if not self._has("domain"):
            return np.zeros(len(self.rows), np.int32)
        column, names = self._column("domain"), self.schema.domains
        if is_text(column.type):
            domain = pc.fill_null(_index_in(column.cast(pa.string()), pa.array(names)), -1).to_numpy()
        else:
            domain, _ = integers(column, self.rows, "domain")
        self.rows.refuse(
            (domain < 0) | (domain >= len(names)),
            lambda row: f"'domain' is {column[row]}; the schema has {', '.join(names)}",
        )
        return domain.astype(np.int32)

"""Any table is prepared, or refused in one sentence; and what is prepared is scored with the numbers of training."""

import datetime
import decimal
import pathlib
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pytest
from rich.console import Console

from gem_jax.errors import UserError
from gem_jax.prepare import Preparation, prepare
from tests.gem_jax.data.random_examples import assert_same_examples

NAMES = (
    *("past", "age_s", "domain", "weight", "user", "time_s", "label", "training", "label_click", "click_missing", "p"),
    *("p_missing", "a.b", "a:b", " x ", "é", "", "=", "x,y", "first", "ids", "other"),
)
DAY = datetime.date(2020, 1, 1)


def scalar_columns(rng: np.random.Generator, n: int) -> list[pa.Array]:
    """A column of each type that CSV can hold too; some, many or no values absent."""
    absent = rng.random(n) < rng.choice([0, 0.1, 0.9])
    text = rng.choice(["q", "é", "two\nlines", "5"], n).astype(object)
    small, days = rng.integers(0, 9, n), rng.integers(0, 20, n)
    return [
        pa.array(rng.integers(-5, 5, n).astype(rng.choice(["i1", "i2", "i4", "i8"])), mask=absent),
        pa.array(rng.integers(0, 2**64 - 1, 5, np.uint64)[rng.integers(0, 5, n)], mask=absent),
        pa.array(rng.normal(size=n) * 10.0 ** rng.integers(-30, 30), mask=absent),
        pa.array(rng.random(n) < 0.5, mask=absent),
        pa.array(text, pa.string(), mask=absent),
        pa.array([f"text {k}" for k in range(n)], pa.string_view()),
        pa.array(np.where(absent, np.nan, small)),
        pa.array(rng.geometric(0.001, n), mask=absent),
        pa.array([None if a else DAY + datetime.timedelta(int(d)) for a, d in zip(absent, days, strict=True)]),
        pa.array(np.full(n, 3), mask=absent),
        pa.nulls(n),
    ]


def other_columns(rng: np.random.Generator, n: int) -> list[pa.Array]:
    """A column of each type that CSV cannot hold."""
    absent = rng.random(n) < rng.choice([0, 0.1, 0.9])
    lengths = rng.integers(0, 40, n).tolist()

    def lists(value: Any, kind: pa.DataType, length: int | None = None) -> pa.Array:
        sizes = lengths if length is None else [length] * n
        return pa.array([None if a else [value] * k for a, k in zip(absent, sizes, strict=True)], kind)

    return [
        lists(7, pa.list_(pa.int32())),
        lists(7, pa.list_(pa.int32()), 1),
        lists("a", pa.list_view(pa.string_view())),
        lists(1.5, pa.list_(pa.float32(), 2), 2),
        lists(1.5, pa.large_list(pa.float64()), 3),
        lists([1], pa.list_(pa.list_(pa.int8()))),
        pa.array([decimal.Decimal(k) / 4 for k in lengths], pa.decimal128(10, 2), mask=absent),
        pa.array([{"a": 1}] * n, pa.struct([("a", pa.int8())]), mask=absent),
        pa.array([b"ab"] * n, mask=absent),
        pa.array(rng.choice(["x", "y"], n)).dictionary_encode(),
    ]


def random_table(rng: np.random.Generator, *, csv: bool) -> pa.Table:
    n = int(rng.integers(30, 200))
    columns = {}
    for name in rng.permutation(NAMES)[:8]:
        kinds = scalar_columns(rng, n) + ([] if csv else other_columns(rng, n))
        columns[str(name)] = kinds[rng.integers(len(kinds))]
    columns["ts"] = pa.array(10**9 + rng.integers(0, rng.choice([50, 10**6]), n))
    columns["uid"] = pa.array(rng.integers(0, 9, n), mask=rng.random(n) < 0.1)
    columns["click"] = pa.array(rng.random(n) < 0.5)
    return pa.table(columns)


def settings(rng: np.random.Generator, log: pa.Table) -> dict[str, Any]:
    names = log.column_names
    found: dict[str, Any] = dict(min_count=int(rng.integers(1, 4)), max_len=int(rng.integers(1, 6)))
    if rng.random() < 0.3:
        found["item"] = names[0]
    if rng.random() < 0.3:
        found["domain"] = names[1]
    if rng.random() < 0.3:
        found["events"] = {"views": log.select(["ts", "uid", names[2]])}
    return found


@pytest.mark.parametrize("kind", ["table", "csv"])
def test_any_table_is_prepared_and_scored_alike_or_refused(tmp_path, kind):
    prepared = 0
    for seed in range(30):
        rng = np.random.default_rng(seed)
        log = random_table(rng, csv=kind == "csv")
        chosen = settings(rng, log)
        raw = stored(log, tmp_path / f"{seed}.csv") if kind == "csv" else log
        out = tmp_path / str(seed)
        try:
            made = prepare(raw, label="click", time="ts", user="uid", out=out, console=Console(quiet=True), **chosen)
        except UserError as error:
            assert "\n" not in str(error), seed
            continue
        prepared += 1
        splits = made.config.build()
        for part in (splits.train, splits.valid, splits.test):
            expected = part.read(np.arange(len(part)))
            rows = pa.concat_tables([log.slice(int(k), 1) for k in expected.example_id])
            rows = rows.append_column("example_id", pa.array(expected.example_id))
            rows = stored(rows, tmp_path / "rows.csv") if kind == "csv" else rows
            events = {"past": raw} | chosen.get("events", {})
            source = Preparation.load(out).source(rows, events=events)
            assert_same_examples(source.read(np.arange(len(source))), expected)
            assert np.isfinite(expected.dense).all()
            for feature in splits.schema.categoricals:
                ids = expected.ids[feature.name]
                assert -1 <= ids.min() and ids.max() < splits.schema.table(feature.table).rows
    assert prepared >= 10


def stored(table: pa.Table, file: pathlib.Path) -> pathlib.Path:
    """The table as CSV, which pyarrow does not write of string views."""
    for place, field in enumerate(table.schema):
        if field.type == pa.string_view():
            table = table.set_column(place, field.name, table.column(place).cast(pa.string()))
    pyarrow.csv.write_csv(table, file)
    return file

"""Any table that passes the reader is read as an independent, slow reading says; any other is refused by file, row and field."""

import decimal
import math
import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from gem_jax.data.parquet import ParquetSource
from gem_jax.data.schema import Categorical, Dense, Schema, Sequence, Table, Task, TrainingColumn, Vector
from gem_jax.data.source import DataError
from tests.gem_jax.data.random_examples import events_of

SCHEMA = Schema(
    tables=(Table(name="ad", rows=5),),
    categoricals=(
        Categorical(name="ad", table="ad", role="ad"),
        Categorical(name="tags", table="ad", role="ad", max_ids=2),
    ),
    dense=(Dense(name="price", role="ad"),),
    vectors=(Vector(name="image", dim=2, role="ad"),),
    sequences=(
        Sequence(name="past", attributes=(Categorical(name="ad", table="ad", role="event"),), max_len=3),
    ),
    tasks=(Task(name="click"),),
    domains=("feed", "reels"),
    training=(TrainingColumn(name="teacher"),),
)  # fmt: skip

INTEGER_TYPES = (pa.int8(), pa.int64(), pa.uint8(), pa.uint64(), pa.float32(), pa.float64(), pa.decimal128(21, 1))
NUMBER_TYPES = (pa.int64(), pa.uint64(), pa.float32(), pa.float64(), pa.decimal128(21, 1), pa.bool_())
LAYOUTS = (pa.list_, pa.large_list, pa.list_view)


def _values(dtype: pa.DataType, usual: st.SearchStrategy) -> st.SearchStrategy:
    """Mostly `usual` numbers, sometimes whatever else the type holds."""
    if pa.types.is_boolean(dtype):
        return st.none() | st.booleans()
    if pa.types.is_floating(dtype):
        return st.one_of(usual.map(float), usual.map(float), st.none(), st.floats(width=dtype.bit_width))
    if pa.types.is_decimal(dtype):
        return st.one_of(
            usual.map(lambda v: decimal.Decimal(str(v)).quantize(decimal.Decimal("0.1"))),
            st.none(),
            st.decimals(-(10**18), 10**18, places=1),
        )
    signed = pa.types.is_signed_integer(dtype)
    low, high = (-(2 ** (dtype.bit_width - 1)) if signed else 0), 2 ** (dtype.bit_width - signed) - 1
    clipped = usual.map(lambda value: min(max(int(value), low), high))
    return st.one_of(clipped, clipped, st.none(), st.integers(low, high))


@st.composite
def _scalars(draw, n: int, types, usual: st.SearchStrategy) -> pa.Array:
    dtype = draw(st.sampled_from(types))
    wild = draw(st.integers(0, 11)) == 0  # most columns are good, or no table would pass
    values = _values(dtype, usual) if wild else usual.map(lambda v: _plain(v, dtype))
    return pa.array([draw(values) for _ in range(n)], dtype)


def _plain(value, dtype: pa.DataType):
    if pa.types.is_decimal(dtype):
        return decimal.Decimal(str(value)).quantize(decimal.Decimal("0.1"))
    if pa.types.is_boolean(dtype):
        return bool(value)
    if pa.types.is_floating(dtype):
        return float(value)
    return int(value) if pa.types.is_signed_integer(dtype) else max(int(value), 0)


@st.composite
def _lists(draw, n: int, types, usual: st.SearchStrategy, lengths: list[int]) -> pa.Array:
    dtype = draw(st.sampled_from(types))
    layout = draw(st.sampled_from(LAYOUTS))
    wild = draw(st.integers(0, 11)) == 0
    values = _values(dtype, usual) if wild else usual.map(lambda v: _plain(v, dtype))
    rows = [[draw(values) for _ in range(length)] for length in lengths]
    if wild and draw(st.booleans()):
        rows[draw(st.integers(0, n - 1))] = None
    return pa.array(rows, layout(dtype))


@st.composite
def _ages(draw, lengths: list[int]) -> pa.Array:
    rows = [[draw(st.integers(0, 9)) for _ in range(length)] for length in lengths]
    if draw(st.integers(0, 9)):
        rows = [sorted(row, reverse=True) for row in rows]
    if draw(st.integers(0, 9)) == 0 and rows[0]:
        rows[0][0] = draw(st.sampled_from([-1, 2**31, 1_700_000_000, None, 946_080_000]))
    return pa.array(rows, draw(st.sampled_from(LAYOUTS))(pa.int64()))


@st.composite
def tables(draw) -> pa.Table:
    n = draw(st.integers(1, 6))
    some = st.integers(0, 3)
    lengths = [draw(some) for _ in range(n)]
    ids, small = st.integers(-1, 4), st.integers(-8, 8).map(lambda v: v / 2)
    columns = {
        "ad": draw(_scalars(n, INTEGER_TYPES, ids)),
        "tags": draw(_lists(n, INTEGER_TYPES, ids, [draw(st.integers(0, 2)) for _ in range(n)])),
        "price": draw(_scalars(n, NUMBER_TYPES, small)),
        "image": draw(_lists(n, (pa.float32(), pa.float64(), pa.int64()), small, [2] * n)),
        "past.ad": draw(_lists(n, INTEGER_TYPES, ids, lengths)),
        "past.age_s": draw(_ages(lengths)),
        "label.click": draw(_scalars(n, NUMBER_TYPES, st.sampled_from([0, 1, 1.0]))),
        "training.teacher": draw(_scalars(n, NUMBER_TYPES, small)),
        "domain": pa.array([draw(st.sampled_from(["feed", "reels"] * 20 + ["x"])) for _ in range(n)]),
    }
    optional = {
        "user": draw(_scalars(n, INTEGER_TYPES, st.integers(-1, 9))),
        "time_s": draw(_scalars(n, INTEGER_TYPES, st.integers(0, 9))),
        "weight": draw(_scalars(n, NUMBER_TYPES, st.integers(0, 8).map(lambda v: v / 2))),
        "true_probability.click": draw(_scalars(n, NUMBER_TYPES, st.sampled_from([0, 1]))),
        "example_id": pa.array(draw(st.permutations(range(n)))),
    }
    names = [name for name in optional if draw(st.booleans())]
    return pa.table(columns | {name: optional[name] for name in names})


class Bad(Exception):
    """The slow reading's verdict on a value."""


def _integer(value, dtype: pa.DataType, low: int, high: int, bits: bool = False) -> int:
    """A whole number, -1 where absent; the arithmetic is Python's own."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return -1
    if isinstance(value, float):
        if math.isinf(value) or abs(value) > (2**24 if dtype == pa.float32() else 2**53):
            raise Bad
    if value != int(value):
        raise Bad
    found = int(value)
    if found >= 2**63:
        if not bits or found >= 2**64 - 1:
            raise Bad
        found -= 2**64
    if not low <= found <= high:
        raise Bad
    return found


def _number(value, low: float = -1e18, high: float = 1e18, null: bool = False) -> float:
    """A number, NaN where it is absent and may be."""
    if value is None or value != value:
        if null:
            return math.nan
        raise Bad
    if not low <= value <= high:
        raise Bad
    return float(np.float32(float(value)))


def _slow_row(row: dict, types: dict[str, pa.DataType]) -> dict:
    """What one row means; raises Bad where it breaks a rule."""

    def element(name: str) -> pa.DataType:
        return types[name].value_type

    ages = [a for a in row["past.age_s"] or []]
    ads = [_integer(v, element("past.ad"), -1, 4) for v in row["past.ad"] or []]
    if (
        any(a is None or not 0 <= a <= 946_080_000 for a in ages)
        or ages != sorted(ages, reverse=True)
        or len(ads) != len(ages)
    ):
        raise Bad
    tags = [_integer(v, element("tags"), -1, 4) for v in row["tags"] or []]
    image = [_number(v) for v in row["image"] or []]
    if len(tags) > 2 or len(image) != 2 or row["domain"] not in SCHEMA.domains:
        raise Bad
    time_s = _integer(row.get("time_s"), types.get("time_s", pa.int64()), -(2**63), 2**63 - 1)
    absent = row.get("time_s") is None or row["time_s"] != row["time_s"]
    if not absent and time_s < 0:
        raise Bad
    return {
        "ad": [_integer(row["ad"], types["ad"], -1, 4)],
        "tags": tags + [-1] * (2 - len(tags)),
        "price": _number(row["price"]),
        "image": image,
        "past.ad": ads,
        "past.age_s": ages,
        "label": _number(row["label.click"], 0, 1, null=True),
        "teacher": _number(row["training.teacher"], null=True),
        "domain": SCHEMA.domains.index(row["domain"]),
        "user": _integer(row.get("user"), types.get("user", pa.int64()), -(2**63), 2**63 - 1, bits=True),
        "time_s": time_s,
        "weight": _number(row["weight"], 0, 1e9) if "weight" in row else 1.0,
        "truth": _number(row.get("true_probability.click"), 0, 1, null=True),
    }


def _slow(table: pa.Table) -> list[dict | None]:
    types = {field.name: field.type for field in table.schema}
    found = []
    for row in table.to_pylist():
        try:
            found.append(_slow_row(row, types))
        except Bad:
            found.append(None)
    return found


def _fast_row(examples, k: int) -> dict:
    events = events_of(examples.sequences["past"], k)
    return {
        "ad": examples.ids["ad"][k].tolist(),
        "tags": examples.ids["tags"][k].tolist(),
        "price": float(examples.dense[k, 0]),
        "image": examples.vectors["image"][k].tolist(),
        "past.ad": events["ad"].tolist(),
        "past.age_s": events["age_s"].tolist(),
        "label": float(examples.labels[k, 0]),
        "teacher": float(examples.training["teacher"][k, 0]),
        "domain": int(examples.domain[k]),
        "user": int(examples.user[k]),
        "time_s": int(examples.time_s[k]),
        "weight": float(examples.weight[k]),
        "truth": float(examples.true_probability[k, 0]),
    }


@pytest.mark.filterwarnings("ignore::gem_jax.data.source.DataWarning")
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(table=tables(), group_size=st.integers(1, 6))
def test_any_table_is_read_as_it_says_or_refused_by_row_and_field(tmp_path_factory, table, group_size):
    path = tmp_path_factory.getbasetemp() / "any.parquet"
    pq.write_table(table, path, row_group_size=group_size)
    expected = _slow(pq.read_table(path))
    indices = np.arange(len(expected))
    event("read" if all(row is not None for row in expected) else "refused")
    try:
        found = ParquetSource((path,), SCHEMA).read(indices)
    except DataError as error:
        said = re.match(rf"{re.escape(str(path))}, row (\d+): '([\w.]+)' ", str(error))
        assert said and expected[int(said[1])] is None and said[2] in table.column_names, error
    else:
        for k in indices:
            np.testing.assert_equal(_fast_row(found, k), expected[k])
    skipped = ParquetSource((path,), SCHEMA, max_bad_rows=len(expected)).read(indices)
    np.testing.assert_array_equal(skipped.example_id == -1, [row is None for row in expected])
    for k in indices[skipped.example_id != -1]:
        np.testing.assert_equal(_fast_row(skipped, k), expected[k])

"""Every type that writers store numbers, ids and lists in is read as what it means, or its row is refused."""

import decimal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gem_jax.data.batch import Examples
from gem_jax.data.parquet import ParquetSource
from gem_jax.data.source import DataError
from tests.gem_jax.data.random_examples import SCHEMA, assert_same_examples, random_examples
from tests.gem_jax.data.test_parquet import _rewrite, _write

NUM = 20
D = decimal.Decimal


def _set_column(table: pa.Table, name: str, values: pa.Array | pa.ChunkedArray) -> pa.Table:
    return table.set_column(table.column_names.index(name), name, values)


def _read(tmp_path, schema=SCHEMA, **columns: pa.Array) -> Examples:
    """Random examples with some columns replaced (`label_click` for 'label.click'), read back."""
    path = _write(tmp_path / "a.parquet", random_examples(NUM))
    for name, values in columns.items():
        _rewrite(path, lambda table, name=name, values=values: _set_column(table, name.replace("__", "."), values))
    return ParquetSource((path,), schema).read(np.arange(NUM))


def _refused(tmp_path, **columns: pa.Array) -> str:
    with pytest.raises(DataError) as error:
        _read(tmp_path, **columns)
    assert str(error.value).startswith(f"{tmp_path / 'a.parquet'}") and "\n" not in str(error.value)
    return str(error.value)


IDS = [None, 0, 1, 49, *range(16)]
INTEGER_TYPES = [
    pa.int8(), pa.int16(), pa.int32(), pa.int64(), pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64(),
    pa.float16(), pa.float32(), pa.float64(),
    pa.decimal128(10, 0), pa.decimal128(20, 3), pa.decimal256(50, 2), pa.dictionary(pa.int32(), pa.int64()),
]  # fmt: skip


@pytest.mark.parametrize("dtype", INTEGER_TYPES, ids=str)
def test_ids_of_every_type(tmp_path, dtype):
    if pa.types.is_dictionary(dtype):
        values = pa.array(IDS, pa.int64()).dictionary_encode()
    else:
        values = pa.array([None if v is None else D(v) for v in IDS] if pa.types.is_decimal(dtype) else IDS, dtype)
    found = _read(tmp_path, ad=values, user=values)
    expected = [-1 if v is None else v for v in IDS]
    np.testing.assert_array_equal(found.ids["ad"][:, 0], expected)
    np.testing.assert_array_equal(found.user, expected)
    assert (found.ids["ad"].dtype, found.user.dtype) == (np.int32, np.int64)


def test_flags_are_ids_and_numbers(tmp_path):
    flags = [True, False, None, *[False] * (NUM - 3)]
    found = _read(
        tmp_path, ad=pa.array(flags), hour=pa.array([v or False for v in flags]), label__click=pa.array(flags)
    )
    np.testing.assert_array_equal(found.ids["ad"][:3, 0], [1, 0, -1])
    np.testing.assert_array_equal(found.dense[:3, 1], [1, 0, 0])
    np.testing.assert_array_equal(found.labels[:3, 0], [1, 0, np.nan])


def test_nan_among_integers_that_became_floats_is_null(tmp_path):
    values = pa.array(np.array([np.nan, *range(NUM - 1)]), from_pandas=False)
    assert values.null_count == 0
    found = _read(tmp_path, ad=values, user=values, time_s=values)
    assert found.ids["ad"][0, 0] == found.user[0] == found.time_s[0] == -1
    np.testing.assert_array_equal(found.user[1:], np.arange(NUM - 1))


@pytest.mark.parametrize(
    "values, message",
    [
        (pa.array([2.5], pa.float64()), "'ad' is 2.5; it must be a whole number"),
        (pa.array([D("2.5")], pa.decimal128(9, 3)), "'ad' is 2.500; it must be a whole number"),
        (pa.array([float("inf")], pa.float64()), "'ad' is inf, too large to be exact as double"),
        (pa.array([2.0**24 + 2], pa.float32()), "'ad' is 1.67772e+07, too large to be exact as float"),
        (pa.array([2.0**54], pa.float64()), "'ad' is 1.80144e+16, too large to be exact as double"),
        (pa.array([2**63], pa.uint64()), "'ad' is 9223372036854775808; it must be below 2^63, so shift hashes right"),
        (pa.array([D(2**63)], pa.decimal128(20, 0)), "'ad' is 9223372036854775808; it must be below 2^63"),
        (pa.array([D(10**30)], pa.decimal128(38, 0)), f"'ad' is {10**30}; it must be below"),
    ],
    ids=lambda v: str(v.type) if isinstance(v, pa.Array) else None,
)
@pytest.mark.parametrize("field", ["ad", "topics", "example_id"])
def test_what_is_no_whole_number_is_refused_by_row(tmp_path, values, message, field):
    if field == "topics":
        filler = pa.array([[1]] * 9, pa.list_(values.type)) if not pa.types.is_decimal(values.type) else None
        lists = [[] for _ in range(9)] if filler is None else filler.to_pylist()
        column = pa.array([*lists, [1, values[0].as_py()], *[None] * 10], pa.list_(values.type))
    else:
        column = pa.array(
            [*[None if field == "ad" else k for k in range(9)], values[0].as_py(), *range(10, 20)], values.type
        )
    assert f", row 9: {message.replace('ad', field)}" in _refused(tmp_path, **{field: column})


def test_hashes_of_64_bits_stay_different_as_users(tmp_path):
    hashes = [2**63, 2**64 - 2, 2**63 - 1, 0, None, *range(1, NUM - 4)]
    expected = np.array([0 if v is None else v for v in hashes], np.uint64).view(np.int64)
    expected[4] = -1
    for dtype in (pa.uint64(), pa.decimal128(20, 0)):
        values = pa.array([None if v is None else D(v) for v in hashes] if dtype != pa.uint64() else hashes, dtype)
        np.testing.assert_array_equal(_read(tmp_path, user=values).user, expected)
    signed = pa.array([-5, *range(NUM - 1)])
    assert _read(tmp_path, user=signed).user[0] == -5
    unknown = pa.array([2**64 - 1, *range(NUM - 1)], pa.uint64())
    assert "row 0: 'user' is 18446744073709551615; it must be below 2^64 - 1" in _refused(tmp_path, user=unknown)


NUMBERS = {
    "int64": pa.array([2**53 + 1, -(2**24 + 1), *range(18)]),
    "uint64": pa.array([2**59, *range(19)], pa.uint64()),
    "decimal128": pa.array([D("1.25"), D("-7.5"), *[D(k) for k in range(18)]], pa.decimal128(12, 4)),
    "decimal256": pa.array([D("1.25"), D("-7.5"), *[D(k) for k in range(18)]], pa.decimal256(40, 4)),
    "half": pa.array(np.arange(20, dtype=np.float16) / 4),
    "double": pa.array(np.arange(20) / 3),
}


@pytest.mark.filterwarnings("ignore::gem_jax.data.source.DataWarning")  # large ones are warned of
@pytest.mark.parametrize("kind", NUMBERS)
def test_numbers_of_every_type_are_rounded_to_float32(tmp_path, kind):
    values = NUMBERS[kind]
    expected = np.array([float(v) for v in values.to_pylist()], np.float32)
    np.testing.assert_array_equal(_read(tmp_path, price=values).dense[:, 0], expected)
    vectors = pa.FixedSizeListArray.from_arrays(pa.concat_arrays([values] * 4), 4)
    np.testing.assert_array_equal(_read(tmp_path, image=vectors).vectors["image"].reshape(-1), np.tile(expected, 4))


def test_integer_weights_above_2_to_the_24_are_rounded(tmp_path):
    values = pa.array([2**24 + 1] * NUM)
    assert (_read(tmp_path, weight=values).weight == np.float32(2**24 + 1)).all()


@pytest.mark.parametrize(
    "layout",
    [pa.large_list, pa.list_view, pa.large_list_view, "fixed"],
    ids=["large_list", "list_view", "large_list_view", "fixed"],
)
def test_lists_of_every_layout(tmp_path, layout):
    def change(table):
        for name in ("topics", "clicks.ad", "clicks.age_s", "image"):
            values = table[name].to_pylist()
            dtype = pa.float32() if name == "image" else pa.int16() if name != "clicks.age_s" else pa.uint32()
            if layout == "fixed":
                if name == "image":
                    table = _set_column(table, name, pa.array(values, pa.list_(dtype, 4)))
            else:
                table = _set_column(table, name, pa.array(values, layout(dtype)))
        return table

    path = _rewrite(_write(tmp_path / "a.parquet", random_examples(NUM)), change)
    if layout != "fixed":
        assert pq.read_schema(path).field("topics").type.id == layout(pa.int16()).id
    examples = random_examples(NUM)
    examples.training.clear()
    assert_same_examples(ParquetSource((path,), SCHEMA).read(np.arange(NUM)), examples)


@pytest.mark.parametrize(
    "dtype", [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int8(), pa.string())], ids=str
)
def test_domains_of_every_text_type(tmp_path, dtype):
    names = [SCHEMA.domains[k] for k in random_examples(NUM).domain]
    found = _read(tmp_path, domain=pa.array(names).cast(dtype))
    np.testing.assert_array_equal(found.domain, random_examples(NUM).domain)
    names[7] = None
    assert "row 7: 'domain' is None; the schema has feed" in _refused(tmp_path, domain=pa.array(names).cast(dtype))


def _as_structs(table: pa.Table, layout=pa.list_) -> pa.Table:
    for name, attributes in (("clicks", ("ad", "topic", "age_s")), ("views", ("ad", "age_s"))):
        columns = [table[f"{name}.{a}"].to_pylist() for a in attributes]
        rows = [
            [dict(zip(attributes, event, strict=True)) for event in zip(*row, strict=True)]
            for row in zip(*columns, strict=True)
        ]
        rows = [row or None for row in rows]
        dtype = layout(pa.struct([(a, pa.int64()) for a in reversed(attributes)] + [("unused", pa.string())]))
        table = table.append_column(name, pa.array(rows, dtype)).drop_columns([f"{name}.{a}" for a in attributes])
    return table


@pytest.mark.parametrize("layout", [pa.list_, pa.large_list, pa.list_view], ids=["list", "large_list", "list_view"])
def test_histories_as_lists_of_structs(tmp_path, layout):
    path = _rewrite(_write(tmp_path / "a.parquet", random_examples(NUM)), lambda table: _as_structs(table, layout))
    examples = random_examples(NUM)
    examples.training.clear()
    assert_same_examples(ParquetSource((path,), SCHEMA).read(np.arange(NUM)), examples)


def test_wrong_lists_of_structs_are_refused(tmp_path):
    path = _rewrite(_write(tmp_path / "a.parquet", random_examples(NUM)), _as_structs)
    structs = pq.read_table(path)["views"]
    flat = pq.read_table(_write(tmp_path / "flat.parquet", random_examples(NUM)))

    def refused(change) -> str:
        other = tmp_path / "other.parquet"
        pq.write_table(change(pq.read_table(path)), other)
        with pytest.raises(DataError) as error:
            ParquetSource((other,), SCHEMA).read(np.arange(NUM))
        return str(error.value)

    assert "has 2 columns 'views.ad'; keep one" in refused(lambda t: t.append_column("views.ad", flat["views.ad"]))
    bare = pa.array([[{"ad": 1}]] * NUM)
    assert "has no column 'views.age_s'; add it" in refused(lambda t: _set_column(t, "views", bare))
    text = pa.array([[{"ad": "x", "age_s": 1}]] * NUM)
    assert "column 'views.ad' is list<item: string>; it must be a list of integers; number strings" in refused(
        lambda t: _set_column(t, "views", text)
    )
    rows = structs.to_pylist()
    rows[5] = [None, {"ad": 1, "age_s": 3}]
    assert "row 5: 'views.age_s' has None; an event's age" in refused(
        lambda t: _set_column(t, "views", pa.array(rows, structs.type))
    )
    rows[5] = [{"ad": 50, "age_s": 3}]
    assert "row 5: 'views.ad' is 50, outside table" in refused(
        lambda t: _set_column(t, "views", pa.array(rows, structs.type))
    )


def test_a_count_named_like_a_sequence_is_no_history(tmp_path):
    path = _write(tmp_path / "a.parquet", random_examples(NUM))
    _rewrite(path, lambda table: table.append_column("clicks", pa.array(range(NUM))))
    examples = random_examples(NUM)
    examples.training.clear()
    assert_same_examples(ParquetSource((path,), SCHEMA).read(np.arange(NUM)), examples)


def test_strings_as_ids_are_for_prepare(tmp_path):
    message = "column 'ad' is string; it must be an integer; number strings by python -m gem_jax.prepare"
    assert message in _refused(tmp_path, ad=pa.array(["x"] * NUM))
    assert "'topics' is list<element: string>; it must be a list of integers; number strings" in _refused(
        tmp_path, topics=pa.array([["x"]] * NUM)
    )


def test_small_decimals(tmp_path):
    """Types that older releases of Arrow do not have."""
    if not hasattr(pa, "decimal32"):
        pytest.skip("this release of pyarrow has no decimal32")
    for dtype in (pa.decimal32(6, 2), pa.decimal64(12, 2)):
        values = pa.array([D(k % 50) for k in range(NUM)], dtype)
        found = _read(tmp_path, ad=values, price=values)
        np.testing.assert_array_equal(found.ids["ad"][:, 0], np.arange(NUM) % 50)
        np.testing.assert_array_equal(found.dense[:, 0], np.arange(NUM) % 50)

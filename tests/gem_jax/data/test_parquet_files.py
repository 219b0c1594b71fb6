"""Parquet folders as Spark, Hive and pandas leave them, on any file system; what does not belong there; damage and change."""

import importlib.util
import pathlib
import re
import shutil

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gem_jax.data.columns import MemorySource, join_examples, take_examples
from gem_jax.data.parquet import ParquetConfig, ParquetSource, write_parquet
from gem_jax.data.parquet.files import find_files
from gem_jax.data.source import DataError
from tests.gem_jax.data.random_examples import SCHEMA, TAUGHT, assert_same_examples, random_examples
from tests.gem_jax.data.test_parquet import _rewrite, _set, _write

NUM = 20


def _some(path: pathlib.Path, seed: int = 0) -> pathlib.Path:
    return _write(path, random_examples(NUM, seed))


def _drop(*names: str):
    return lambda table: table.drop_columns(list(names))


def _refused(*files: pathlib.Path | str, schema=TAUGHT, read: bool = True) -> str:
    with pytest.raises(DataError) as error:
        source = ParquetSource(files, schema)
        if read:
            source.read(np.arange(len(source)))
    assert "\n" not in str(error.value)
    return str(error.value)


def test_folders_give_columns_to_the_files_below_them(tmp_path):
    for k, (feed, hour) in enumerate([("feed", "3"), ("stories", "4.5"), ("reels", "-1")]):
        folder = tmp_path / "train" / "dt=2026-01-02" / f"domain={feed}" / f"hour={hour}"
        _rewrite(_some(folder / "part-0.parquet", k), _drop("domain", "hour"))
    source = ParquetSource((tmp_path / "train",), TAUGHT)
    found = source.read(np.arange(3 * NUM))
    # files come in the order of their names: feed, reels, stories
    np.testing.assert_array_equal(found.domain, np.repeat([0, 1, 2], NUM))
    np.testing.assert_array_equal(found.dense[:, 1], np.repeat(np.float32([3, -1, 4.5]), NUM))
    expected = join_examples([random_examples(NUM, seed) for seed in (0, 2, 1)])
    np.testing.assert_array_equal(found.example_id, expected.example_id)
    before = source.identity()
    (tmp_path / "train" / "dt=2026-01-02" / "domain=feed" / "hour=3").rename(
        tmp_path / "train" / "dt=2026-01-02" / "domain=feed" / "hour=5"
    )
    assert ParquetSource((tmp_path / "train",), TAUGHT).identity() != before


def test_a_folder_may_weigh_all_its_rows(tmp_path):
    for weight in (0, 2):
        path = tmp_path / "train" / f"weight={weight}" / "0.parquet"
        _rewrite(_some(path, weight), lambda table: table.drop_columns("weight"))
    _rewrite(_some(tmp_path / "test" / "0.parquet", 1), lambda table: table.drop_columns("weight"))
    train = ParquetConfig(path=str(tmp_path), columns=TAUGHT).build().train
    np.testing.assert_array_equal(train.read(np.arange(2 * NUM)).weight, np.repeat(np.float32([0, 2]), NUM))
    shutil.rmtree(tmp_path / "train" / "weight=2")
    assert f"{tmp_path / 'train'}: every 'weight' is 0" in _build(tmp_path)


def test_a_folder_of_no_value_is_null_and_names_are_percent_encoded(tmp_path):
    schema = SCHEMA.replace(domains=("a b", "c"))
    for k, domain in enumerate(("a%20b", "c")):
        folder = tmp_path / f"domain={domain}" / "user=__HIVE_DEFAULT_PARTITION__"
        _rewrite(_some(folder / "0.parquet", k), _drop("domain", "user"))
    found = ParquetSource((tmp_path,), schema).read(np.arange(2 * NUM))
    np.testing.assert_array_equal(found.domain, np.repeat([0, 1], NUM))
    assert (found.user == -1).all()


def test_a_folder_whose_value_is_wrong_is_refused(tmp_path):
    path = _rewrite(_some(tmp_path / "hour=noon" / "0.parquet"), _drop("hour"))
    assert f"{path}: column 'hour' is string; it must be a number" in _refused(tmp_path)
    shutil.rmtree(tmp_path / "hour=noon")
    path = _some(tmp_path / "hour=1" / "0.parquet")
    assert f"{path} has 2 columns 'hour'; keep one" in _refused(tmp_path)


def test_what_writers_leave_beside_the_data_is_passed_over(tmp_path):
    folder = tmp_path / "train"
    _some(folder / "x.parquet" / "part-0.snappy.parquet")
    _some(folder / "000000_0", 1)  # Hive's files have no ending
    for name in (
        "_SUCCESS",
        "_metadata",
        "_common_metadata",
        ".part-0.parquet.crc",
        ".DS_Store",
        "_delta_log/0.json",
        ".a.parquet.unfinished",
    ):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("no Parquet")
    assert len(ParquetSource((folder,), TAUGHT)) == 2 * NUM


def test_files_without_rows_are_passed_over(tmp_path):
    _some(tmp_path / "1.parquet")
    pq.write_table(pa.table({}), tmp_path / "0.parquet")  # as pandas writes an empty frame
    table = pq.read_table(tmp_path / "1.parquet")
    pq.write_table(table.slice(0, 0), tmp_path / "2.parquet")
    assert_same_examples(ParquetSource((tmp_path,), TAUGHT).read(np.arange(NUM)), random_examples(NUM))
    (tmp_path / "1.parquet").unlink()
    assert f"{tmp_path} holds no rows" in _refused(tmp_path)


def test_columns_of_nulls_alone_have_no_type(tmp_path):
    """What pandas writes of a part in which nobody has a history, a user or a label."""
    path = _some(tmp_path / "0.parquet")
    nulls = pa.nulls(NUM)

    def change(table):
        for name in ("user", "time_s", "label.click", "ad", "topics", "training.teacher", "views.ad", "views.age_s"):
            table = table.set_column(table.column_names.index(name), name, nulls)
        for name in ("clicks.ad", "clicks.topic", "clicks.age_s"):
            empty = pa.array([[]] * NUM, pa.list_(pa.null()))
            table = table.set_column(table.column_names.index(name), name, empty)
        return table

    _rewrite(path, change)
    assert pq.read_schema(path).field("views.ad").type == pa.null()
    found = ParquetSource((path, _some(tmp_path / "1.parquet", 1)), TAUGHT).read(np.arange(2 * NUM))
    assert (found.user[:NUM] == -1).all() and (found.time_s[:NUM] == -1).all() and (found.ids["ad"][:NUM] == -1).all()
    assert (found.ids["topics"][:NUM] == -1).all() and np.isnan(found.labels[:NUM, 0]).all()
    assert np.isnan(found.training["teacher"][:NUM]).all()
    for name in ("clicks", "views"):
        assert not found.sequences[name].lengths[:NUM].any() and found.sequences[name].lengths[NUM:].any()
    _rewrite(path, lambda table: table.set_column(table.column_names.index("price"), "price", nulls))
    assert "0.parquet, row 0: 'price' is nan; replace it" in _refused(path)


@pytest.mark.parametrize("codec", ["none", "snappy", "gzip", "brotli", "zstd", "lz4"])
def test_every_codec_is_read(tmp_path, codec):
    path = _some(tmp_path / "0.parquet")
    pq.write_table(pq.read_table(path), path, compression=codec, row_group_size=7)
    assert_same_examples(ParquetSource((path,), TAUGHT).read(np.arange(NUM)), random_examples(NUM))


def test_a_folder_that_means_nothing_is_refused(tmp_path):
    _some(tmp_path / "0.parquet")
    _some(tmp_path / "old" / "1.parquet", 1)
    assert "has a folder 'old', which is neither 'column=value' nor" in _refused(tmp_path)


def test_a_file_that_is_no_parquet_is_named(tmp_path):
    _some(tmp_path / "0.parquet")
    (tmp_path / "notes.txt").write_text("hello")
    assert f"{tmp_path / 'notes.txt'} is not a Parquet file: " in _refused(tmp_path)
    (tmp_path / "notes.txt").write_bytes(b"")
    assert f"{tmp_path / 'notes.txt'} is not a Parquet file: " in _refused(tmp_path)


def test_places_without_files_are_named(tmp_path):
    assert f"{tmp_path / 'a.parquet'} does not exist" in _refused(tmp_path / "a.parquet")
    assert f"{tmp_path} holds no Parquet files" in _refused(tmp_path)
    assert "nowhere://a cannot be read: Protocol not known" in _refused("nowhere://a")


def _build(folder) -> str:
    with pytest.raises(DataError) as error:
        ParquetConfig(path=str(folder), columns=TAUGHT).build()
    return str(error.value)


def test_two_of_one_part_are_refused(tmp_path):
    for seed, name in enumerate(("train/0", "train", "test")):
        _some(tmp_path / f"{name}.parquet", seed)
    assert f"{tmp_path} has both train/ and train.parquet; keep one" in _build(tmp_path)


@pytest.mark.parametrize("name", ["val.parquet", "Valid.parquet", "validation/0.parquet", "vaild.parquet"])
def test_a_validation_part_under_another_name_is_not_overlooked(tmp_path, name):
    for seed, part in enumerate(("train.parquet", "test.parquet", name)):
        _some(tmp_path / part, seed)
    assert f"has '{name.split('/')[0]}' and no 'valid'; rename it" in _build(tmp_path)


@pytest.fixture
def memory():
    """A file system that is not the local one."""
    filesystem = fsspec.filesystem("memory")
    yield filesystem
    filesystem.rm("/bucket", recursive=True)


def test_files_of_other_systems(tmp_path, memory):
    for seed, part in enumerate(("train/dt=1", "train/dt=2", "test")):
        local = _some(tmp_path / f"{part}/0.parquet", seed)
        memory.pipe_file(f"/bucket/{part}/0.parquet", local.read_bytes())
    expected = join_examples([random_examples(NUM, seed) for seed in (0, 1)])
    identities = set()
    for path in ("memory://bucket/", f"file://{tmp_path}", str(tmp_path)):
        train = ParquetConfig(path=path, columns=TAUGHT).build().train
        assert_same_examples(train.read(np.arange(2 * NUM)), expected)
        identities.add(train.identity())
    assert len(identities) == 1
    source = ParquetSource(("memory://bucket/test",), TAUGHT)
    memory.rm_file("/bucket/test/0.parquet")
    with pytest.raises(DataError, match="memory://bucket/test/0.parquet cannot be read"):
        source.read(np.arange(3))


@pytest.mark.skipif(importlib.util.find_spec("s3fs") is not None, reason="s3fs is installed")
def test_a_file_system_that_is_not_installed_is_said():
    with pytest.raises(DataError, match="^s3://bucket/x cannot be read: Install s3fs"):
        find_files("s3://bucket/x")


@pytest.mark.parametrize("name", ["user", "weight", "time_s", "example_id", "true_probability.click"])
def test_an_optional_column_is_in_all_files_or_in_none(tmp_path, name):
    a, b = _some(tmp_path / "a.parquet"), _some(tmp_path / "b.parquet", 1)
    _rewrite(b, _drop(name))
    assert f"{b} has no column '{name}' and {a} has one; give it to all files or none" in _refused(a, b)


def test_columns_that_stand_twice(tmp_path):
    path = _some(tmp_path / "a.parquet")
    for name in ("example_id", "label.click", "clicks.age_s"):
        twice = tmp_path / f"{name}.parquet"
        pq.write_table(pq.read_table(path).append_column(name, pq.read_table(path)[name]), twice)
        assert f"{twice} has 2 columns '{name}'; keep one" in _refused(twice)
    _rewrite(path, lambda t: t.append_column("other", t["price"]).append_column("other", t["price"]))
    assert len(ParquetSource((path,), TAUGHT).read(np.arange(NUM))) == NUM  # nobody asks for those


def test_a_flipped_byte_is_found_by_the_page_checksums(tmp_path):
    """Uncompressed pages of fixed-size numbers read as something else without a checksum."""
    price = np.arange(1, NUM + 1, dtype=np.float32) / 64
    examples = random_examples(NUM)
    examples.dense[:, 0] = price
    path = tmp_path / "a.parquet"
    write_parquet(path, MemorySource(schema=TAUGHT, examples=examples))
    table = pq.read_table(path)
    for checksums in (True, False):
        pq.write_table(table, path, compression="none", use_dictionary=False, write_page_checksum=checksums)
        content = bytearray(path.read_bytes())
        place = content.index(price[3:5].tobytes()) + 2
        content[place] ^= 0x40
        path.write_bytes(content)
        if checksums:
            assert re.search("a.parquet, row group 0, column 'price' cannot be read: .*(CRC|crc)", _refused(path))
        else:
            assert not np.array_equal(ParquetSource((path,), TAUGHT).read(np.arange(NUM)).dense[:, 0], price)


def test_what_is_written_has_page_checksums(tmp_path):
    path = _some(tmp_path / "a.parquet")
    content = bytearray(path.read_bytes())
    column = pq.read_metadata(path).row_group(0).column(0)
    content[(column.dictionary_page_offset or column.data_page_offset) + column.total_compressed_size - 1] ^= 1
    path.write_bytes(content)
    assert re.search(r"a.parquet, row group 0, column '\w+' cannot be read: .*(CRC|crc)", _refused(path))


def test_a_flip_in_any_page_is_an_error_that_names_the_file_or_changes_nothing(tmp_path):
    """Of footers Parquet keeps no checksum."""
    path = _write(tmp_path / "a.parquet", random_examples(8), rows_per_group=8)
    good, expected = path.read_bytes(), random_examples(8)
    pages = len(good) - pq.read_metadata(path).serialized_size - 8
    refused = 0
    for place in np.random.default_rng(0).integers(0, pages, 100):
        content = bytearray(good)
        content[place] ^= 1 << (place % 8)
        path.write_bytes(content)
        try:
            found = ParquetSource((path,), TAUGHT).read(np.arange(8))
        except DataError as error:
            refused += 1
            assert str(error).startswith(f"{path}, row group 0, column '") and "\n" not in str(error), error
        else:
            assert_same_examples(found, expected)
    assert refused > 50


@pytest.mark.parametrize("change", ["delete", "shorten", "replace", "fewer groups", "same shape"])
def test_files_that_change_while_a_run_reads_them(tmp_path, change):
    path = _some(tmp_path / "a.parquet")
    source = ParquetSource((path,), TAUGHT)
    content = path.read_bytes()
    if change == "delete":
        path.unlink()
    elif change == "shorten":
        path.write_bytes(content[: len(content) // 2])
    elif change == "replace":
        path.write_text("hello")
    elif change == "fewer groups":
        _write(path, random_examples(NUM), rows_per_group=NUM)
    else:
        _rewrite(path, _set("price", 0, 1.0))
    with pytest.raises(DataError) as error:
        source.read(np.array([NUM - 1]))
    expected = "cannot be read" if change == "delete" else "changed while it was being read"
    assert str(error.value).startswith(f"{path} {expected}")


def test_writing_refuses_what_cannot_be(tmp_path):
    source = MemorySource(schema=TAUGHT, examples=random_examples(3))
    with pytest.raises(DataError, match="rows_per_group is 0; a row group holds at least 1"):
        write_parquet(tmp_path / "a.parquet", source, rows_per_group=0)
    with pytest.raises(DataError, match="no/a.parquet cannot be written"):
        write_parquet(tmp_path / "no" / "a.parquet", source)
    none = MemorySource(schema=TAUGHT, examples=take_examples(source.examples, np.zeros(0, np.int64)))
    with pytest.raises(DataError, match="there are no examples to write"):
        write_parquet(tmp_path / "a.parquet", none)
    assert not list(tmp_path.iterdir())

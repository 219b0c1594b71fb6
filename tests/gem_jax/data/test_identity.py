"""A digest is the same for the same data wherever it lies, and another one for other data; ids and schemas keep their promises."""

import dataclasses
import shutil
import time
import tracemalloc

import numpy as np
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from gem_jax.data.columns import MemorySource
from gem_jax.data.criteo import CriteoConfig
from gem_jax.data.frappe import FrappeConfig
from gem_jax.data.identity import BLOCK_BYTES, BLOCKS, digest, file_digest
from gem_jax.data.movielens import MovieLensConfig, SasRecConfig
from gem_jax.data.parquet import ParquetConfig, ParquetSource, write_parquet
from gem_jax.data.source import PARTS, DataConfig, DataError, FirstExamples, Source, Splits, numbered
from gem_jax.data.synthetic import SyntheticConfig
from gem_jax.prepare import PreparedConfig, prepare
from tests.gem_jax.data.random_examples import TAUGHT, random_examples
from tests.gem_jax.data.test_criteo import _columns, _write_parquet
from tests.gem_jax.data.test_frappe import _arrays
from tests.gem_jax.data.test_frappe import _write_npz as _write_frappe
from tests.gem_jax.data.test_movielens import _write_npz, _write_published
from tests.gem_jax.prepare.logs import random_log, table

SYNTHETIC = SyntheticConfig(seed=3, train_examples=300, test_examples=200, active_users=60, active_ads=72)


def _memory(seed: int = 0, n: int = 40) -> MemorySource:
    return MemorySource(schema=TAUGHT, examples=random_examples(n, seed))


def _parquet(folder) -> ParquetConfig:
    for seed, part in enumerate(PARTS):
        write_parquet(folder / f"{part}.parquet", _memory(seed), rows_per_group=7)
    return ParquetConfig(path=str(folder), columns=TAUGHT)


def _sasrec(folder) -> SasRecConfig:
    rng = np.random.default_rng(0)
    lines = [f"{user} {item}" for user in range(1, 6) for item in 1 + rng.permutation(9)[: 3 + user]]
    (folder / "sasrec.txt").write_text("\n".join([*lines, "1 12"]) + "\n")
    return SasRecConfig(path=str(folder / "sasrec.txt"), max_len=5)


def _prepared(folder) -> PreparedConfig:
    log = table(random_log(100))
    return prepare(log, label="click", time="ts", user="uid", out=folder / "out", console=Console(quiet=True)).config


CONFIGS = {
    "synthetic": lambda folder: SYNTHETIC,
    "parquet": _parquet,
    "criteo": lambda folder: CriteoConfig(path=_write_parquet(folder / "a.parquet", _columns())),
    "frappe": lambda folder: FrappeConfig(path=_write_frappe(folder / "f.npz", _arrays())),
    "movielens": lambda folder: MovieLensConfig(path=_write_published(folder)),
    "movielens npz": lambda folder: MovieLensConfig(path=_write_npz(folder)),
    "sasrec": _sasrec,
    "prepared": _prepared,
}


def _parts(splits: Splits) -> dict[str, Source]:
    return {name: getattr(splits, name) for name in PARTS if getattr(splits, name) is not None}


@pytest.mark.parametrize("name", CONFIGS)
def test_every_reader_keeps_the_contract(tmp_path, name):
    """Schema without building, ids unique in the whole data set and stable, identity of content; a copy elsewhere is the same."""
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
    config, copy = (CONFIGS[name](tmp_path / folder) for folder in ("a", "b"))
    assert isinstance(config, DataConfig)
    splits, again = config.build(), copy.build()
    assert config.schema() == splits.schema
    assert splits.identity() == again.identity()
    identity = splits.identity()
    assert len({part["digest"] for part in identity.values()}) == len(identity)
    ids = []
    for part, source in _parts(splits).items():
        assert isinstance(source, Source) and identity[part]["examples"] == len(source)
        order = np.random.default_rng(1).permutation(len(source))
        examples, other = source.read(order), getattr(again, part).read(np.arange(len(source)))
        np.testing.assert_array_equal(examples.example_id, other.example_id[order])
        for column in (examples.example_id, examples.time_s, examples.user):
            assert column.dtype == np.int64 and column.shape == (len(source),) and column.min() >= -1
        ids.append(examples.example_id)
    assert np.concatenate(ids).min() >= 0
    assert len(np.unique(np.concatenate(ids))) == sum(map(len, ids))


def test_times_are_the_datas_own(tmp_path):
    train = SYNTHETIC.build().train
    examples = train.read(np.arange(len(train)))
    assert (np.diff(examples.time_s) >= 0).all()
    np.testing.assert_array_equal(examples.time_s % 86_400 // 3600, examples.ids["hour"][:, 0])
    np.testing.assert_array_equal(examples.example_id, np.arange(len(train)))
    test = SYNTHETIC.build().test.read(np.array([0, 7]))
    np.testing.assert_array_equal(test.example_id, [300, 307])
    rated = MovieLensConfig(path=_write_published(tmp_path)).build().train.read(np.arange(5))
    past = rated.sequences["past"]
    ends = np.cumsum(past.lengths)
    oldest = [past.age_s[end - length] for end, length in zip(ends, past.lengths, strict=True) if length]
    first = rated.time_s[past.lengths == 0]  # when the first user's history begins
    np.testing.assert_array_equal(rated.time_s[past.lengths > 0] - oldest, np.full(len(oldest), first[0]))


def test_schema_of_the_largest_stream_costs_nothing():
    config = SyntheticConfig(train_examples=2_000_000_000, active_users=20_000_000, active_ads=400_008)
    tracemalloc.start()
    start = time.perf_counter()
    schema = config.schema()
    seconds, (_, peak) = time.perf_counter() - start, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert seconds < 1 and peak < 200 * config.active_ads  # by slots, whose ads are counted and not made
    assert schema.table("user").rows >= 20_000_000 and schema.table("ad").rows >= 800_000


@pytest.mark.parametrize("seats", [20, 21, 39, 77, 1001])
@pytest.mark.parametrize("examples", [1, 59, 5_000])
def test_schema_of_a_stream_holds_what_is_made(seats, examples):
    config = dataclasses.replace(SYNTHETIC, active_users=seats, train_examples=examples)
    splits, schema = config.build(), config.schema()
    for part in (splits.train, splits.test):
        read = part.read(np.arange(len(part)))
        assert read.user.max() < schema.table("user").rows and read.ids["ad"].max() < schema.table("ad").rows


@pytest.mark.parametrize(
    "changes", [{"seed": 4}, {"train_examples": 301}, {"active_users": 61}, {"active_ads": 96}, {"organic_max_len": 65}]
)
def test_another_stream_has_another_identity(changes):
    a, b = SYNTHETIC.build().train, dataclasses.replace(SYNTHETIC, **changes).build().train
    assert a.identity() != b.identity()


def test_a_stream_that_is_longer_afterwards_is_the_same_before():
    longer = dataclasses.replace(SYNTHETIC, test_examples=500).build()
    assert longer.train.identity() == SYNTHETIC.build().train.identity()
    assert longer.test.identity() != SYNTHETIC.build().test.identity()


def _every_array(value, found):
    for child in (
        value.values() if isinstance(value, dict) else [getattr(value, f.name) for f in dataclasses.fields(value)]
    ):
        if isinstance(child, np.ndarray):
            found.append(child)
        else:
            _every_array(child, found)
    return found


def test_every_element_of_every_column_counts():
    source = _memory()
    before, arrays = source.identity(), _every_array(source.examples, [])
    assert len(arrays) == 20  # 2 ids, dense, vector, 4 + 3 of histories, 7 columns, 2 for training
    for array in arrays:
        flat = array.reshape(-1)
        kept = flat[-1]
        flat[-1] = 0 if np.isnan(kept) else kept + 1
        assert source.identity() != before
        flat[-1] = kept
    assert source.identity() == before


def test_digests_tell_kinds_and_places_apart():
    values = [
        np.zeros(2, np.int32), np.zeros(1, np.int64), np.zeros(2, np.float32), np.zeros((1, 2), np.int32),
        [0, 0], {"a": 1}, {"a": "1"}, {"b": 1}, "a", 1, 1.0, None,
    ]  # fmt: skip
    assert len({digest(value) for value in values}) == len(values)
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})
    assert digest(1, 2) != digest(2, 1) != digest(12)
    assert digest(np.arange(4, dtype=">i4")) == digest(np.arange(4, dtype="<i4"))
    assert digest(np.arange(8).reshape(2, 4).T) == digest(np.ascontiguousarray(np.arange(8).reshape(2, 4).T))


def test_the_first_examples_are_other_data():
    source = _memory()
    assert FirstExamples(source, 100).identity() == FirstExamples(source, 40).identity() == source.identity()
    assert len({FirstExamples(source, k).identity() for k in (1, 2, 40)}) == 3


def test_parquet_of_the_next_day_has_another_identity(tmp_path):
    config = _parquet(tmp_path)
    before = config.build().identity()
    copied = tmp_path / "elsewhere"
    shutil.copytree(tmp_path, copied)
    assert dataclasses.replace(config, path=str(copied)).build().identity() == before
    examples = random_examples(40)
    examples.labels[11, 0] = (
        0.25 if examples.labels[11, 0] != 0.25 else 0.5
    )  # one label: no count and hardly a byte more
    write_parquet(tmp_path / "train.parquet", MemorySource(schema=TAUGHT, examples=examples), rows_per_group=7)
    after = config.build().identity()
    assert after["train"] != before["train"] and after["train"]["examples"] == before["train"]["examples"]
    assert (after["test"], after["valid"]) == (before["test"], before["valid"])


def _digest(path) -> str:
    with path.open("rb") as opened:
        return file_digest(opened, 100)


def test_a_large_file_is_sampled_at_both_ends_and_between(tmp_path):
    path = tmp_path / "large"
    content = np.random.default_rng(0).integers(0, 256, 3 * BLOCKS * BLOCK_BYTES, np.uint8)
    path.write_bytes(content.tobytes())
    before = _digest(path)
    for place in (0, len(content) - 1, len(content) - 100, BLOCK_BYTES - 1):
        content[place] ^= 1
        path.write_bytes(content.tobytes())
        assert _digest(path) != before
        content[place] ^= 1
    path.write_bytes(content.tobytes() + b"\0")
    assert _digest(path) != before


def test_a_file_that_vanished_is_named(tmp_path):
    source = _parquet(tmp_path).build().train
    (tmp_path / "train.parquet").unlink()
    with pytest.raises(DataError, match="train.parquet cannot be read"):
        source.identity()


def test_numbers_of_parts_do_not_meet():
    ids = [numbered(part, np.array([0, 2**40])) for part in PARTS]
    assert len(np.unique(ids)) == 6 and np.min(ids) == 0
    np.testing.assert_array_equal(ids[2] - ids[2][0], [0, 2**40])


def test_rows_without_ids_are_numbered_through_the_files_of_their_part(tmp_path):
    config = _parquet(tmp_path)
    for part in PARTS:
        path = tmp_path / f"{part}.parquet"
        pq.write_table(pq.read_table(path).drop_columns("example_id"), path, row_group_size=7)
    splits = config.build()
    for part, source in _parts(splits).items():
        np.testing.assert_array_equal(source.read(np.arange(40)).example_id, numbered(part, np.arange(40)))
    assert isinstance(splits.train, ParquetSource)

"""Frappe: npz and BARS folder give the same examples; ids are counted within their field."""

import numpy as np
import pytest

from gem_jax.data.frappe import FIELDS, FrappeConfig
from gem_jax.data.source import DataError


def _arrays() -> dict[str, np.ndarray]:
    """Three parts; field k has ids 100 k .. 100 k + 6 + k, the highest of which stands in the test part only."""
    rng = np.random.default_rng(0)
    first = 100 * np.arange(10)
    arrays = {}
    for part, rows in (("train", 50), ("valid", 20), ("test", 10)):
        arrays[f"{part}_x"] = (first + rng.integers(0, 5 + np.arange(10), (rows, 10))).astype(np.int16)
        arrays[f"{part}_y"] = rng.integers(0, 2, rows).astype(np.int8)
    arrays["train_x"][0] = first
    arrays["test_x"][3] = first + 6 + np.arange(10)
    return arrays


def _write_folder(folder, arrays, number="{}"):
    for part in ("train", "valid", "test"):
        lines = [",".join(("label", *FIELDS))]
        for label, values in zip(arrays[f"{part}_y"], arrays[f"{part}_x"], strict=True):
            lines.append(",".join(number.format(v) for v in (label, *values)))
        (folder / f"{part}.csv").write_text("\n".join(lines) + "\n")
    return str(folder)


def _write_npz(path, arrays) -> str:
    np.savez(path, **arrays)
    return str(path)


def test_ids_are_counted_within_their_field(tmp_path):
    arrays = _arrays()
    splits = FrappeConfig(path=_write_npz(tmp_path / "f.npz", arrays)).build()
    assert [t.rows for t in splits.schema.tables] == [7 + k for k in range(10)]
    assert splits.valid is not None
    for source, part in ((splits.train, "train"), (splits.valid, "valid"), (splits.test, "test")):
        assert len(source) == len(arrays[f"{part}_y"])
        examples = source.read(np.arange(len(source)))
        for k, name in enumerate(FIELDS):
            np.testing.assert_array_equal(examples.ids[name][:, 0], arrays[f"{part}_x"][:, k] - 100 * k)
        np.testing.assert_array_equal(examples.labels[:, 0], arrays[f"{part}_y"])
        np.testing.assert_array_equal(examples.user, examples.ids["user"][:, 0])


@pytest.mark.parametrize("number", ["{}", "{}.0"])
def test_folder_and_npz_agree(tmp_path, number):
    arrays = _arrays()
    a = FrappeConfig(path=_write_npz(tmp_path / "f.npz", arrays)).build()
    b = FrappeConfig(path=_write_folder(tmp_path, arrays, number)).build()
    assert a.schema == b.schema
    for name in FIELDS:
        expected = a.train.read(np.arange(50)).ids[name]
        np.testing.assert_array_equal(b.train.read(np.arange(50)).ids[name], expected)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"train_y": np.zeros(50)}, "every 'usage' label of the training part is 0"),
        ({"test_y": np.full(10, 3)}, "row 0: 'test_y' is 3; it must be from 0 to 1"),
        ({"test_y": np.zeros(4)}, "'test_y' has shape \\(4,\\) for 10 rows"),
        ({"valid_x": np.zeros((20, 10))}, "'valid_x' is float64 .* it must be integers"),
        ({"valid_x": np.zeros((20, 9), int)}, "it must be integers \\[rows, 10\\]"),
        ({"train_x": np.zeros((0, 10), int), "train_y": np.zeros(0)}, "holds no rows"),
    ],
)
def test_bad_arrays_are_named(tmp_path, changes, message):
    path = _write_npz(tmp_path / "f.npz", {**_arrays(), **changes})
    with pytest.raises(DataError, match=message) as error:
        FrappeConfig(path=path).build()
    assert path in str(error.value)


def test_missing_and_foreign_files_are_named(tmp_path):
    with pytest.raises(DataError, match="data.path is not set"):
        FrappeConfig(path="").build()
    with pytest.raises(DataError, match="train.csv does not exist"):
        FrappeConfig(path=str(tmp_path)).build()
    path = _write_npz(tmp_path / "f.npz", {"train_x": np.zeros((1, 10), int)})
    with pytest.raises(DataError, match="has no array train_y"):
        FrappeConfig(path=path).build()
    (tmp_path / "g.npz").write_text("hello")
    with pytest.raises(DataError, match="g.npz is not an npz file"):
        FrappeConfig(path=str(tmp_path / "g.npz")).build()
    _write_folder(tmp_path, _arrays())
    lines = (tmp_path / "valid.csv").read_text().splitlines()
    (tmp_path / "valid.csv").write_text("\n".join([*lines, ",".join(["1"] * 10 + ["rain"])]))
    with pytest.raises(DataError, match="valid.csv cannot be read as Frappe csv: .*rain"):
        FrappeConfig(path=str(tmp_path)).build()
    (tmp_path / "valid.csv").write_text("\n".join([lines[0].replace("city", "town"), *lines[1:]]))
    with pytest.raises(DataError, match="valid.csv has no column 'city'"):
        FrappeConfig(path=str(tmp_path)).build()


def test_real_file_has_the_published_counts(shared_data):
    splits = FrappeConfig(path=str(shared_data / "frappe_x1.npz")).build()
    assert splits.valid is not None
    assert (len(splits.train), len(splits.valid), len(splits.test)) == (202_005, 57_722, 28_860)
    assert [t.rows for t in splits.schema.tables] == [957, 4082, 7, 7, 2, 3, 2, 9, 80, 233]

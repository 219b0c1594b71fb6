"""Files are written whole or not at all, and what cannot be written is one sentence."""

import pathlib

import pytest

from gem_jax.errors import UserError
from gem_jax.files import read_rows, write_json, write_rows, write_text


def test_what_is_written_comes_back_and_leaves_no_partial_file(tmp_path):
    path = tmp_path / "new" / "rows.json"
    rows = [{"config": "a", "auc": 0.5}, {"config": "b", "auc": None}]
    write_rows(path, rows)
    assert read_rows(path) == rows
    assert [p.name for p in path.parent.iterdir()] == ["rows.json"]


def test_a_place_that_cannot_be_written_is_one_sentence(tmp_path):
    taken = tmp_path / "taken"
    write_text(taken, "a file")
    with pytest.raises(UserError, match="cannot be written"):
        write_text(taken / "below.txt", "text")
    assert taken.read_text() == "a file"


def test_numbers_that_json_lacks_leave_the_old_file(tmp_path: pathlib.Path):
    path = tmp_path / "value.json"
    write_json(path, {"loss": 1.0})
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(path, {"loss": float("nan")})
    assert path.read_text() == '{\n  "loss": 1.0\n}\n'

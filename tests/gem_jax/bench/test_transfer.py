"""The bench of labels on a tiny model: every row, and data that are too short."""

import json

import pytest

from gem_jax.bench import transfer

TINY = """
import pathlib

from gem_jax.config import Config
from tests.gem_jax.transfer.small import config_of


def get_config() -> Config:
    return config_of(pathlib.Path("runs"))
"""


@pytest.fixture
def tiny(tmp_path, monkeypatch) -> str:
    monkeypatch.setattr(transfer, "BLOCKS", 2)
    file = tmp_path / "tiny.py"
    file.write_text(TINY)
    return str(file)


@pytest.mark.slow
def test_rows(tiny, tmp_path, capsys):
    rows = tmp_path / "rows.json"
    words = [tiny, "--representation", "last", "--dim", "4", "--steps", "2", "--json", str(rows)]
    assert transfer.main(words) == 0
    found = json.loads(rows.read_text())
    assert [row["what"] for row in found] == [
        "teacher, logits", "teacher, embedding", "student, logits", "student, history",
    ]  # fmt: skip
    assert all(0 < row["ratio_from"] <= row["ratio"] <= row["ratio_to"] for row in found)
    assert capsys.readouterr().out.count("a step (") == 4


def test_too_many_steps_for_the_data(tiny, capsys):
    assert transfer.main([tiny, "--representation", "last", "--steps", "9"]) == 2
    assert "the training part is too short for so many steps" in capsys.readouterr().err

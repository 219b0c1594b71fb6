"""The scores that a run keeps: as they were, in order of id."""

import numpy as np
import pyarrow.parquet
import pytest

from gem_jax.data.source import DataError
from gem_jax.errors import UserError
from gem_jax.evaluation.evaluator import Evaluator
from gem_jax.evaluation.scores_file import FILE_NAME, read_scores, write_scores
from tests.gem_jax.evaluation.scored import SCHEMA, random_batch

TASKS = ("click", "buy")


def scores():
    evaluator = Evaluator(SCHEMA)
    logits, host = random_batch(0, 300)
    host.example_id[:] = np.random.default_rng(1).permutation(300) + 2**60
    evaluator.update(logits, host)
    return evaluator.scores()


def test_read_back(tmp_path):
    written = scores()
    write_scores(tmp_path / "run" / FILE_NAME, written, TASKS)
    found, tasks = read_scores(tmp_path / "run" / FILE_NAME)
    assert tasks == TASKS
    order = np.argsort(written.example_id)
    for name, column in vars(written).items():
        np.testing.assert_array_equal(getattr(found, name), column[order])
        assert getattr(found, name).dtype == column.dtype, name
    assert [path.name for path in (tmp_path / "run").iterdir()] == [FILE_NAME]
    names = pyarrow.parquet.read_schema(tmp_path / "run" / FILE_NAME).names
    assert names[:6] == ["example_id", "user", "domain", "weight", "label.click", "logit.click"]


def test_no_examples(tmp_path):
    write_scores(tmp_path / FILE_NAME, Evaluator(SCHEMA).scores(), TASKS)
    found, tasks = read_scores(tmp_path / FILE_NAME)
    assert found.logits.shape == (0, 2) and tasks == TASKS


def test_what_is_no_file_of_scores(tmp_path):
    with pytest.raises(DataError, match="no_such.parquet' cannot be read as Parquet"):
        read_scores(tmp_path / "no_such.parquet")
    (tmp_path / "text.parquet").write_text("no")
    with pytest.raises(DataError, match="text.parquet' cannot be read as Parquet"):
        read_scores(tmp_path / "text.parquet")
    pyarrow.parquet.write_table(pyarrow.table({"logit.click": [0.5], "user": [1]}), tmp_path / "other.parquet")
    with pytest.raises(
        DataError, match="no column domain, example_id, label.click, true_probability.click, weight; name"
    ):
        read_scores(tmp_path / "other.parquet")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        write_scores(tmp_path / "file" / FILE_NAME, scores(), TASKS)

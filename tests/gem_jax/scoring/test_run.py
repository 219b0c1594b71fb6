"""A run from its folder alone: the numbers of its own evaluation, whatever the examples lie in, in the order of the rows."""

import dataclasses
import json
import pathlib
import shutil

import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import gem_jax
from gem_jax.checkpoint.checkpoints import Checkpoints, snapshot
from gem_jax.checkpoint.errors import CheckpointError
from gem_jax.config import override
from gem_jax.data.columns import MemorySource, empty_examples
from gem_jax.data.parquet import ParquetSource
from gem_jax.data.source import DataError, DataWarning
from gem_jax.errors import UserError
from gem_jax.evaluation.evaluate import scored_batches
from gem_jax.scoring.run import Run, load_run
from gem_jax.scoring.saved import scoring_program
from tests.gem_jax.data.random_examples import SCHEMA, random_examples
from tests.gem_jax.scoring.conftest import EXAMPLES, scored_examples


@pytest.fixture(scope="module")
def run(trained) -> Run:
    return load_run(trained.run_dir, devices=jax.devices()[:1], say=pytest.fail)


def reference(trained) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities [n, N] and example ids of the run's own program and state on its test part, row by row."""
    test = trained.program.config.data.build().test
    program = trained.program
    logits, ids = [], []
    for batch, host in scored_batches(program, program.in_step(trained.state), test, program.config.batch):
        logits.append(batch[: host.num_examples])  # one device keeps the order
        ids.append(host.example_id[: host.num_examples])
    z = np.concatenate(logits)
    return (1 / (1 + np.exp(-z.astype(np.float64)))).astype(np.float32), np.concatenate(ids)


def test_the_numbers_are_those_of_the_evaluation_to_the_last_bit(trained, run):
    test = trained.program.config.data.build().test
    ours, theirs = (
        list(scored_batches(r.program, r.program.in_step(r.state), test, r.program.config.batch))
        for r in (run, trained)
    )
    assert len(ours) == len(theirs) > EXAMPLES // 16 + 1  # token budgets closed batches early
    for (logits, host), (expected, expected_host) in zip(ours, theirs, strict=True):
        assert logits.tobytes() == expected.tobytes()
        np.testing.assert_array_equal(host.example_id, expected_host.example_id)
    assert run.evaluate(test) == trained.summary["eval"] == run.summary["eval"]


def test_predict_is_in_the_order_of_the_rows_with_those_of_weight_0(trained, run, data):
    expected, ids = reference(trained)
    np.testing.assert_array_equal(ids, scored_examples().example_id)
    found = run.predict(data / "test.parquet")
    assert (found.dtype, found.shape) == (np.float32, (EXAMPLES, 2))
    np.testing.assert_array_equal(found, expected)
    assert len(np.unique(found[:, 0])) > EXAMPLES // 2


class Frame:
    """What pandas and Polars give of a table."""

    def __init__(self, table: pa.Table):
        self._table = table

    def __arrow_c_stream__(self, requested_schema=None):
        return self._table.__arrow_c_stream__(requested_schema)


def test_whatever_the_examples_lie_in(run, data, unlabelled, tmp_path):
    expected = run.predict(data / "test.parquet")
    table = pq.read_table(unlabelled)
    parts = tmp_path / "parts"
    parts.mkdir()
    for k, (start, stop) in enumerate(((0, 70), (70, EXAMPLES))):
        pq.write_table(table.slice(start, stop - start), parts / f"{k}.parquet")
    for examples in (unlabelled, str(unlabelled), parts, table, Frame(table), run.source(table)):
        assert run.predict(examples).tobytes() == expected.tobytes()


def test_tasks_by_name(run, unlabelled):
    both = run.predict(unlabelled)
    np.testing.assert_array_equal(run.predict(unlabelled, tasks=["conversion", "click"]), both[:, ::-1])
    np.testing.assert_array_equal(run.predict(unlabelled, tasks=["conversion"]), both[:, 1:])


def test_on_several_devices_the_order_is_the_same(trained, run, unlabelled):
    """Packing deals examples to devices by the length of their histories."""
    several = load_run(trained.run_dir, devices=jax.devices()[:4], say=pytest.fail)
    np.testing.assert_allclose(several.predict(unlabelled), run.predict(unlabelled), rtol=1e-5)


def test_bad_rows_that_a_reader_skips_keep_their_places(run, unlabelled, tmp_path):
    table = pq.read_table(unlabelled)
    ads = table["ad"].to_pylist()
    ads[70] = 50  # outside the table
    pq.write_table(table.set_column(table.column_names.index("ad"), "ad", pa.array(ads)), tmp_path / "bad.parquet")
    source = ParquetSource((tmp_path / "bad.parquet",), SCHEMA, for_training=False, max_bad_rows=1)
    with pytest.warns(DataWarning, match="1 of 150 rows are bad and count nowhere"):
        found = run.predict(source)
    assert np.flatnonzero(np.isnan(found).any(axis=1)).tolist() == [70]
    np.testing.assert_allclose(np.delete(found, 70, axis=0), np.delete(run.predict(unlabelled), 70, axis=0), rtol=1e-6)
    with pytest.raises(DataError, match="row 70: 'ad' is 50, outside table 'ad'"):
        run.predict(tmp_path / "bad.parquet")


def test_rows_that_a_reader_left_out_have_no_prediction(run):
    examples = random_examples(20)
    expected = run.predict(MemorySource(schema=SCHEMA, examples=examples))
    left_out = dataclasses.replace(
        examples,
        example_id=np.where(np.arange(20) == 7, -1, examples.example_id),
        weight=np.where(np.arange(20) == 7, 0, examples.weight),
    )
    found = run.predict(MemorySource(schema=SCHEMA, examples=left_out))
    assert np.isnan(found[7]).all() and np.isfinite(expected).all()
    np.testing.assert_array_equal(np.delete(found, 7, axis=0), np.delete(expected, 7, axis=0))


def test_embeddings_are_the_tables_rows(trained, run):
    found = run.embeddings("topic")
    assert (found.dtype, found.shape) == (np.float32, (7, 4))
    np.testing.assert_array_equal(found, np.asarray(trained.program.to_logical(trained.state)["tables/topic/weight"]))


def test_no_optimizer_of_the_tables_is_kept(run):
    assert list(run.program.parts.tables.to_logical(run.state.tables)) == ["ad/weight", "topic/weight"]


def test_what_a_run_says_of_itself(trained, run, capsys):
    assert gem_jax.load_run is load_run
    assert run.config == trained.program.config and run.schema == SCHEMA
    assert run.summary == json.loads(json.dumps(trained.summary))
    for shown in (run, trained):
        assert len(repr(shown)) < 400, repr(shown)
    assert repr(run) == (
        f"Run({str(trained.run_dir)!r}, checkpoint after 100 examples, model=DLRMConfig, tasks=(click, conversion))"
    )


# --- which checkpoint ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def several(trained, tmp_path) -> pathlib.Path:
    """A copy of the run with a best checkpoint of step 3 and a newest of step 99, whose base logits tell them apart."""
    folder = tmp_path / "mine"
    shutil.copytree(trained.run_dir, folder)
    for place, step, logit in (("best", 3, -2.0), ("checkpoints", 99, -4.0)):
        state = dataclasses.replace(trained.state, base_logits=jax.numpy.full(2, logit))
        checkpoints = Checkpoints(folder / place)
        position = {"progress": {"examples": 10 * step}}
        checkpoints.save(*snapshot(trained.program, state, step=step, data={}, position=position))
        checkpoints.close()
    return folder


def test_the_best_checkpoint_is_taken_where_there_is_one(several, trained):
    def taken(**which) -> tuple[str, float]:
        run = load_run(several, devices=jax.devices()[:1], say=pytest.fail, **which)
        return run.which(), float(run.state.base_logits[0])

    assert taken() == taken(checkpoint=3) == ("best checkpoint after 30 examples", -2.0)
    assert taken(checkpoint="newest") == ("checkpoint after 990 examples", -4.0)
    step = int(trained.state.step)
    assert taken(checkpoint=step) == ("checkpoint after 100 examples", float(trained.state.base_logits[0]))
    with pytest.raises(CheckpointError, match=f"has no checkpoint '7'; there are best, newest, 3, {step}, 99$"):
        taken(checkpoint=7)
    shutil.rmtree(several / "best")
    assert taken() == ("checkpoint after 990 examples", -4.0)
    with pytest.raises(
        CheckpointError, match=r"has no checkpoint 'best'; there are newest, .* \(train.keep_best keeps the best\)"
    ):
        taken(checkpoint="best")


def test_a_damaged_newest_checkpoint_is_named_and_left_where_it_is(several):
    (several / "checkpoints" / "99" / "manifest" / "metadata").write_text("{")
    said: list[str] = []
    run = load_run(several, checkpoint="newest", devices=jax.devices()[:1], say=said.append)
    assert run.which() == "checkpoint after 100 examples" and (several / "checkpoints" / "99").is_dir()
    assert len(said) == 1 and "99 is damaged: its manifest is not whole JSON; going back" in said[0]
    with pytest.raises(CheckpointError, match="there is no whole checkpoint in"):
        load_run(several, checkpoint=99, say=said.append)


# --- what is refused ----------------------------------------------------------------------------------------------------------


def test_no_run(tmp_path, monkeypatch, trained):
    with pytest.raises(CheckpointError, match="none does not exist; name the folder of a run"):
        load_run(tmp_path / "none")
    with pytest.raises(CheckpointError, match="has no checkpoint; name the folder of a run"):
        load_run(tmp_path)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(UserError, match="by one process, and this job has several; start one"):
        load_run(trained.run_dir)


def test_unknown_names(run, unlabelled):
    with pytest.raises(
        UserError, match="the run has no task 'clik'; did you mean click\\? there are click, conversion"
    ):
        run.predict(unlabelled, tasks=["clik"])
    with pytest.raises(UserError, match="the run has no table 'xyz'; there are ad, topic"):
        run.embeddings("xyz")


def test_data_that_cannot_be_scored(run, unlabelled, tmp_path):
    table = pq.read_table(unlabelled)
    for few, where in ((table.drop_columns(["ad", "views.age_s"]), "the table"), (None, str(tmp_path / "few.parquet"))):
        if few is None:
            pq.write_table(table.drop_columns(["ad", "views.age_s"]), where)
        with pytest.raises(DataError, match=f"{where} lacks what the model reads: ad, views.age_s; add it"):
            run.predict(where if few is None else few)
    with pytest.raises(DataError, match="the table holds no rows"):
        run.predict(table.slice(0, 0))
    with pytest.raises(DataError, match="there is nothing to score"):
        run.predict(MemorySource(schema=SCHEMA, examples=empty_examples(SCHEMA)))
    with pytest.raises(DataError, match="none.parquet does not exist; give a Parquet file"):
        run.predict(tmp_path / "none.parquet")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty holds no Parquet files; give a file"):
        run.predict(tmp_path / "empty")
    with pytest.raises(DataError, match="examples cannot be a 'list'; give a path, or a table of pyarrow"):
        run.predict([1, 2])
    other = SCHEMA.replace(dense=SCHEMA.dense[::-1])
    with pytest.raises(DataError, match="another schema than the run: dense differ; open the data with the run's"):
        run.predict(MemorySource(schema=other, examples=random_examples(3)))


def test_an_evaluation_needs_labels(run, unlabelled):
    with pytest.raises(DataError, match=r"no example has a label .* give labels \(columns label.click, label.conver"):
        run.evaluate(unlabelled)


def test_a_prediction_that_is_no_number_is_refused_by_the_examples_id(run, unlabelled):
    broken = dataclasses.replace(
        run, state=dataclasses.replace(run.state, base_logits=jax.numpy.array([np.inf, 0], np.float32))
    )
    with pytest.raises(DataError, match="logit of 'click' is inf for the example with example_id 0; look for numbers"):
        broken.predict(unlabelled)
    assert np.isfinite(broken.predict(unlabelled, tasks=["conversion"])).all()


def test_what_would_end_the_process_is_refused(trained, monkeypatch):
    """bfloat16 of a run on GPUs, on a CPU."""
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    config = override(trained.program.config, ["precision.compute=bfloat16"])
    with pytest.raises(UserError, match="precision.compute=bfloat16 would crash XLA on a CPU"):
        scoring_program(config, SCHEMA, None)


def test_a_misspelt_column_is_recognised(run, unlabelled):
    table = pq.read_table(unlabelled)
    names = ["Ad" if name == "ad" else name for name in table.column_names]
    with pytest.raises(DataError, match="lacks what the model reads: ad; add it; is 'Ad' 'ad'\\?$"):
        run.predict(table.rename_columns(names))

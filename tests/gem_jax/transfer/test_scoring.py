"""A teacher's labels: none by parameters that have seen the example, the same after a kill, refused where they do not belong."""

import dataclasses
import time

import jax
import numpy as np
import pytest

from gem_jax import load_run
from gem_jax.data.loader import Loader
from gem_jax.data.packing import BatchConfig
from gem_jax.errors import UserError
from gem_jax.evaluation.errors import DivergedError
from gem_jax.parallel.mesh import MeshConfig
from gem_jax.parallel.sharding import place_batch
from gem_jax.run.plan import RunPlan
from gem_jax.run.program import Program
from gem_jax.train import base_rate_logits
from gem_jax.transfer import scoring
from gem_jax.transfer.labels import LabelStore
from gem_jax.transfer.manifest import EmbeddingConfig, read_manifest
from gem_jax.transfer.scoring import ProgressiveLabels, label
from tests.gem_jax.transfer.small import BATCH, NUM_TEST, NUM_TRAIN, Data, config_of, teach

EMBEDDING = EmbeddingConfig(representation="last", dim=5, storage="float32")
ROUNDING = dict(rtol=1e-4, atol=1e-5)
"""Of float32 sums of some dozens of terms of order one, in two programs that order them differently."""


@pytest.fixture(scope="module")
def taught(tmp_path_factory):
    """A teacher, and the store that it made while it trained for two epochs."""
    folder = tmp_path_factory.mktemp("taught")
    result = teach(config_of(folder / "runs", epochs=2), ProgressiveLabels(folder / "labels", EMBEDDING))
    return result, folder / "labels"


def replay(config, *, steps):
    """(example ids, logits before the step, logits after it, last vectors before it) of each step of the teacher's training."""
    splits = config.data.build()
    program = Program.of(config, splits.schema, RunPlan.of(config, splits.schema, jax.devices()[:1]))
    state = program.init(config.train.seed, base_rate_logits(splits.train))
    found = []
    for _, (batch, host) in zip(
        range(steps), Loader(splits.train, config.batch, seed=config.train.seed, num_epochs=2), strict=False
    ):
        placed = place_batch(batch, program.mesh)
        before = program.score(state, placed)
        last = np.asarray(before.representations["last"])
        done = sum(len(ids) for ids, *_ in found)
        state, _ = program.train_step(state, placed, done / (2 * NUM_TRAIN))
        after = np.asarray(program.eval_step(state, placed))
        slots = host.slots
        found.append((host.example_id[slots], np.asarray(before.logits)[slots], after[slots], last[slots]))
    return found


def test_no_label_is_by_a_teacher_that_has_trained_on_the_example(taught):
    result, folder = taught
    store = LabelStore(folder)
    splits = Data().build()
    assert len(store) == NUM_TRAIN
    np.testing.assert_array_equal(store.example_id, np.sort(splits.train.examples.example_id))
    seen, matrix = set(), None
    for ids, before, after, last in replay(result.program.config, steps=-(-NUM_TRAIN // BATCH)):
        first = np.array(
            [i not in seen for i in ids]
        )  # a batch may hold the end of one epoch and the start of the next
        seen |= set(ids.tolist())
        rows = store.find(ids[first])
        np.testing.assert_allclose(store.logits[rows], before[first], **ROUNDING)
        assert (
            np.abs(store.logits[rows] - after[first]).max(axis=1) > 1e-3
        ).mean() > 0.9  # a label after the step would show
        matrix = np.random.default_rng(0).normal(size=(last.shape[1], 5)) / np.sqrt(last.shape[1])
        np.testing.assert_allclose(store.embeddings(rows), last[first] @ matrix, rtol=1e-3, atol=1e-4)
    assert len(seen) == NUM_TRAIN and matrix is not None


def test_labels_know_whose_they_are(taught):
    result, folder = taught
    store = LabelStore(folder)
    train = Data().build().train.examples
    rows = store.find(train.example_id)
    np.testing.assert_array_equal(store.user[rows], train.user)
    np.testing.assert_array_equal(store.time_s[rows], train.time_s)
    manifest = read_manifest(folder)
    (made,) = manifest.passes.values()
    assert manifest.tasks == ("click", "conversion") and manifest.width == 5
    assert (made.run, made.examples, made.state, made.jax) == ("teacher", NUM_TRAIN, None, jax.__version__)
    assert made.embedding_loss == 0 and made.data == Data().build().train.identity()


@pytest.mark.slow
def test_on_a_mesh_the_labels_are_the_same(taught, tmp_path):
    """Of the first two steps; from there rounding grows as it does in training."""
    config = config_of(tmp_path / "runs", epochs=1).replace(mesh=MeshConfig(replica=2, shard=2))
    teach(config.replace(batch=BatchConfig(examples=BATCH // 4)), ProgressiveLabels(tmp_path / "labels", EMBEDDING))
    found, whole = LabelStore(tmp_path / "labels"), LabelStore(taught[1])
    np.testing.assert_array_equal(found.example_id, whole.example_id)
    np.testing.assert_array_equal(found.user, whole.user)
    first = np.concatenate([ids for ids, *_ in replay(taught[0].program.config, steps=2)])
    rows = whole.find(first)
    assert len(rows) == 2 * BATCH and (rows >= 0).all()
    np.testing.assert_allclose(found.logits[rows], whole.logits[rows], **ROUNDING)
    np.testing.assert_allclose(found.embeddings(rows), whole.embeddings(rows), **ROUNDING)


def test_a_teacher_that_diverges_says_so_itself(tmp_path):
    config = config_of(tmp_path / "runs")
    config = config.replace(optimizer=dataclasses.replace(config.optimizer, learning_rate=1e30, clip_norm=1e30))
    with pytest.raises(DivergedError):
        teach(config, ProgressiveLabels(tmp_path / "labels", EMBEDDING))


class Killed(BaseException):
    """A process that dies cleans nothing up."""


class DiesAt(ProgressiveLabels):
    """Dies after a number of steps, when a checkpoint is on disk: some labels are of later steps, and some are nowhere yet."""

    def __init__(self, *args, after, checkpoints):
        super().__init__(*args)
        self.left, self.checkpoints = after, checkpoints

    def step(self, outputs, host):
        if self.left == 0:
            limit = time.monotonic() + 60
            while not list(self.checkpoints.glob("[0-9]*/commit_success.txt")) and time.monotonic() < limit:
                time.sleep(0.02)
            self._wait()  # a dead process writes nothing more, and this one lives on
            raise Killed
        self.left -= 1
        super().step(outputs, host)


def test_a_killed_teacher_goes_on_labelling(taught, tmp_path, monkeypatch):
    monkeypatch.setattr(scoring, "EXAMPLES_PER_FILE", BATCH)
    config = config_of(tmp_path / "runs", epochs=2)
    config = config.replace(checkpoint=dataclasses.replace(config.checkpoint, examples=4 * BATCH))
    with pytest.raises(Killed):
        folder = tmp_path / "runs" / "teacher" / "checkpoints"
        teach(config, DiesAt(tmp_path / "labels", EMBEDDING, after=7, checkpoints=folder))
    assert 4 * BATCH < len(LabelStore(tmp_path / "labels")) < 7 * BATCH
    teach(config, ProgressiveLabels(tmp_path / "labels", EMBEDDING), resume=True)
    found, whole = LabelStore(tmp_path / "labels"), LabelStore(taught[1])
    np.testing.assert_array_equal(found.example_id, whole.example_id)
    np.testing.assert_array_equal(found.logits, whole.logits)
    np.testing.assert_array_equal(found.embeddings(np.arange(NUM_TRAIN)), whole.embeddings(np.arange(NUM_TRAIN)))
    assert read_manifest(tmp_path / "labels").passes["train"].examples == NUM_TRAIN


def test_a_separate_pass_gives_the_runs_own_logits_and_goes_on_where_it_stopped(taught, tmp_path, monkeypatch):
    result, _ = taught
    run = load_run(result.run_dir, classes=(Data,), devices=jax.devices()[:1])
    splits = Data().build()
    label(run, splits, tmp_path / "whole", say=lambda line: None)
    whole = LabelStore(tmp_path / "whole")
    assert len(whole) == NUM_TRAIN + NUM_TEST
    probabilities = run.predict(splits.test)
    rows = whole.find(splits.test.examples.example_id)
    expected = (1 / (1 + np.exp(-whole.logits[rows].astype(np.float64)))).astype(np.float32)
    np.testing.assert_array_equal(expected, probabilities)

    monkeypatch.setattr(scoring, "EXAMPLES_PER_FILE", 3 * BATCH)
    label(run, splits, tmp_path / "cut", embedding=EMBEDDING, say=lambda line: None)
    files = sorted((tmp_path / "cut").glob("train.*.parquet"))
    before = LabelStore(tmp_path / "cut")
    files[1].unlink()  # as a kill leaves it, or a disk
    label(run, splits, tmp_path / "cut", embedding=EMBEDDING, say=lambda line: None)
    after = LabelStore(tmp_path / "cut")
    np.testing.assert_array_equal(after.example_id, whole.example_id)
    np.testing.assert_array_equal(after.logits, before.logits)
    np.testing.assert_allclose(after.logits, whole.logits, **ROUNDING)
    assert files[0].stat().st_mtime_ns < sorted((tmp_path / "cut").glob("train.*.parquet"))[1].stat().st_mtime_ns


def test_labels_of_another_teacher_or_of_other_data_are_refused_by_name(taught, tmp_path):
    result, folder = taught
    run = load_run(result.run_dir, devices=jax.devices()[:1])  # whose data's class is unknown here
    config = result.program.config

    def refuses(message, function):
        with pytest.raises(UserError, match=message):
            function()

    other = config.replace(name="other", runs_dir=str(tmp_path), train=dataclasses.replace(config.train, seed=7))
    refuses(
        "has labels of train by another teacher, run 'teacher', whose config is not that of 'other'",
        lambda: teach(other, ProgressiveLabels(folder, EMBEDDING)),
    )
    elsewhere = config.replace(name="again", runs_dir=str(tmp_path))
    refuses(
        "has embeddings by EmbeddingConfig.*int8",
        lambda: teach(elsewhere, ProgressiveLabels(folder, dataclasses.replace(EMBEDDING, storage="int8"))),
    )
    refuses(
        "has labels of train by run 'teacher' while it trained, not after step 19",
        lambda: label(run, Data(), folder, embedding=EMBEDDING, parts=("train",)),
    )
    label(run, Data(), folder, embedding=EMBEDDING, parts=("test",), say=lambda line: None)
    refuses(
        "has labels of other test data than these, by run 'teacher'",
        lambda: label(run, Data(seed=1), folder, embedding=EMBEDDING, parts=("test",)),
    )
    refuses(
        "the teacher has no representation 'first'; it has hidden, last",
        lambda: label(run, Data(), tmp_path / "x", embedding=EmbeddingConfig()),
    )

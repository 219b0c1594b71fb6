"""A student's data with a teacher's labels: each example has its own, in any order, and labels of other data are refused."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from gem_jax import load_run
from gem_jax.config import from_dict, override, to_dict
from gem_jax.data.loader import Loader
from gem_jax.data.packing import BatchConfig
from gem_jax.data.parquet import ParquetConfig, write_parquet
from gem_jax.data.schema import Task
from gem_jax.data.source import Splits
from gem_jax.errors import UserError
from gem_jax.transfer import HISTORY, TEACHER
from gem_jax.transfer.histories import DAY_S
from gem_jax.transfer.joined import JoinedConfig
from gem_jax.transfer.labels import Labels, LabelStore, LabelWriter
from gem_jax.transfer.manifest import EmbeddingConfig, Manifest, Pass
from tests.gem_jax.data.random_examples import SCHEMA, assert_same_examples
from tests.gem_jax.training.small import run
from tests.gem_jax.transfer.small import NUM_TRAIN, Data, config_of

DIM = 6
TASKS = ("conversion", "install", "click")
"""The teacher's: in another order than the student's, and one that the student does not learn."""


def labels_of(ids, seed=0):
    """Numbers of each example that depend on its id alone: logits [n, 3], embedding [n, DIM]."""
    rng = np.random.default_rng(seed)
    table = rng.normal(size=(2 * 10**3, len(TASKS) + DIM)).astype(np.float32)
    rows = table[(ids % 10**6) + (ids // 10**6) * 500]
    return rows[:, : len(TASKS)], rows[:, len(TASKS) :]


def write_labels(folder, data, *, without=(), storage="float32", embedding=True):
    """A store of labels of all examples but those at some places of the training part."""
    kept = EmbeddingConfig(representation="last", dim=DIM, storage=storage) if embedding else None
    for part in ("train", "test"):
        examples = getattr(data.build(), part).examples
        made = Pass(run="teacher", teacher="t", state="s", step=1, data="d", jax="0", written="now")
        manifest = Manifest(tasks=TASKS, embedding=kept, width=DIM if embedding else 0, passes={part: made})
        writer = LabelWriter(folder, part, manifest)
        rows = np.setdiff1d(np.arange(len(examples)), without if part == "train" else ())
        for chunk in np.array_split(rows, 3):
            logits, vectors = labels_of(examples.example_id[chunk])
            found = Labels(
                example_id=examples.example_id[chunk],
                user=examples.user[chunk],
                time_s=examples.time_s[chunk],
                logits=logits,
                embedding=vectors if embedding else None,
            )
            writer.write(int(chunk[0]), int(chunk[-1]) + 1, found)
        writer.finish()


@pytest.fixture(scope="module")
def labels(tmp_path_factory):
    folder = tmp_path_factory.mktemp("labels")
    write_labels(folder, Data(), without=[3, 77])
    return str(folder)


def test_every_example_has_its_own_label_in_any_order(labels):
    config = JoinedConfig(data=Data(), labels=labels, embedding="current")
    splits, plain = config.build(), Data().build()
    assert splits.schema == config.schema()
    assert [t.dim for t in splits.schema.training] == [2] and splits.schema.vectors[-1].dim == DIM
    order = np.random.default_rng(1).permutation(NUM_TRAIN)
    found, below = splits.train.read(order), plain.train.read(order)
    logits, vectors = labels_of(below.example_id)
    expected, current = logits[:, [2, 0]], vectors
    unlabelled = np.isin(order, [3, 77])
    expected[unlabelled], current[unlabelled] = np.nan, 0
    np.testing.assert_array_equal(found.training[TEACHER], expected)
    np.testing.assert_array_equal(found.vectors[TEACHER], current)
    rest = dataclasses.replace(found, training={}, vectors={"image": found.vectors["image"]})
    assert_same_examples(rest, dataclasses.replace(below, training={}))


def test_a_batch_has_the_teachers_numbers(labels):
    splits = JoinedConfig(data=Data(), labels=labels, embedding="current").build()
    for batch, host in Loader(splits.train, BatchConfig(examples=16), seed=5, num_epochs=1, num_devices=2):
        logits, vectors = labels_of(host.example_id[host.slots])
        given = batch.training[TEACHER][host.slots]
        known = ~np.isnan(given).any(axis=1)
        np.testing.assert_array_equal(given[known], logits[known][:, [2, 0]])
        np.testing.assert_array_equal(batch.vectors[TEACHER][host.slots][known], vectors[known])
        empty = np.setdiff1d(np.arange(32), host.slots)
        assert not batch.training[TEACHER][empty].any() and not batch.vectors[TEACHER][empty].any()


@pytest.mark.parametrize("storage", ["float16", "int8", "int4"])
def test_histories_are_means_of_what_the_user_did_before(tmp_path, storage):
    write_labels(tmp_path, Data(), storage=storage)
    config = JoinedConfig(data=Data(), labels=str(tmp_path), embedding="history", history_len=4, max_age_days=2.0)
    splits, store = config.build(), LabelStore(tmp_path)
    for part in (splits.train, splits.test):
        examples = part.read(np.arange(30))
        for i in range(30):
            own = (store.user == examples.user[i]) & (store.time_s < examples.time_s[i])
            rows = np.flatnonzero(own & (store.time_s >= examples.time_s[i] - 2 * DAY_S))
            rows = rows[np.argsort(store.time_s[rows])][-4:]
            assert store.find(examples.example_id[[i]])[0] not in rows
            mean = store.embeddings(rows).astype(np.float64).mean(axis=0) if len(rows) else np.zeros(DIM)
            np.testing.assert_allclose(examples.vectors[HISTORY][i], mean, rtol=1e-5, atol=1e-6)
    assert np.abs(splits.test.read(np.arange(30)).vectors[HISTORY]).sum() > 1


def test_a_student_of_the_files_that_a_teacher_labelled(labels, tmp_path):
    """Through Parquet, and a source that shuffles itself."""
    plain = Data().build()
    for part in ("train", "test"):
        write_parquet(tmp_path / f"{part}.parquet", getattr(plain, part), rows_per_group=40)
    data = ParquetConfig(path=str(tmp_path), columns=SCHEMA)
    splits = JoinedConfig(data=data, labels=labels).build()
    ids = []
    for batch, host in Loader(splits.train, BatchConfig(examples=32), seed=2, num_epochs=1):
        ids += host.example_id[host.slots].tolist()
        expected = labels_of(host.example_id[host.slots])[0][:, [2, 0]]
        given = batch.training[TEACHER][host.slots]
        assert (np.isnan(given) | (given == expected)).all()
    assert sorted(ids) == sorted(plain.train.examples.example_id.tolist())


def test_labels_of_other_data_are_refused(labels, tmp_path):
    def refuses(message, data, **fields):
        with pytest.raises(UserError, match=message):
            JoinedConfig(data=data, **{"labels": labels} | fields).build()

    refuses(r"are of other data: example \d+ has user \d there and \d here", Data(seed=1))
    moved = Data().build()
    for part in (moved.train, moved.test):
        part.examples.example_id = part.examples.example_id + 10**7
    refuses("has labels of other data: none is of one of 150 training examples looked at; let the", Fixed(moved))
    refuses("holds no labels; let a teacher label the data", Data(), labels=str(tmp_path / "none"))
    write_labels(tmp_path / "bare", Data(), embedding=False)
    refuses("keeps no embeddings; label with an embedding", Data(), labels=str(tmp_path / "bare"), embedding="history")
    renamed = Fixed(Data().build(), tasks=("like",))
    refuses("has labels of conversion, install, click and the student learns like", renamed)
    with pytest.raises(UserError, match="history_len must be at least 1"):
        JoinedConfig(data=Data(), labels=labels, history_len=0)


@dataclasses.dataclass(frozen=True)
class Fixed:
    """Splits in memory, perhaps with other names of tasks."""

    splits: Splits
    tasks: tuple[str, ...] = ()

    def schema(self):
        return self.splits.schema

    def build(self):
        for part in (self.splits.train, self.splits.test):
            if self.tasks:
                part.schema = part.schema.replace(tasks=tuple(Task(name=name) for name in self.tasks))
        return self.splits


def test_labels_are_part_of_the_datas_identity(labels, tmp_path):
    def identity(**fields):
        return JoinedConfig(data=Data(), **{"labels": labels} | fields).build().train.identity()

    write_labels(tmp_path, Data(), without=[3, 77])
    assert identity() == identity(labels=str(tmp_path)) != Data().build().train.identity()
    assert len({identity(), identity(embedding="current"), identity(embedding="history")}) == 3


def test_a_store_that_has_an_example_twice_is_refused(tmp_path):
    write_labels(tmp_path, Data())
    file = sorted(tmp_path.glob("train.*.parquet"))[0]
    (tmp_path / "train.000000000900-000000000901.parquet").write_bytes(file.read_bytes())
    with pytest.raises(UserError, match="has two labels of example"):
        LabelStore(tmp_path)


def test_config_as_json_and_on_the_command_line(labels, tmp_path):
    data = JoinedConfig(data=ParquetConfig(path="here", columns=SCHEMA), labels=labels, embedding="history")
    assert from_dict(json.loads(json.dumps(to_dict(data)))) == data
    config = override(config_of(tmp_path).replace(data=data), ["data.data.path=there", "data.embedding=current"])
    assert config.data.data.path == "there" and config.data.embedding == "current"


def test_a_student_trains_on_them_and_scores_rows_that_no_teacher_saw(labels, tmp_path):
    config = config_of(tmp_path / "runs").replace(data=JoinedConfig(data=Data(), labels=labels))
    result, _ = run(config)
    student = load_run(result.run_dir, classes=(Data,), devices=jax.devices()[:1])
    joined = student.predict(config.data.build().test)
    np.testing.assert_array_equal(student.predict(Data().build().test), joined)
    write_parquet(tmp_path / "new.parquet", Data().build().test)
    np.testing.assert_array_equal(student.predict(tmp_path / "new.parquet"), joined)


def test_rows_to_score_are_joined_with_what_is_known_of_their_users(labels):
    config = JoinedConfig(data=Data(), labels=labels, embedding="history")
    fresh = Data().build().test
    expected = config.build().test.read(np.arange(20)).vectors[HISTORY]
    fresh.examples.example_id = fresh.examples.example_id + 10**9  # of examples that no teacher saw
    found = config.join(fresh)
    assert found.schema == config.schema()
    examples = found.read(np.arange(20))
    np.testing.assert_array_equal(examples.vectors[HISTORY], expected)
    assert np.isnan(examples.training[TEACHER]).all()

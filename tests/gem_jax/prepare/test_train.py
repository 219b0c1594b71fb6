"""A prepared folder trains and is evaluated like any other data; real logs from end to end."""

import gzip
import pathlib
import shutil

import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from gem_jax.config import from_dict, load, override, to_dict
from gem_jax.models import DLRMConfig
from gem_jax.prepare import Preparation, PreparedConfig, prepare
from gem_jax.scoring.run import load_run
from gem_jax.train import train
from tests.gem_jax.data.random_examples import assert_same_examples
from tests.gem_jax.prepare.logs import random_log, random_views, table

ROOT = pathlib.Path(__file__).parents[3]
QUIET = Console(quiet=True)


def test_a_prepared_folder_trains(tmp_path):
    settings = dict(label=("click", "buy"), time="ts", user="uid", item="ad_id", domain="channel", max_len=8)
    prepare(
        table(random_log()), out=tmp_path / "out", events={"views": table(random_views())}, console=QUIET, **settings
    )
    config = load(ROOT / "configs" / "prepared.py", [f"data.path={tmp_path / 'out'}", "data.max_len=5"])
    assert from_dict(to_dict(config)) == config
    config = override(
        config.replace(model=DLRMConfig(embedding_dim=4, bottom_hidden=(4,), top_hidden=(8,))),
        ["batch.examples=32", "mesh.replica=1", "mesh.shard=1", f"runs_dir={tmp_path / 'runs'}"],
    )
    result = train(config, console=QUIET)
    assert set(result.summary["eval"]) == {"click", "buy"} and result.summary["examples"] >= 320
    assert result.summary["truncated_events"] == {"past": 0, "views": 0}


def test_a_run_scores_the_raw_rows_of_its_test_part_as_its_evaluation_does(tmp_path):
    """To the last bit, from the run's folder alone: the log and the prepared folder are gone."""
    rows = random_log()
    options = dict(label=("click", "buy"), time="ts", user="uid", item="ad_id", domain="channel", max_len=8)
    prepared = prepare(table(rows), out=tmp_path / "out", console=QUIET, **options)
    config = load(ROOT / "configs" / "prepared.py", [f"data.path={tmp_path / 'out'}", "data.max_len=8"])
    config = override(
        config.replace(model=DLRMConfig(embedding_dim=4, bottom_hidden=(4,), top_hidden=(8,))),
        ["batch.examples=32", "mesh.replica=1", "mesh.shard=1", f"runs_dir={tmp_path / 'runs'}"],
    )
    result = train(config, console=QUIET)
    test = sorted(rows, key=lambda row: row["ts"])[-prepared.rows["test"] :]
    shutil.rmtree(tmp_path / "out")
    run = load_run(result.run_dir, devices=jax.devices()[:1])
    measures = run.evaluate(table(test))
    assert measures == result.summary["eval"]
    unlabelled = table([{k: v for k, v in row.items() if k not in ("click", "buy")} for row in test])
    predicted = run.predict(unlabelled)
    assert predicted.shape == (len(test), 2) and np.isfinite(predicted).all()
    np.testing.assert_array_equal(run.predict(table(test)), predicted)  # labels that are there are not looked at


def test_a_shorter_history_is_that_of_training_and_of_scoring(tmp_path):
    rows = random_log()
    prepare(table(rows), label="click", time="ts", user="uid", item="ad_id", out=tmp_path / "out", console=QUIET)
    config = PreparedConfig(path=str(tmp_path / "out"), max_len=3)
    splits = config.build()
    config.preparation().save(tmp_path / "run")
    expected = splits.test.read(np.arange(len(splits.test)))
    assert expected.sequences["past"].lengths.max() == 3 == splits.schema.sequence("past").max_len
    raw = table([rows[k] | {"example_id": int(k)} for k in expected.example_id])
    source = Preparation.load(tmp_path / "run").source(raw, events={"past": table(rows)})
    assert_same_examples(source.read(np.arange(len(source))), expected)


# --- real logs ------------------------------------------------------------------------------------------------------------------


def movie_log(folder: pathlib.Path) -> pa.Table:
    """MovieLens-1M as a raw log; the set's own order gives each user's times, 30 s apart from a random start."""

    def side(what: str) -> dict[int, list[str]]:
        with gzip.open(folder / f"ml1m_{what}.dat.gz", "rt", encoding="latin-1") as lines:
            fields = [line.rstrip("\n").split("::") for line in lines]
        return {int(first): rest for first, *rest in fields}

    users, movies = side("users"), side("movies")
    with np.load(folder / "ml1m_ratings.npz") as arrays:
        columns = np.stack([arrays[name] for name in ("user", "movie", "rating", "pos")]).astype(np.int64)
    user, movie, rating, place = columns[:, columns[3] >= 0]
    start = np.random.default_rng(0).integers(956_700_000, 1_046_000_000, int(user.max()) + 1)
    return pa.table(
        {
            "user_id": user,
            "ts": pa.array((start[user] + 30 * place) * 10**6, pa.timestamp("us")),
            "movie_id": movie,
            "like": rating >= 4,
            "gender": [users[u][0] for u in user.tolist()],
            "occupation": [int(users[u][2]) for u in user.tolist()],
            "year": [int(movies[m][0][-5:-1]) for m in movie.tolist()],
            "genres": [movies[m][1].split("|") for m in movie.tolist()],
        }
    )


def criteo_log(folder: pathlib.Path) -> pa.Table:
    """The sample of Criteo's display ads, a row every 7 s, with users drawn at random: it has neither."""
    rows = pq.read_table(folder / "criteo_80k.parquet")
    user = np.random.default_rng(0).integers(0, 5000, len(rows))
    times = 1_600_000_000 + 7 * np.arange(len(rows))
    return rows.append_column("ts", pa.array(times)).append_column("uid", pa.array(user))


@pytest.mark.slow
@pytest.mark.parametrize(
    "make, settings, kinds",
    [
        (
            movie_log,
            {"label": "like", "user": "user_id", "item": "movie_id"},
            {"movie_id": "categorical", "genres": "categorical"},
        ),
        (
            criteo_log,
            {"label": "label", "user": "uid"},
            {"i1": "dense", "i9": "dense", "c1": "categorical", "c26": "categorical"},
        ),
    ],
)
def test_real_logs_from_end_to_end(tmp_path, shared_data, make, settings, kinds):
    """Prepared, guessed right, scored as trained; the base rate of test and of train is that of the rows."""
    log = make(shared_data)
    prepared = prepare(log, time="ts", out=tmp_path / "out", console=QUIET, **settings)
    found = {f.column: f.kind for f in prepared.features.log}
    assert kinds.items() <= found.items()
    splits = prepared.config.build()
    assert sum(prepared.rows.values()) == len(log)
    some = np.random.default_rng(0).choice(len(splits.test), 2000, replace=False)
    expected = splits.test.read(np.sort(some))
    raw = log.take(expected.example_id).append_column("example_id", pa.array(expected.example_id))
    source = prepared.config.preparation().source(raw, events={"past": log})
    assert_same_examples(source.read(np.arange(len(source))), expected)
    truth = np.array(log[settings["label"]].to_pylist(), np.float32)
    np.testing.assert_array_equal(expected.labels[:, 0], truth[expected.example_id])

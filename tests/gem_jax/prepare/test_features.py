"""The guess, features.json as it is read back and edited, and what of it is refused."""

import json
import pathlib
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from rich.console import Console

from gem_jax.data.source import DataError
from gem_jax.prepare import prepare
from gem_jax.prepare.features import Feature, read_features
from gem_jax.prepare.infer import Hints, infer

NUM = 1000


def _columns() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    return {
        "uid": rng.integers(0, 50, NUM),
        "ad_id": rng.integers(0, 400, NUM),
        "hash": rng.integers(0, 2**63 - 1, 300)[rng.integers(0, 300, NUM)],
        "hash64": rng.integers(2**63, 2**64, 300, np.uint64)[rng.integers(0, 300, NUM)],
        "clicks": rng.geometric(0.01, NUM) // 2,
        "price": np.exp(rng.normal(0, 2, NUM)),
        "score": rng.normal(0, 1, NUM),
        "flag": rng.random(NUM) < 0.5,
        "country": rng.choice(["de", "fr"], NUM),
        "nullable": pa.array(np.where(rng.random(NUM) < 0.2, np.nan, rng.integers(0, 9, NUM))),
        "genres": [list(rng.choice(["a", "b", "c"], rng.integers(0, 4), replace=False)) for _ in range(NUM)],
        "image": pa.FixedSizeListArray.from_arrays(pa.array(rng.normal(size=NUM * 3)), 3),
        "note": [f"text {k}" for k in range(NUM)],
        "when": pa.array(rng.integers(0, 10**9, NUM), pa.timestamp("s")),
        "nested": [{"a": 1}] * NUM,
        "nothing": pa.nulls(NUM, pa.int32()),
        "always": [7] * NUM,
        "a.b": rng.choice(["x", "y"], NUM),
        "weight": rng.choice(["x", "y"], NUM),
        "__index_level_0__": range(NUM),
    }


def guess(columns: dict[str, Any], **hints: Any) -> dict[str, Feature]:
    table = pa.table(columns)
    return {f.column: f for f in infer(table, {"genres": 3}, Hints(user="uid", **hints))}


def test_what_columns_are_taken_for():
    found = guess(_columns())
    kinds = {name: (f.kind, f.role) for name, f in found.items() if f.kind != "ignore"}
    assert kinds == {
        "ad_id": ("categorical", "ad"),
        "hash": ("categorical", "context"),
        "hash64": ("categorical", "context"),
        "clicks": ("dense", "context"),
        "price": ("dense", "ad"),
        "score": ("dense", "context"),
        "flag": ("categorical", "context"),
        "country": ("categorical", "context"),
        "nullable": ("categorical", "context"),
        "genres": ("categorical", "ad"),
        "image": ("vector", "context"),
        "a.b": ("categorical", "context"),
        "weight": ("categorical", "context"),
    }
    assert found["price"].log and not found["score"].log
    assert (found["genres"].max_ids, found["image"].dim) == (3, 3)
    assert [name for name, f in found.items() if f.event] == ["ad_id"]
    assert {"clicks", "note", "when", "nested"} <= {name for name, f in found.items() if f.look}
    assert "370 distinct integers in 1,000 rows" in guess(_columns() | {"ad_id": np.arange(NUM) % 370})["ad_id"].why
    assert all(f.why for f in found.values())


def test_names_that_the_schema_cannot_have_are_changed():
    found = guess(_columns(), reserved=("past", "click"))
    assert (found["a.b"].name, found["weight"].name) == ("a_b", "weight_")
    assert len({f.name for f in found.values()}) == len(found)
    names = [
        f.name
        for f in guess({"uid": [1], "p_missing": [1.5, 2.0][:1], "p": [2.5], "q": [1], "q_missing": [2]}).values()
    ]
    assert len(set(names)) == len(names)


def test_a_number_may_be_called_missing(tmp_path):
    """Its companion and the companion of the number without that word are two features."""
    rng = np.random.default_rng(0)
    reals = pa.array(rng.normal(size=NUM), mask=rng.random(NUM) < 0.1)
    for names in (("p_missing", "p"), ("p", "p_missing"), ("p_missing", "q")):
        log = pa.table(
            dict.fromkeys(names, reals)
            | {"ts": np.arange(NUM), "uid": np.arange(NUM), "click": rng.integers(0, 2, NUM)}
        )
        out = tmp_path / "-".join(names)
        schema = prepare(
            log, label="click", time="ts", user="uid", out=out, console=Console(quiet=True)
        ).config.schema()
        assert len(schema.dense) == 4


def test_what_may_tell_the_label_is_to_be_looked_at():
    """A column that the user has not named as a label, and that is named as one."""
    found = guess({"uid": range(90), "was_clicked": [0, 1, 0] * 30, "hour": [1, 2, 3] * 30})
    assert found["was_clicked"].look == "what came of the row? then ignore it, or make it a label"
    assert not found["hour"].look


def test_what_the_user_says_goes_before_the_guess():
    found = guess(_columns(), item="clicks", domain="always", not_features=("score",))
    assert (found["clicks"].kind, found["clicks"].role, found["clicks"].event) == ("categorical", "ad", True)
    assert (found["always"].kind, found["always"].role) == ("categorical", "surface")
    assert "score" not in found


# --- features.json --------------------------------------------------------------------------------------------------------------


def make(tmp_path: pathlib.Path, schema: pathlib.Path | None = None, **changes: Any):
    rng = np.random.default_rng(1)
    log = pa.table(_columns() | {"ts": np.arange(NUM), "click": rng.integers(0, 2, NUM)})
    settings = dict(
        label="click", time="ts", user="uid", out=tmp_path / "out", schema=schema, console=Console(quiet=True)
    )
    return prepare(log, **(settings | changes))


def edit(tmp_path: pathlib.Path, **changes: Any) -> pathlib.Path:
    """features.json of the guess with keys of the column `ad_id` changed; None takes one away."""
    make(tmp_path)
    tree = json.loads((tmp_path / "out" / "features.json").read_text())
    entry = next(e for e in tree["features"] if e["column"] == "ad_id")
    entry.update(changes)
    for key in [key for key, value in changes.items() if value is None]:
        del entry[key]
    (tmp_path / "edited.json").write_text(json.dumps(tree))
    return tmp_path / "edited.json"


def test_the_guess_is_read_back_as_it_was(tmp_path):
    prepared = make(tmp_path)
    assert read_features(tmp_path / "out" / "features.json") == prepared.features
    again = make(tmp_path, tmp_path / "out" / "features.json", out=tmp_path / "again")
    assert again.config.schema() == prepared.config.schema()
    assert again.config.build().identity() == prepared.config.build().identity()


def test_an_edited_file_takes_the_place_of_the_guess(tmp_path):
    make(tmp_path)
    file = tmp_path / "out" / "features.json"
    tree = json.loads(file.read_text())
    entries = {entry["column"]: entry for entry in tree["features"]}
    entries["uid"].update(kind="categorical", name="user_id", role="user")
    entries["clicks"] = {"column": "clicks", "kind": "categorical", "role": "goal"}
    entries["hash"] = {"column": "hash", "kind": "ignore"}
    file.write_text(json.dumps({"features": list(entries.values())}))
    with pytest.raises(DataError, match="says something else than the guess; pass --schema .*features.json to use it"):
        make(tmp_path)
    prepared = make(tmp_path, file)
    schema = prepared.config.schema()
    roles = {f.name: f.role for f in schema.categoricals}
    assert roles["user_id"] == "user" and roles["clicks"] == "goal" and "hash" not in roles
    examples = prepared.config.build().test.read(np.arange(20))
    assert (examples.ids["user_id"] > 0).all()
    assert read_features(file) == prepared.features


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"kind": "category"}, "column 'ad_id': kind \"category\" is unknown; there are categorical, dense"),
        ({"rle": "ad"}, "unknown key 'rle'; did you mean 'role'"),
        ({"dim": 3}, "column 'ad_id', of kind 'categorical': unknown key 'dim'"),
        ({"role": "advert"}, "role 'advert' is unknown; there are user, context"),
        ({"event": "yes"}, 'event is "yes"; it must be a bool'),
        ({"max_ids": True}, "max_ids is true; it must be a int"),
        ({"max_ids": 0, "event": False}, "max_ids and dim must be 1 or more"),
        ({"max_ids": 2, "event": False}, "column 'ad_id' is int64, which has one id a row; set max_ids to 1"),
        ({"max_ids": 2}, "an attribute of events has one id"),
        ({"column": "ad"}, "lacks column 'ad_id' of the log; add it, perhaps of kind 'ignore'"),
        ({"column": "hash"}, "has column 'hash' twice"),
        ({"column": None}, 'has a feature without "column"'),
        ({"column": "click"}, "lacks column 'ad_id' of the log"),
        ({"name": "price"}, "feature 'price' is declared twice"),
        ({"table": "country"}, "table 'country' is shared by columns of kind"),
        ({"name": "a:b", "table": "t"}, "feature 'a:b' needs another name"),
    ],
)
def test_edits_that_are_wrong_are_refused(tmp_path, changes, message):
    file = edit(tmp_path, **changes)
    with pytest.raises(ValueError, match=message) as error:
        make(tmp_path, file, out=tmp_path / "again")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "column, kind, message",
    [
        ("when", "dense", "column 'when' is timestamp.s., which cannot be dense; make it another kind"),
        ("country", "dense", "column 'country' is string, which cannot be dense"),
        ("nested", "categorical", "column 'nested' is struct<a: int64>, which cannot be categorical"),
        ("genres", "dense", "'genres' is list<item: string>, which cannot be dense"),
    ],
)
def test_columns_that_cannot_become_what_is_said(tmp_path, column, kind, message):
    make(tmp_path)
    tree = json.loads((tmp_path / "out" / "features.json").read_text())
    tree["features"] = [e if e["column"] != column else {"column": column, "kind": kind} for e in tree["features"]]
    (tmp_path / "edited.json").write_text(json.dumps(tree))
    with pytest.raises(DataError, match=message):
        make(tmp_path, tmp_path / "edited.json", out=tmp_path / "again")


@pytest.mark.parametrize(
    "text, message",
    [
        ("{", "cannot be read as JSON"),
        ("[]", "must hold"),
        ('{"features": {}}', "needs a list of features"),
        ('{"feature": []}', "unknown key 'feature'; did you mean 'features'"),
        ('{"features": [], "events": {"views": []}}', r"has events \['views'\] and --events names \[\]|lacks column"),
    ],
)
def test_files_that_are_no_features(tmp_path, text, message):
    (tmp_path / "edited.json").write_text(text)
    with pytest.raises(DataError, match=message):
        make(tmp_path, tmp_path / "edited.json")


def test_a_column_that_the_log_lacks(tmp_path):
    file = edit(tmp_path)
    tree = json.loads(file.read_text())
    file.write_text(json.dumps({"features": [*tree["features"], {"column": "adid", "kind": "ignore"}]}))
    with pytest.raises(DataError, match="the table has no column 'adid'; did you mean 'ad_id'"):
        make(tmp_path, file, out=tmp_path / "again")


def test_numbers_of_every_kind(tmp_path):
    """Bits of a hash beyond 2^63, absent integers of pandas, lists, vectors: what is stored of them."""
    splits = make(tmp_path, min_count=1).config.build()
    columns, rows = pa.table(_columns()), np.arange(len(splits.train))
    examples = splits.train.read(rows)
    hashes = columns["hash64"].to_pylist()[: len(rows)]
    ids = examples.ids["hash64"][:, 0]
    assert len(set(zip(hashes, ids.tolist(), strict=True))) == len(set(hashes)) == len(set(ids.tolist()))
    absent = np.isnan(columns["nullable"].to_numpy()[: len(rows)])
    np.testing.assert_array_equal(examples.ids["nullable"][:, 0] == -1, absent)
    lengths = [len(genres) for genres in columns["genres"].to_pylist()[: len(rows)]]
    np.testing.assert_array_equal((examples.ids["genres"] >= 0).sum(axis=1), lengths)
    image = np.array(columns["image"].to_pylist()[: len(rows)], np.float32)
    np.testing.assert_array_equal(examples.vectors["image"], image)

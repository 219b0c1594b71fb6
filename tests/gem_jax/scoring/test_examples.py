"""A run on a prepared log scores raw rows through what it kept of the preparation, whatever their columns are called."""

import sys
import types

import jax
import pyarrow.parquet as pq
import pytest

from gem_jax.errors import UserError
from gem_jax.scoring.examples import open_examples
from gem_jax.scoring.run import load_run
from tests.gem_jax.data.random_examples import SCHEMA


@pytest.fixture
def prepared(tmp_path, monkeypatch, unlabelled):
    """A run's folder with a preparation that remembers what it was asked, and makes the unlabelled examples of it."""
    asked = []

    class Preparation:
        def __init__(self, folder):
            self.folder = folder

        @classmethod
        def load(cls, folder):
            return cls(folder)

        def source(self, log, *, events=None):
            asked.append((self.folder, log, events))
            return open_examples(unlabelled, SCHEMA, tmp_path / "another")

    monkeypatch.setitem(sys.modules, "gem_jax.prepare", types.SimpleNamespace(Preparation=Preparation))
    (tmp_path / "preparation").mkdir()
    return tmp_path, asked


def test_raw_rows_go_through_the_preparation(prepared, unlabelled):
    """Also a table that has all columns of the schema: its ids are raw ones, and the vocabulary's are others."""
    folder, asked = prepared
    table = pq.read_table(unlabelled)
    events = {"past": "since.csv"}
    assert len(open_examples("rows.csv", SCHEMA, folder, events)) == len(open_examples(table, SCHEMA, folder)) == 150
    assert asked[0] == (folder / "preparation", "rows.csv", events)
    assert asked[1][1] is table and asked[1][2] == {}


def test_a_source_is_taken_as_it_is(prepared, unlabelled):
    folder, asked = prepared
    source = open_examples(unlabelled, SCHEMA, folder.parent / "another")
    assert open_examples(source, SCHEMA, folder) is source and not asked
    with pytest.raises(UserError, match="a source has histories already"):
        open_examples(source, SCHEMA, folder, {"past": "since.csv"})


def test_events_need_a_preparation(trained, unlabelled):
    run = load_run(trained.run_dir, devices=jax.devices()[:1])
    for method in (run.predict, run.evaluate):
        with pytest.raises(UserError, match="events are for runs on prepared logs, and .* has no preparation/"):
            method(unlabelled, events={"past": "x.csv"})

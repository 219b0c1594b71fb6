"""`python -m gem_jax.predict` from end to end: what it writes, what it says, and what it refuses before it scores anything."""

import dataclasses
import io
import subprocess
import sys
import time

import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from gem_jax import predict
from gem_jax.data import predictions
from gem_jax.predict import main
from gem_jax.scoring import run as run_module
from gem_jax.scoring.run import load_run
from tests.gem_jax.scoring.conftest import EXAMPLES, scored_examples


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GEM_TRACEBACK", raising=False)
    return tmp_path


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
    """As on a user's machine."""
    one = jax.devices()[:1]
    monkeypatch.setattr(jax, "devices", lambda *_: one)


def refused(capsys, *arguments: str) -> str:
    """The one line that `main` says; it says and writes nothing else."""
    capsys.readouterr()
    assert main(list(arguments)) == 2
    out, error = capsys.readouterr()
    assert out == "" and error.startswith("error: ") and error.count("\n") == 1, (out, error)
    return error.removeprefix("error: ").rstrip("\n")


def test_a_file_with_a_row_for_every_row_in_their_order(trained, data, here, monkeypatch, capsys):
    monkeypatch.setattr(predictions, "ROWS_PER_GROUP", 40)
    file = str(data / "test.parquet")
    assert main([str(trained.run_dir), file]) == 0
    assert [path.name for path in here.iterdir()] == ["test.predictions.parquet"]
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{trained.run_dir}: checkpoint after 100 examples" and len(lines) == 2
    assert lines[1].startswith(f"test.predictions.parquet: {EXAMPLES} rows in ") and lines[1].endswith(" s")

    written, examples = pq.read_table("test.predictions.parquet"), scored_examples()
    assert pq.ParquetFile("test.predictions.parquet").num_row_groups > 2
    assert written.schema.equals(
        pa.schema(
            [
                ("example_id", pa.int64()),
                ("time_s", pa.int64()),
                ("user", pa.int64()),
                ("domain", pa.dictionary(pa.int32(), pa.string())),
            ]
            + [("p.click", pa.float32()), ("p.conversion", pa.float32())]
        )
    )
    assert written["example_id"].to_pylist() == examples.example_id.tolist()
    for name in ("time_s", "user"):
        values = getattr(examples, name).tolist()
        assert None in written[name].to_pylist()
        assert written[name].to_pylist() == [None if value == -1 else value for value in values]
    assert written["domain"].to_pylist() == [("feed", "reels", "stories")[d] for d in examples.domain]
    expected = load_run(trained.run_dir).predict(file)
    for n, task in enumerate(("click", "conversion")):
        np.testing.assert_array_equal(written[f"p.{task}"].to_numpy(), expected[:, n])


def test_options(trained, unlabelled, capsys):
    run, new = str(trained.run_dir), str(unlabelled)
    assert (
        main([run, new, "--out", "a.parquet", "--task", "conversion", "--task", "click", "--checkpoint", "newest"]) == 0
    )
    written = pq.read_table("a.parquet")
    assert written.column_names == ["example_id", "time_s", "user", "domain", "p.conversion", "p.click"]
    assert written["example_id"].to_pylist() == list(range(EXAMPLES))
    assert refused(capsys, run, new, "--out", "a.parquet") == (
        "a.parquet exists; give --overwrite to replace it, or --out <another file>"
    )
    assert main([run, new, "--out", "a.parquet", "--task", "click", "--overwrite"]) == 0
    assert pq.read_table("a.parquet").column_names[-1] == "p.click"


def test_what_is_refused(trained, unlabelled, here, capsys):
    run, new = str(trained.run_dir), str(unlabelled)
    assert refused(capsys, "runs/none", new).startswith("runs/none does not exist; name the folder of a run")
    assert refused(capsys, run, new, "--task", "clicks").startswith("the run has no task 'clicks'; did you mean click?")
    assert refused(capsys, run, new, "--checkpoint", "last").startswith(
        f"{run} has no checkpoint 'last'; there are newest"
    )
    assert refused(capsys, run, new, "--checkpoint", "12345").startswith(f"{run} has no checkpoint '12345'; there")
    assert refused(capsys, run, "none.parquet").startswith("none.parquet does not exist; give a Parquet file")
    assert refused(capsys, run, new, "--out", "a/b").startswith("the folder a does not exist; make it")
    assert refused(capsys, run, new, "--out", str(here)).startswith(f"{here} is a folder; give --out the name of a")
    assert refused(capsys, run, new, "--events", "past").startswith("--events past must be name=path, each name once")
    assert "has no preparation/; give histories as columns" in refused(capsys, run, new, "--events", "past=x.csv")
    with pytest.raises(SystemExit):
        main([run])
    assert list(here.iterdir()) == []


def test_nothing_is_left_where_scoring_ends_in_an_error(trained, unlabelled, here, capsys, monkeypatch):
    table = pq.read_table(unlabelled)
    bad = table.set_column(table.column_names.index("ad"), "ad", pa.array([0] * (EXAMPLES - 1) + [50]))
    pq.write_table(bad, "bad.parquet", row_group_size=50)
    monkeypatch.setattr(predictions, "ROWS_PER_GROUP", 10)
    assert main([str(trained.run_dir), "bad.parquet"]) == 2
    assert "row 149: 'ad' is 50, outside table 'ad' of 50 rows" in capsys.readouterr().err
    assert [path.name for path in here.iterdir()] == ["bad.parquet"]

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(run_module, "load_run", interrupted)
    assert main([str(trained.run_dir), str(unlabelled)]) == 130
    assert capsys.readouterr().err == "interrupted: stopped at once; nothing was written\n"


def test_the_options_of_a_run_with_a_preparation(trained, unlabelled, capsys, monkeypatch):
    """What `--events` says reaches the run's source."""
    seen = {}

    def source(run, data, *, events):
        seen.update(data=data, events=events)
        return run_module.open_examples(data, run.schema, run.run_dir)

    monkeypatch.setattr(run_module.Run, "source", source)
    events = ["--events", "past=since.parquet", "--events", "buys=b.csv"]
    assert main([str(trained.run_dir), str(unlabelled), *events]) == 0
    assert seen == {"data": str(unlabelled), "events": {"past": "since.parquet", "buys": "b.csv"}}


def test_help_is_quick(capsys):
    with pytest.raises(SystemExit) as exited:
        main(["--help"])
    out = capsys.readouterr().out
    assert exited.value.code == 0
    for field in dataclasses.fields(predict.Options):
        assert field.name in out or field.name.upper() in out, field.name
    code = "import sys, gem_jax.predict; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_bar_with_rows_per_second():
    text = io.StringIO()
    console = Console(file=text, force_terminal=True, width=100)
    with predict._advancing(console, 1000) as advance:
        for _ in range(10):
            advance(100)
            time.sleep(0.01)
    shown = text.getvalue()
    assert "1000/1000" in shown and "rows/s" in shown
    quiet = io.StringIO()
    with predict._advancing(Console(file=quiet), 10) as advance:
        advance(10)
    assert quiet.getvalue() == ""

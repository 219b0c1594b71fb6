"""The comparison of configs: what it runs, what it writes, how its table averages and how sure it is."""

import contextlib
import io
import json
import math
import pathlib
import types

import numpy as np
import pytest

from gem_jax.compare import _Run, main, markdown
from gem_jax.evaluation.metrics import measure
from gem_jax.evaluation.paired import differences
from gem_jax.evaluation.scores_file import FILE_NAME, read_scores
from gem_jax.report.formats import format_margin
from tests.gem_jax.evaluation.simulated import draw

DEBUG = pathlib.Path(__file__).parents[2] / "configs" / "gem_debug.py"
LOGISTIC = f"{DEBUG}:logistic_regression"


def row(config: str, seed: int, ne: float, auc: float, **more) -> dict:
    """Of a file from before there were standard errors."""
    old = dict(ne=ne, bayes_ne=0.8, auc=auc, gauc=None, calibration=1.0, logloss=0.1)
    return dict(config=config, seed=seed, task="click", **old) | more


def paired(difference: float | None, error: float | None, regret: tuple[float, float] | None = None) -> dict:
    if difference is None:
        return {"difference": None, "difference_se": None}
    more, its_error = regret or (None, None)
    return {"difference": {"ne": difference, "regret_ne": more}, "difference_se": {"ne": error, "regret_ne": its_error}}


def cells(text: str) -> list[dict[str, str]]:
    """The lines of a Markdown table by heading."""
    lines = [
        [cell.strip() for cell in line.strip("| ").split(" | ")] for line in text.splitlines() if line.startswith("|")
    ]
    return [dict(zip(lines[0], line, strict=True)) for line in lines[2:]]


def test_a_table_of_an_older_file_has_means_and_pairs_by_seed_but_no_margins():
    rows = [row("a", 0, 0.90, 0.7), row("b", 0, 0.95, 0.6), row("a", 1, 0.86, 0.8), row("b", 1, 0.94, 0.7)]
    heading, _, first, second = markdown(rows).splitlines()
    assert heading == "| task | config | NE | Bayes NE | closed | NE less the first's | seeds from, to | AUC | seeds |"
    assert first == "| click | a | 0.8800 | 0.8000 | 60% |  |  | 0.7500 | 2 |"
    assert second == "| click | b | 0.9450 | 0.8000 | 28% | +0.0650 | +0.0500, +0.0800 | 0.6500 | 2 |"


def test_a_difference_has_its_margin_of_test_examples_and_of_both():
    rows = [row("a", seed, 0.9, 0.7, num_positives=79, **paired(None, None)) for seed in (0, 1)]
    rows += [row("b", 0, 0.95, 0.6, num_positives=79, **paired(0.05, 0.02, (0.03, 0.001)))]
    rows += [row("b", 1, 0.93, 0.6, num_positives=79, **paired(0.03, 0.04, (0.03, 0.001)))]
    text = markdown(rows)
    first, second = cells(text)
    assert first["NE less the first's"] == first["± of test examples"] == "" and second["positives"] == "79"
    assert second["± of test examples"] == "±.0588"  # 1.96 times the mean of .02 and .04
    # With the seeds: Student's t of one degree of freedom times .01, by Pythagoras.
    assert second["NE less the first's"] == f"+0.0400 ±{math.hypot(1.959964 * 0.03, 12.7062 * 0.01):.4f}".replace(
        "±0", "±"
    )
    assert second["seeds from, to"] == "+0.0300, +0.0500"
    assert second["regret NE less the first's"] == "+0.0300 ±.0020"
    assert "the same test examples" in text.splitlines()[-3]


def test_a_task_of_other_examples_or_without_a_difference_shows_none():
    rows = [row("a", 0, 0.9, 0.7, **paired(None, None)), row("b", 0, 0.95, 0.6, **paired(None, None))]
    assert "NE less the first's" not in cells(markdown(rows))[1]
    rows += [
        row(
            "c", 0, None, 0.6, difference={"ne": None, "regret_ne": None}, difference_se={"ne": None, "regret_ne": None}
        )
    ]
    assert "NE" not in cells(markdown(rows))[2] or cells(markdown(rows))[2]["NE"] == ""


def test_files_of_this_repository_still_print():
    for file in sorted((DEBUG.parent / "results").glob("*.json")):
        found = json.loads(file.read_text())
        assert len(cells(markdown(found))) == len({(r["task"], r["config"]) for r in found})


SMALL = [
    "data.train_examples=600",
    "data.test_examples=2000",
    "data.active_users=40",
    "data.active_ads=24",
    "batch.examples=64",
    "mesh.replica=1",
    "mesh.shard=1",
]

SLOW = f"""
import dataclasses
import runpy
from gem_jax.config import Config

def get_config() -> Config:
    plain = runpy.run_path({str(DEBUG)!r})["logistic_regression"]()
    return plain.replace(name="slow", optimizer=dataclasses.replace(plain.optimizer, table_learning_rate=0.01))
"""


@pytest.fixture(scope="module")
def compared(tmp_path_factory) -> tuple[pathlib.Path, str]:
    """The folder of a sweep of two configs and two seeds, and what it printed."""
    folder = tmp_path_factory.mktemp("sweep")
    (folder / "slow.py").write_text(SLOW)
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown):
        arguments = [
            LOGISTIC,
            str(folder / "slow.py"),
            "--seeds",
            "0,1",
            "--json",
            str(folder / "results" / "small.json"),
        ]
        assert main([*arguments, *SMALL, f"runs_dir={folder / 'runs'}"]) == 0
    return folder, shown.getvalue()


def test_runs_every_config_with_every_seed(compared, capsys):
    folder, shown = compared
    rows = json.loads((folder / "results" / "small.json").read_text())
    assert [(r["config"], r["seed"], r["task"]) for r in rows] == [
        (config, seed, task)
        for seed in (0, 1)
        for config in ("logistic_regression", "slow")
        for task in ("click", "conversion")
    ]
    assert rows[0]["ne"] != rows[4]["ne"], "another seed"
    assert markdown(rows) in shown
    assert main(["--table", str(folder / "results" / "small.json")]) == 0
    assert capsys.readouterr().out.strip() == markdown(rows)


def test_rows_say_what_they_are_of(compared):
    folder, _ = compared
    rows = json.loads((folder / "results" / "small.json").read_text())
    for r in rows:
        assert r["overrides"] == [*SMALL, f"runs_dir={folder / 'runs'}"]
        assert {part: said["examples"] for part, said in r["data"].items()} == {"train": 600, "test": 2000}
        assert r["standard_error"].keys() == {"ne", "regret_ne", "auc", "gauc"}
    assert len({json.dumps(r["data"]) for r in rows}) == 1
    assert len({r["run"] for r in rows}) == len(list((folder / "runs").iterdir())) == 4


def test_differences_are_those_of_the_scores_in_the_run_folders(compared):
    folder, shown = compared
    rows = json.loads((folder / "results" / "small.json").read_text())
    assert all(r["difference"] is None for r in rows if r["config"] == "logistic_regression")
    for r in (r for r in rows if r["config"] == "slow"):
        first = next(f for f in rows if f["config"] != "slow" and (f["seed"], f["task"]) == (r["seed"], r["task"]))
        (one, tasks), (other, _) = (read_scores(pathlib.Path(x["run"]) / FILE_NAME) for x in (first, r))
        assert tasks == ("click", "conversion")
        found = differences(*(scores.task(tasks.index(r["task"])) for scores in (one, other)))
        for name in ("ne", "auc", "regret_ne"):
            assert r["difference"][name] == pytest.approx(r[name] - first[name], rel=1e-9)
            assert r["difference_se"][name] == pytest.approx(found[name].standard_error, rel=1e-9)
        margin = format_margin(1.959964 * r["difference_se"]["ne"])
        line = next(x for x in shown.splitlines() if x.startswith(f"slow, seed {r['seed']}, {r['task']}: "))
        assert line.endswith(f"NE less the first's {r['difference']['ne']:+.4f} {margin}")


def test_other_test_examples_are_not_paired(tmp_path, monkeypatch, capsys):
    """The numbers stand beside each other, and it is said that no example is the same."""

    def run_on_its_own_stream(config):
        scores, _ = draw(np.random.default_rng(len(config.name)), 50)
        return _Run(facts={}, result={"click": measure(scores)}, scores={"click": scores})

    monkeypatch.setattr("gem_jax.compare._run", run_on_its_own_stream)
    file = tmp_path / "rows.json"
    assert main([LOGISTIC, f"{DEBUG}:dlrm", "--json", str(file)]) == 0
    first, other = capsys.readouterr().out.splitlines()[:2]
    assert "not paired" not in first and other.endswith("not paired: its test examples are not the first's")
    assert "less the first's" not in markdown(json.loads(file.read_text()))


def test_an_interruption_ends_the_sweep(tmp_path, monkeypatch, capsys):
    started = []

    def interrupted_run(config, **_):
        started.append(config.name)
        return types.SimpleNamespace(interrupted=True)

    monkeypatch.setattr("gem_jax.compare.train", interrupted_run)
    assert main([LOGISTIC, f"{DEBUG}:dlrm"]) == 130
    assert started == ["logistic_regression"] and "interrupted" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name the configs to compare"),
        ([str(DEBUG), "--seeds", "one"], "--seeds cannot be 'one'; it takes int values with commas between them"),
        ([str(DEBUG), "--seeds", "0,1", "train.seed=5"], "train.seed is what --seeds sets"),
        ([LOGISTIC, LOGISTIC], f"'{LOGISTIC}' and '{LOGISTIC}' are both named 'logistic_regression'"),
        ([str(DEBUG), "--table", "no_such.json"], "--table prints a file and trains nothing"),
        ([str(DEBUG), "--sed", "1"], "unknown flag --sed; did you mean --seeds?"),
        ([str(DEBUG), "--json"], "--json needs a value"),
        (["configs/no_such.py"], "config file 'configs/no_such.py' does not exist"),
        ([str(DEBUG), "trian.seed=1"], "unknown config field 'trian.seed'"),
        (["--table", "no_such.json"], "no_such.json"),
    ],
)
def test_wrong_arguments(arguments, message, capsys):
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1

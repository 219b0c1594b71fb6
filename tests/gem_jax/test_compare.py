"""The comparison of configs: what it runs, what it writes, how its table averages."""

import json
import pathlib
import types

import pytest

from gem_jax.compare import main, markdown

DEBUG = pathlib.Path(__file__).parents[2] / "configs" / "gem_debug.py"
LOGISTIC = f"{DEBUG}:logistic_regression"


def row(config: str, seed: int, ne: float, auc: float) -> dict:
    return dict(
        config=config, seed=seed, task="click", ne=ne, bayes_ne=0.8, auc=auc, gauc=None, calibration=1.0, logloss=0.1
    )


def test_table_means_over_seeds_and_pairs_by_seed():
    rows = [row("a", 0, 0.90, 0.7), row("b", 0, 0.95, 0.6), row("a", 1, 0.86, 0.8), row("b", 1, 0.94, 0.7)]
    first, second = markdown(rows).splitlines()[2:]
    assert first == "| click | a | 0.8800 | 0.8000 | 60% |  | 0.7500 | - | 2 |"
    assert second == "| click | b | 0.9450 | 0.8000 | 28% | +0.0650 (+0.0500 to +0.0800) | 0.6500 | - | 2 |"


def test_runs_every_config_with_every_seed(tmp_path, capsys):
    overrides = [
        "data.train_examples=600",
        "data.test_examples=300",
        "data.active_users=40",
        "data.active_ads=16",
        "batch.examples=64",
        "mesh.replica=1",
        "mesh.shard=1",
        f"runs_dir={tmp_path / 'runs'}",
    ]
    file = tmp_path / "results" / "small.json"
    assert main([LOGISTIC, LOGISTIC, "--seeds", "0,1", "--json", str(file), *overrides]) == 0
    rows = json.loads(file.read_text())
    assert [(r["config"], r["seed"], r["task"]) for r in rows] == [
        ("logistic_regression", seed, task) for seed in (0, 0, 1, 1) for task in ("click", "conversion")
    ]
    assert rows[0]["ne"] == rows[2]["ne"] != rows[4]["ne"]  # the same config twice; another seed
    assert len(list((tmp_path / "runs").iterdir())) == 4
    shown = capsys.readouterr().out
    assert markdown(rows) in shown
    assert main(["--table", str(file)]) == 0
    assert capsys.readouterr().out.strip() == markdown(rows)


def test_an_interruption_ends_the_sweep(tmp_path, monkeypatch, capsys):
    started = []

    def interrupted_run(config, **_):
        started.append(config.name)
        return types.SimpleNamespace(interrupted=True)

    monkeypatch.setattr("gem_jax.compare.train", interrupted_run)
    assert main([LOGISTIC, LOGISTIC]) == 130
    assert started == ["logistic_regression"] and "interrupted" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name the configs to compare"),
        ([str(DEBUG), "--seeds", "one"], "--seeds cannot be 'one'; it takes int values with commas between them"),
        ([str(DEBUG), "--seeds", "0,1", "train.seed=5"], "train.seed is what --seeds sets"),
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

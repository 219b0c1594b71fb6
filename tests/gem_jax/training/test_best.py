"""Validation decides: which parameters are kept and tested, and when a run stops; the same over interruptions and power cuts."""

import json
import shutil

import jax
import numpy as np
import pytest

from gem_jax import train as train_module
from gem_jax.config import ConfigError, override
from gem_jax.report.log import read_metrics
from gem_jax.run import saves as saves_module
from tests.gem_jax.training.small import BATCH, NUM_TRAIN, Data, config_of, run, steps_in

NE = {2: 0.9, 4: 0.7, 6: 0.8, 8: 0.75, 10: 0.85}
"""Step -> what the validation part is made to give; in truth a random log teaches nothing."""


@pytest.fixture
def scripted(monkeypatch):
    """The evaluations of a run as (part, step), with the validation's NE set by `NE`; what was tested by its state."""
    real, seen, tested = train_module.evaluate, [], []

    def evaluate(program, state, source, *rest):
        step = int(state.step)
        result = real(program, state, source, *rest)
        seen.append((source.part, step))
        if source.part == "valid":
            result["click"]["ne"] = NE[step]
        else:
            tested.append({name: np.asarray(x) for name, x in program.to_logical(state).items()})
        return result

    monkeypatch.setattr(train_module, "evaluate", evaluate)
    return seen, tested


def best_config(runs_dir, **train_fields):
    return config_of(runs_dir, eval_every=2 * BATCH, keep_best="valid/ne/click", **train_fields)


def test_nothing_is_kept_unless_asked(tmp_path, scripted):
    result, said = run(config_of(tmp_path, eval_every=2 * BATCH))
    assert scripted[0] == [("valid", 2), ("valid", 4), ("valid", 6), ("test", 8)]
    assert "best" not in result.summary and not (result.run_dir / "best").exists() and "best" not in said
    assert "valid after 64 examples:  click NE 0.7000, AUC" in said


def test_the_best_is_kept_and_tested(tmp_path, scripted):
    seen, tested = scripted
    result, said = run(best_config(tmp_path))
    assert seen == [("valid", 2), ("valid", 4), ("valid", 6), ("valid", 8), ("test", 4)], "the last state takes part"
    assert steps_in(result.run_dir / "best") == [4] and steps_in(result.run_dir / "checkpoints")[-1] == 8
    assert result.summary["best"] == {"metric": "valid/ne/click", "value": 0.7, "examples": 64, "step": 4}
    assert result.summary["examples"] == NUM_TRAIN and not result.summary["stopped_early"]
    assert "best valid/ne/click 0.7000 after 64 examples: these parameters are tested" in said
    assert int(result.state.step) == 4

    kept = result.program.to_logical(result.state)
    for name, x in tested[0].items():
        np.testing.assert_array_equal(x, np.asarray(kept[name]), err_msg=name)
    assert len(tested) == 1 and kept["step"] == 4

    lines = read_metrics(result.run_dir / "metrics.jsonl")
    assert [line["examples"] for line in lines if "valid/ne/click" in line] == [32, 64, 96, 128]
    (line,) = (line for line in lines if "eval/ne/click" in line)
    assert (line["step"], line["examples"]) == (4, 64)
    html = (result.run_dir / "report.html").read_text()
    assert ">validation</li>" in html and ">training window</li>" in html and "64: " in html


def test_higher_is_better_for_an_auc(tmp_path, monkeypatch):
    real = train_module.evaluate
    auc = {2: 0.5, 4: 0.9, 6: None, 8: 0.6}

    def evaluate(program, state, source, *rest):
        result = real(program, state, source, *rest)
        result["conversion"]["auc"] = auc[int(state.step)]
        return result

    monkeypatch.setattr(train_module, "evaluate", evaluate)
    result, _ = run(config_of(tmp_path, eval_every=2 * BATCH, keep_best="valid/auc/conversion"))
    assert result.summary["best"]["step"] == 4


def test_patience_ends_a_run_that_gets_no_better(tmp_path, scripted):
    seen, _ = scripted
    result, said = run(best_config(tmp_path, patience=1))
    assert seen == [("valid", 2), ("valid", 4), ("valid", 6), ("test", 4)]
    assert not result.interrupted and result.summary["stopped_early"] and result.summary["examples"] == 96
    assert "valid/ne/click was no better in 1 evaluations: stopped early; best valid/ne/click 0.7000 after 64" in said
    assert json.loads((result.run_dir / "summary.json").read_text())["stopped_early"] is True

    again, said = run(best_config(tmp_path, patience=1), resume=True)
    assert "already trained on 96 of 128 examples; raise train.patience to go on" in said
    assert seen[4:] == [("test", 4)] and again.summary["best"] == result.summary["best"]

    patient, _ = run(best_config(tmp_path, patience=2), resume=True)
    assert seen[5:] == [("valid", 8), ("test", 4)] and patient.summary["examples"] == 128
    assert patient.summary["stopped_early"], "the counters went on: two evaluations after the best"


@pytest.mark.parametrize("cut", ["evaluation", "save"])
def test_a_power_cut_changes_nothing(tmp_path, scripted, monkeypatch, cut):
    """Also between the two saves of a new best, when <run>/best has a checkpoint that the run itself does not know."""
    seen, tested = scripted
    whole, _ = run(best_config(tmp_path / "whole", patience=3))
    save, evaluate = saves_module.Saves.save, train_module.evaluate

    def dying_save(self, state, progress):
        if progress.step == 4:
            raise RuntimeError("power cut")
        save(self, state, progress)

    def dying_evaluation(program, state, *rest):
        if int(state.step) == 6:
            raise RuntimeError("power cut")
        return evaluate(program, state, *rest)

    with monkeypatch.context() as patch:
        if cut == "save":
            patch.setattr(saves_module.Saves, "save", dying_save)
        else:
            patch.setattr(train_module, "evaluate", dying_evaluation)
        with pytest.raises(RuntimeError, match="power cut"):
            run(best_config(tmp_path / "cut", patience=3))
    folder = tmp_path / "cut" / "small"
    assert steps_in(folder / "best") == [2, 4]
    seen.clear()
    again, said = run(best_config(tmp_path / "cut", patience=3), resume=True)
    assert "no longer" not in said and seen[-3:] == [("valid", 6), ("valid", 8), ("test", 4)]
    assert again.summary["best"] == whole.summary["best"] and steps_in(folder / "best") == [4]
    for name, x in tested[0].items():
        np.testing.assert_array_equal(x, tested[-1][name], err_msg=name)


def test_another_measure_is_sought_anew(tmp_path, scripted):
    run(best_config(tmp_path))
    other = override(best_config(tmp_path), ["train.keep_best=valid/logloss/click"])
    result, said = run(other, resume=True)
    assert "already trained on 128 of 128 examples; raise train.epochs to go on" in said
    assert result.summary["best"]["metric"] == "valid/logloss/click" and result.summary["best"]["step"] == 8
    assert steps_in(result.run_dir / "best") == [8]


def test_a_best_that_was_deleted_is_said(tmp_path, scripted):
    result, _ = run(best_config(tmp_path))
    shutil.rmtree(result.run_dir / "best")
    again, said = run(override(best_config(tmp_path), ["train.epochs=1.25"]), resume=True)
    assert "the best checkpoint, of step 4, is no longer in" in said
    assert again.summary["best"]["step"] > 8


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(keep_best="valid/ne/click"), "train.keep_best compares evaluations on the way; set train.eval_every"),
        (
            dict(patience=3),
            "train.patience needs to know what should improve; set train.keep_best, e.g. valid/ne/click",
        ),
        (
            dict(eval_every=9, keep_best="valid/ne/clik"),
            "did you mean valid/ne/click\\? there are valid/ne/click, valid/ne/conv",
        ),
        (dict(eval_every=9, keep_best="valid/calibration/click"), "says not what is better; did you mean"),
        (dict(eval_every=9, keep_best="eval/ne/click"), "says not what is better; did you mean valid/ne/click"),
        (dict(eval_every=9, keep_best="valid/ne/click", patience=0), "train.patience=0 must be positive"),
    ],
)
def test_what_cannot_decide_is_refused_before_anything_is_written(tmp_path, fields, message):
    with pytest.raises(ConfigError, match=message) as error:
        run(override(config_of(tmp_path / "runs"), [f"train.{name}={value}" for name, value in fields.items()]))
    assert "\n" not in str(error.value) and not (tmp_path / "runs").exists()


def test_data_without_a_valid_part_cannot_decide(tmp_path):
    with pytest.raises(ConfigError, match="train.keep_best=valid/ne/click needs validation examples"):
        run(config_of(tmp_path / "runs", Data(parts=("train", "test")), eval_every=9, keep_best="valid/ne/click"))
    assert not (tmp_path / "runs").exists()


def test_the_state_given_up_for_the_best_is_freed(tmp_path, scripted, monkeypatch):
    given = []
    take_best = saves_module.Saves.take_best
    monkeypatch.setattr(
        saves_module.Saves,
        "take_best",
        lambda self, state, progress: (given.append(state), take_best(self, state, progress))[1],
    )
    run(best_config(tmp_path))
    assert all(x.is_deleted() for x in jax.tree.leaves(given[0]) if hasattr(x, "is_deleted"))

"""What goes wrong late, and what is left: bad rows far into the data, signals, weights of zero, values beyond all learning."""

import dataclasses
import html
import json
import os
import pathlib
import signal

import numpy as np
import pytest
from rich.console import Console

from gem_jax import train as train_module
from gem_jax.checkpoint.errors import CheckpointError
from gem_jax.config import ConfigError
from gem_jax.data.implausible import implausible
from gem_jax.data.source import DataError
from gem_jax.evaluation.errors import DivergedError
from gem_jax.models import DLRMConfig
from gem_jax.train import train
from gem_jax.training import progress as progress_module
from gem_jax.training.progress import REPEAT_S, interruption
from tests.gem_jax.data.random_examples import SCHEMA, random_examples
from tests.gem_jax.training import small
from tests.gem_jax.training.small import BATCH, NUM_TRAIN, Data, config_of, run, steps_in


@pytest.fixture(autouse=True)
def broken(monkeypatch):
    """Part -> row that cannot be read."""
    rows: dict[str, int] = {}
    monkeypatch.setattr(small, "BROKEN", rows)
    return rows


def arrays(result):
    return {name: np.asarray(x) for name, x in result.program.to_logical(result.state).items()}


def test_a_bad_row_late_in_the_data_loses_nothing(tmp_path, broken, monkeypatch):
    monkeypatch.setattr(
        train_module, "base_rate_logits", lambda _: np.zeros(2, np.float32)
    )  # which reads the first rows
    whole, _ = run(config_of(tmp_path / "whole"))
    broken["train"] = NUM_TRAIN - 5
    console = Console(record=True, width=400, file=open(os.devnull, "w"))  # noqa: SIM115
    with pytest.raises(DataError, match="train, row 123"):
        train(config_of(tmp_path / "cut"), console=console)
    (step,) = steps_in(tmp_path / "cut" / "small" / "checkpoints")
    assert 1 <= step < 8
    said = " ".join(console.export_text().split())
    assert f"Saved after {BATCH * step} examples: --resume goes on with the same data, --init-from" in said
    with pytest.raises(DataError, match="train, row 123"):
        run(config_of(tmp_path / "cut"), resume=True)  # it is met again, and nothing is lost by that
    broken.clear()
    resumed, _ = run(config_of(tmp_path / "cut"), resume=True)
    assert resumed.summary["examples"] == NUM_TRAIN
    for name, x in arrays(whole).items():
        np.testing.assert_array_equal(x, arrays(resumed)[name], err_msg=name)
    again, said = run(config_of(tmp_path / "new"), init_from=str(tmp_path / "cut" / "small"))
    assert "step 8" in said and again.summary["examples"] == NUM_TRAIN


def test_a_bad_row_of_an_evaluation_on_the_way_loses_nothing(tmp_path, broken):
    broken["valid"] = 2 * BATCH
    with pytest.raises(DataError, match="valid, row 32"):
        run(config_of(tmp_path, eval_every=3 * BATCH))
    assert steps_in(tmp_path / "small" / "checkpoints") == [3]


@pytest.mark.parametrize("part", ["train", "valid", "test"])
def test_what_is_wrong_at_the_start_of_any_part_shows_before_the_first_step(tmp_path, broken, part):
    broken[part] = 3
    with pytest.raises(DataError, match=f"{part}, row 3"):
        run(config_of(tmp_path / "runs"))
    assert not (tmp_path / "runs").exists()


def test_a_part_without_examples_shows_before_the_first_step(tmp_path, monkeypatch):
    whole = Data._source

    def without(self, part):
        source = whole(self, part)
        return small.Source(part, random_examples(0)) if part == "test" else source

    monkeypatch.setattr(Data, "_source", without)
    with pytest.raises(DataError, match="the test part of the data holds no examples"):
        run(config_of(tmp_path / "runs"))
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("part", "message"),
    [("train", "no training example so far counts: each has weight 0"), ("test", "no example of the test part")],
)
def test_weights_of_zero_end_in_a_sentence(tmp_path, part, message):
    with pytest.raises(DataError, match=message):
        run(config_of(tmp_path, Data(set_values=((part, "weight", None, 0.0),))))
    assert not (tmp_path / "small" / "summary.json").exists()


@pytest.mark.parametrize("part", ["train", "test"])
def test_the_row_that_broke_the_loss_is_named(tmp_path, part):
    """Nothing is saved of what it broke."""
    data = Data(set_values=((part, "dense", 7, 3e38),))
    example = data.build().train if part == "train" else data.build().test
    named = rf"dense column '(price|hour)' is as large as 3e\+38 in example {example.examples.example_id[7]}: correct"
    with pytest.raises(DivergedError, match=named) as error:
        run(config_of(tmp_path, data).replace(model=DLRMConfig(embedding_dim=4, bottom_hidden=(32,), top_hidden=(32,))))
    assert "learning_rate" not in str(error.value) and "would meet it again" in str(error.value)
    saved = tmp_path / "small" / "checkpoints"
    assert not saved.exists() if part == "train" else steps_in(saved) == [8]


def test_only_an_implausible_input_is_named():
    examples = random_examples(20)
    assert implausible(SCHEMA, examples, examples.example_id) is None
    examples.vectors["image"][3, 2] = -2e6
    examples.vectors["image"][9, 1] = 1.5e6
    found = implausible(SCHEMA, examples, examples.example_id)
    ids = examples.example_id
    assert found == f"vector 'image' is as large as 2e+06 in example {ids[3]} (also in {ids[9]})"
    examples.dense[:, 1] = np.nan
    found = implausible(SCHEMA, examples, ids)
    assert (
        found
        == f"dense column 'hour' is as large as inf in example {ids[0]} (also in {ids[1]}, {ids[2]}, {ids[3]}, ...)"
    )


# --- how a run is stopped ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1"])
def test_what_stops_a_run_lets_it_save(name, monkeypatch, capfd):
    number = getattr(signal, name)
    before = signal.getsignal(number)
    if before is signal.SIG_IGN:
        pytest.skip("the tests themselves run under nohup")
    now = [50.0]
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: now[0])
    with interruption() as interrupted:
        assert not interrupted()
        signal.raise_signal(number)
        assert interrupted() and capfd.readouterr().err == ""
        for other in (number, signal.SIGTERM):  # a second one within milliseconds, as a group of processes gets it
            now[0] += 0.01
            signal.raise_signal(other)
            assert capfd.readouterr().err == "saving ...\n"
        now[0] += REPEAT_S
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)
    assert signal.getsignal(number) is before


def test_what_is_ignored_stays_ignored():
    """Under nohup a run outlives its terminal."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with interruption() as interrupted:
            signal.raise_signal(signal.SIGHUP)
            assert not interrupted()
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_hangup_saves_a_run(tmp_path, monkeypatch):
    steps = []
    advance = progress_module.Progress.advance

    def advancing(self, *args):
        advance(self, *args)
        steps.append(self.step)
        if self.step == 3:
            signal.raise_signal(signal.SIGHUP)

    monkeypatch.setattr(progress_module.Progress, "advance", advancing)
    result, _ = run(config_of(tmp_path))
    assert result.interrupted and steps_in(result.run_dir / "checkpoints") == [steps[-1]] and 3 <= steps[-1] < 8


# --- what a run tells and keeps ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"force_terminal": True}, {"force_jupyter": True}])
def test_a_quiet_run_says_nothing(tmp_path, capfd, options):
    result = train(config_of(tmp_path, eval_every=48), console=Console(quiet=True, **options))
    assert capfd.readouterr() == ("", "") and len(repr(result)) < 300


@dataclasses.dataclass(frozen=True)
class PreparedData(Data):
    """Data with a preparation that writes one file."""

    def preparation(self):
        class Preparation:
            def save(self, folder: pathlib.Path) -> None:
                folder.mkdir(parents=True)
                (folder / "preparation.json").write_text("{}")

        return Preparation()


def test_the_preparation_of_the_data_is_kept_with_the_run(tmp_path):
    result, _ = run(config_of(tmp_path, PreparedData()))
    assert (result.run_dir / "preparation" / "preparation.json").read_text() == "{}"


def test_a_run_without_an_end(tmp_path):
    for epochs in (1e30, 1e308):
        with pytest.raises(ConfigError, match="passes over 128 examples never end; lower it"):
            run(config_of(tmp_path / "runs", epochs=epochs))
    assert not (tmp_path / "runs").exists()


def test_resuming_on_other_data_with_as_many_rows_is_refused(tmp_path):
    run(config_of(tmp_path))
    other = Data(set_values=(("train", "dense", 100, 0.5),))
    with pytest.raises(CheckpointError, match="the training data are others than the checkpoint's: digest is"):
        run(config_of(tmp_path, other), resume=True)


def test_a_finished_run_says_that_nothing_is_left(tmp_path):
    run(config_of(tmp_path))
    again, said = run(config_of(tmp_path), resume=True)
    assert "already trained on 128 of 128 examples; raise train.epochs to go on\n" in said
    assert again.summary["examples"] == NUM_TRAIN


def test_a_notebook_shows_curves_and_table(tmp_path):
    result, _ = run(config_of(tmp_path, eval_every=32))
    shown = result._repr_html_()
    assert shown.startswith('<iframe srcdoc="') and shown.endswith("></iframe>") and shown.count("<") == 2
    page = html.unescape(shown.partition('srcdoc="')[2].rpartition('" width')[0])
    assert "NE: click" in page and ">validation</li>" in page and "<table>" in page and "http" not in page
    assert f"{result.summary['eval']['click']['auc']:.4f}" in page and json.dumps(result.summary["config"]) not in page

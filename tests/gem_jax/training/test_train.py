"""The whole job: what it leaves behind, that it repeats itself to the bit, and that stopping and resuming changes nothing."""

import dataclasses
import json
import os
import pathlib
import pty
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from rich.console import Console

from gem_jax import train as train_module
from gem_jax.checkpoint.errors import CheckpointError
from gem_jax.checkpoint.history import history
from gem_jax.config import Config, load, override
from gem_jax.data.loader import Loader
from gem_jax.models import DLRMConfig
from gem_jax.report.log import read_metrics
from gem_jax.train import Options, Result, main, train

ROOT = pathlib.Path(__file__).parents[3]
MEASURES = {"ne", "bayes_ne", "auc", "gauc", "calibration", "logloss"}


def tiny_config(runs_dir: pathlib.Path, *overrides: str) -> Config:
    """A DLRM with dropout on 600 shuffled examples of the synthetic stream, in about 20 steps."""
    config = load(
        ROOT / "configs" / "gem_debug.py",
        [
            "data.train_examples=600",
            "data.test_examples=200",
            "data.active_users=40",
            "data.active_ads=24",
            "batch.examples=32",
            "batch.tokens.organic=512",
            "batch.tokens.impressions=512",
            "train.shuffle=True",
            "mesh.replica=1",
            "mesh.shard=1",
            f"runs_dir={runs_dir}",
        ],
    )
    model = DLRMConfig(embedding_dim=4, bottom_hidden=(4,), top_hidden=(8,), dropout=0.2)
    return override(config.replace(name="tiny", model=model), list(overrides))


def run(config: Config, *, resume: bool = False) -> Result:
    return train(config, Options(resume=resume), console=Console(quiet=True))


def evaluation(result: Result) -> str:
    return json.dumps(result.summary["eval"], sort_keys=True)


def assert_same_state(actual: Result, expected: Result) -> None:
    """Every array of the two states equal to the bit, and every metric of the evaluation."""
    states = [dataclasses.replace(r.state, key=jax.random.key_data(r.state.key)) for r in (actual, expected)]
    for x, y in zip(*map(jax.tree.leaves, states), strict=True):
        np.testing.assert_array_equal(x, y)
    assert evaluation(actual) == evaluation(expected)
    assert actual.summary["examples"] == expected.summary["examples"]
    assert actual.summary["truncated_events"] == expected.summary["truncated_events"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Result:
    """An uninterrupted run."""
    return run(tiny_config(tmp_path_factory.mktemp("whole")))


def reject_constant(name: str):
    raise AssertionError(f"{name} is not JSON")


def test_the_run_folder_is_complete(whole):
    assert whole.run_dir.name == "tiny" and not whole.interrupted
    found = {p.name for p in whole.run_dir.iterdir()}
    files = {"config.json", "history.jsonl", "metrics.jsonl", "report.html", "summary.json"}
    assert found == files | {"tensorboard", "checkpoints"}
    assert [event.step for event in history(whole.run_dir)] == [0]
    assert len(repr(whole)) < 300 and "tiny" in repr(whole)
    config = json.loads((whole.run_dir / "config.json").read_text())
    assert config["kind"] == "Config" and config["batch"]["examples"] == 32
    assert config["model"]["kind"] == "DLRMConfig" and config["model"]["embedding_dim"] == 4
    assert [p.name for p in (whole.run_dir / "checkpoints").iterdir()] == [str(int(whole.state.step))]
    events = list((whole.run_dir / "tensorboard").glob("events.out.tfevents.*"))
    assert len(events) == 1 and b"eval/ne/click" in events[0].read_bytes()
    html = (whole.run_dir / "report.html").read_text()
    assert "tiny" in html and "click" in html

    lines = read_metrics(whole.run_dir / "metrics.jsonl")
    last = [line for line in lines if "train/loss" in line][-1]
    assert (last["step"], last["examples"]) == (int(whole.state.step), 600)
    assert lines[-1]["eval/ne/click"] == whole.summary["eval"]["click"]["ne"]


def test_the_summary_is_strict_json_with_the_promised_keys(whole):
    text = (whole.run_dir / "summary.json").read_text()
    summary = json.loads(text, parse_constant=reject_constant)
    assert summary == json.loads(json.dumps(whole.summary))
    assert {"config", "device", "examples", "examples_per_s", "time_to_first_step_s", "eval"} <= summary.keys()
    assert summary["examples"] == 600
    assert summary["examples_per_s"] > 0 and summary["time_to_first_step_s"] > 0
    domains = list(whole.program.schema.domains)
    assert list(summary["eval"]) == [task.name for task in whole.program.schema.tasks]
    for measures in summary["eval"].values():
        assert measures.keys() >= {*MEASURES, "by_domain"}
        assert list(measures["by_domain"]) == domains and len(domains) > 1
        for of_domain in measures["by_domain"].values():
            assert of_domain.keys() >= MEASURES
    for name in MEASURES:
        assert isinstance(summary["eval"]["click"][name], float), name
    assert summary["eval"]["click"]["num_examples"] == 200


def test_the_same_seed_repeats_itself_and_another_does_not(whole, tmp_path):
    assert_same_state(run(tiny_config(tmp_path)), whole)
    assert evaluation(run(tiny_config(tmp_path, "train.seed=1"))) != evaluation(whole)


def interrupt_after(monkeypatch, count: int) -> None:
    """Sends this process SIGINT when the loop takes its `count`-th batch."""
    batches_of = Loader._batches

    def batches(self):
        for number, batch in enumerate(batches_of(self), 1):
            if number == count and len(self._packing.source) == 600:  # of training, not of evaluation
                os.kill(os.getpid(), signal.SIGINT)
            yield batch

    monkeypatch.setattr(Loader, "_batches", batches)


def test_interrupting_and_resuming_changes_nothing(whole, tmp_path, monkeypatch):
    config = tiny_config(tmp_path)
    handler = signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patch:
        interrupt_after(patch, 7)
        stopped = run(config)
    assert signal.getsignal(signal.SIGINT) is handler
    assert (
        stopped.interrupted and int(stopped.state.step) == 4
    )  # the loader is two batches ahead, and the third is asked for
    assert (stopped.run_dir / "checkpoints" / "4").is_dir() and (stopped.run_dir / "report.html").exists()
    assert not (stopped.run_dir / "summary.json").exists()

    resumed = run(config, resume=True)
    assert resumed.run_dir == stopped.run_dir and not resumed.interrupted
    assert_same_state(resumed, whole)
    steps = [line["step"] for line in read_metrics(resumed.run_dir / "metrics.jsonl")]
    assert steps == sorted(steps) and 4 in steps


def test_a_killed_run_resumes_from_its_last_checkpoint(whole, tmp_path, monkeypatch):
    """As after `kill -9` or a power cut: the exception passes through the loop, and nothing is saved on the way out."""
    config = tiny_config(tmp_path, "checkpoint.examples=150", "train.eval_every=200")

    def explode(*_):
        raise RuntimeError("power cut")

    with monkeypatch.context() as patch:
        evaluate = train_module.evaluate
        calls = iter([evaluate, explode])
        patch.setattr(train_module, "evaluate", lambda *args: next(calls)(*args))
        with pytest.raises(RuntimeError, match="power cut"):
            run(config)
    resumed = run(config, resume=True)
    assert_same_state(resumed, whole)
    kept = sorted(int(p.name) for p in (resumed.run_dir / "checkpoints").iterdir())
    assert len(kept) == 2 and kept[-1] == int(whole.state.step)
    evaluated = [
        line["examples"] for line in read_metrics(resumed.run_dir / "metrics.jsonl") if "eval/ne/click" in line
    ]
    assert len(evaluated) == 3 and evaluated[-1] == 600
    assert 200 <= evaluated[0] < 232 and 400 <= evaluated[1] < 432  # the one that was cut off is made up for
    assert resumed.summary["examples_per_s"] > 0


def test_resuming_a_finished_run_only_evaluates_it_again(tmp_path):
    config = tiny_config(tmp_path, "train.epochs=0.4")
    first = run(config)
    assert 240 <= first.summary["examples"] < 272  # the last batch is trained on whole
    again = run(config, resume=True)
    assert_same_state(again, first)
    assert again.summary["time_to_first_step_s"] is None


def test_training_goes_on_over_epochs(tmp_path):
    result = run(tiny_config(tmp_path, "train.epochs=2", "train.eval_examples=50"))
    assert result.summary["examples"] == 1200
    assert result.summary["eval"]["click"]["num_examples"] == 50
    assert run(tiny_config(tmp_path)).run_dir.name == "tiny-2"
    with pytest.raises(CheckpointError, match="no run"):
        run(tiny_config(tmp_path).replace(name="other"), resume=True)


def test_a_run_learns(whole, tmp_path):
    """Three passes, from the base rate on: the training loss falls."""
    result = run(tiny_config(tmp_path, "train.epochs=6", "model.dropout=0", "optimizer.learning_rate=0.01"))
    losses = [x["train/loss"] for x in read_metrics(result.run_dir / "metrics.jsonl") if "train/loss" in x]
    assert losses[-1] < 0.9 * losses[0]
    assert 0.5 < whole.summary["eval"]["click"]["true_calibration"] < 2  # of 600 examples of 40 users


@pytest.fixture
def config_file(tmp_path) -> pathlib.Path:
    """A config that trains for long enough to be stopped: about 1,500 steps of 20 examples."""
    path = tmp_path / "config.py"
    path.write_text(
        "import pathlib\n"
        "from tests.gem_jax.training.test_train import tiny_config\n\n"
        "def get_config():\n"
        "    overrides = ('train.epochs=50', 'batch.examples=20')\n"
        "    return tiny_config(pathlib.Path(__file__).parent / 'runs', *overrides)\n"
    )
    return path


ENVIRONMENT = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(ROOT / ".jax_cache"), "PYTHONUNBUFFERED": "1"}


def start(*arguments: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "gem_jax.train", *arguments]
    return subprocess.Popen(
        command, cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_control_c_saves_and_says_how_to_resume(config_file):
    process = start(str(config_file))
    run_dir = config_file.parent / "runs" / "tiny"
    deadline = time.monotonic() + 120
    while len(read_metrics(run_dir / "metrics.jsonl")) < 2:  # it is stepping
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.05)
    for _ in range(
        2
    ):  # a terminal sends one to the whole group, and so may who started it: the second is no wish to lose all
        process.send_signal(signal.SIGINT)
        time.sleep(0.01)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and err in ("", "saving ...\n")  # the first may be at work when the second comes
    again = f"python -m gem_jax.train {config_file} --resume"
    assert "Interrupted and saved after" in out and again in out
    checkpoints = [int(p.name) for p in (run_dir / "checkpoints").iterdir()]
    assert len(checkpoints) == 1 and 40 <= checkpoints[0] < 1500

    process = start(str(config_file), "train.epochs=20", "--resume")
    out, err = process.communicate(timeout=120)
    assert (process.returncode, err) == (0, ""), out
    summary = json.loads((run_dir / "summary.json").read_text())
    assert summary["examples"] >= 12_000 and f"Run folder: {run_dir}" in out


def test_a_run_whose_terminal_is_closed_is_saved(config_file):
    """SIGHUP, and from then on every print raises: neither may lose what was learned."""
    ours, theirs = pty.openpty()
    take_terminal = (
        "import fcntl, os, sys, termios; fcntl.ioctl(1, termios.TIOCSCTTY, 0); os.execv(sys.argv[1], sys.argv[1:])"
    )
    command = [sys.executable, "-c", take_terminal, sys.executable, "-m", "gem_jax.train", str(config_file)]
    process = subprocess.Popen(command, cwd=ROOT, env=ENVIRONMENT, stdout=theirs, stderr=theirs, start_new_session=True)
    os.close(theirs)
    run_dir = config_file.parent / "runs" / "tiny"
    deadline = time.monotonic() + 120
    while len(read_metrics(run_dir / "metrics.jsonl")) < 2:  # it is stepping
        assert process.poll() is None and time.monotonic() < deadline
        os.read(ours, 4096)  # a full terminal would block it
        time.sleep(0.05)
    os.close(ours)
    assert process.wait(timeout=60) == 130
    (step,) = [int(p.name) for p in (run_dir / "checkpoints").iterdir()]
    assert 40 <= step < 1500


def test_the_command_line_says_how_to_resume(config_file, monkeypatch, capfd):
    interrupt_after(monkeypatch, 3)
    runs = config_file.parent / "my runs [old]"
    assert main([str(config_file), "train.seed=4", f"runs_dir={runs}"]) == 130
    out, err = capfd.readouterr()
    assert err == "" and "Interrupted and saved after" in out
    assert f"  python -m gem_jax.train {config_file} train.seed=4 'runs_dir={runs}' --resume\n" in out


def test_control_c_before_training_begins(config_file, monkeypatch, capfd):
    def build(_):
        raise KeyboardInterrupt

    monkeypatch.setattr("gem_jax.data.synthetic.SyntheticConfig.build", build)
    assert main([str(config_file)]) == 130
    out, err = capfd.readouterr()
    assert out == "" and err.startswith("interrupted: ") and err.count("\n") == 1

"""Two processes with four devices each are one run of eight devices."""

import json
import os
import pathlib
import socket
import subprocess
import sys

import numpy as np
import pytest

from gem_jax.parallel import processes
from gem_jax.report.log import read_metrics
from tests.gem_jax.run.steps import GLOBAL_BATCH, Outcome, train_on
from tests.gem_jax.run.test_steps_on_meshes import assert_same

ROOT = pathlib.Path(__file__).parents[3]


def start_both(*arguments: str) -> list[tuple[int, str, str]]:
    """Exit code, output and errors of both processes of a job."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    running = []
    for index in range(2):
        environment = os.environ | {
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": "--xla_force_host_platform_device_count=4",
            "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
            "JAX_NUM_PROCESSES": "2",
            "JAX_PROCESS_ID": str(index),
            "JAX_COMPILATION_CACHE_DIR": str(ROOT / ".jax_cache"),
        }
        command = [sys.executable, "-m", *arguments]
        running.append(
            subprocess.Popen(
                command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )
        )
    outputs = [process.communicate(timeout=300) for process in running]
    return [(p.returncode, out, err) for p, (out, err) in zip(running, outputs, strict=True)]


@pytest.mark.parametrize(("replica", "shard"), [(2, 4), pytest.param(1, 8, marks=pytest.mark.slow)])
def test_training_steps_agree_with_one_device(tmp_path, replica, shard):
    """With shard=8 the exchanges of ids and rows cross the processes, with shard=4 the gradients of replicas do."""
    for code, out, err in start_both("tests.gem_jax.parallel.process", str(replica), str(shard), str(tmp_path / "run")):
        assert code == 0, out + err
    wanted, half = train_on(1, 1), GLOBAL_BATCH // 2
    for index in range(2):
        arrays = np.load(tmp_path / f"run-{index}.npz")
        groups = {
            g: {n.removeprefix(f"{g}/"): arrays[n] for n in arrays if n.startswith(f"{g}/")} for g in vars(wanted)
        }
        found = Outcome(**{name: groups[name] or arrays[name] for name in groups})
        own = slice(index * half, (index + 1) * half)
        assert_same(found, Outcome(**vars(wanted) | {n: getattr(wanted, n)[own] for n in ("logits", "evaluated")}))


CONFIG = """
from tests.gem_jax.training.test_train import tiny_config
import pathlib

def get_config():
    return tiny_config(pathlib.Path(__file__).parent / 'runs', 'mesh.replica=2', 'mesh.shard=4', 'batch.examples=8',
                       'batch.tokens.organic=128', 'batch.tokens.impressions=128', 'checkpoint.examples=300')
"""


def test_the_whole_job_in_two_processes(tmp_path):
    """The command line trains, saves, evaluates and resumes; the first process alone writes and speaks."""
    config = tmp_path / "config.py"
    config.write_text(CONFIG)
    (code, out, err), (other_code, other_out, other_err) = start_both("gem_jax.train", str(config))
    assert (code, other_code) == (0, 0), err + other_err
    assert "Run folder:" in out and "Run folder:" not in other_out
    run = tmp_path / "runs" / "tiny"
    summary = json.loads((run / "summary.json").read_text())
    assert summary["examples"] == 600 and summary["mesh"] == {"replica": 2, "shard": 4}
    assert summary["eval"]["click"]["num_examples"] == 200
    lines = [line for line in read_metrics(run / "metrics.jsonl") if "train/loss" in line]
    assert (
        lines[-1]["examples"] == 600 and lines[-1]["train/imbalance"] >= 1 and lines[-1]["train/table_overflows"] >= 0
    )
    assert [p.name for p in (tmp_path / "runs").iterdir()] == ["tiny"]

    for code, out, err in start_both("gem_jax.train", str(config), "train.epochs=2", "--resume"):
        assert code == 0, out + err
    assert json.loads((run / "summary.json").read_text())["examples"] == 1200


def test_a_run_of_one_process_has_nothing_to_exchange():
    values = np.arange(3)
    assert processes.gather_rows(values) is values and processes.total(values) is values
    np.testing.assert_array_equal(processes.gather(values), [values])
    assert processes.any_process(True) and not processes.any_process(False) and processes.first_process_says("x") == "x"
    assert processes.is_first()


def test_half_a_job_by_hand_is_refused(monkeypatch):
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "127.0.0.1:1")
    monkeypatch.delenv("JAX_NUM_PROCESSES", raising=False)
    with pytest.raises(ValueError, match="set JAX_NUM_PROCESSES and JAX_PROCESS_ID to whole numbers too"):
        processes.start()

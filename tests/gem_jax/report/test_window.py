"""The window: what it logs and when, against sums by hand; a broken loss ends the run."""

import numpy as np
import pytest
from rich.console import Console

from gem_jax.errors import UserError
from gem_jax.evaluation.errors import DivergedError
from gem_jax.evaluation.evaluator import Evaluator
from gem_jax.parallel.mesh import make_mesh
from gem_jax.parallel.sharding import place_batch
from gem_jax.report.log import RunLogger, read_metrics
from gem_jax.report.window import LOG_EVERY, Window
from tests.gem_jax.evaluation.scored import SCHEMA, random_batch

MESH = make_mesh(2, 4)


def outputs(step: int, logits: np.ndarray, **changes) -> dict:
    """What a step returns: numbers that tell the step."""
    scalars = {"loss": 0.5 + step, "grad_norm": 2.0 * step, "learning_rate": 0.1 * step, "table_overflow": step % 2}
    scalars = {name: np.float32(value) for name, value in scalars.items()}
    measures = {"loss/click": np.float32(0.25 * step), "aux": np.float32(step)}
    return {**scalars, "measures": measures, "logits": place_batch(logits, MESH)} | changes


def run(run_dir, steps: int) -> list[dict]:
    with RunLogger(run_dir, total_examples=64 * steps, console=Console(quiet=True)) as log:
        window = Window(log, SCHEMA)
        for step in range(1, steps + 1):
            logits, host = random_batch(step, 64)
            window.add(step, 64 * step, outputs(step, logits), host)
        window.flush()
        window.flush()
    return read_metrics(run_dir / "metrics.jsonl")


def test_means_by_the_window_and_the_rest_at_the_end(tmp_path):
    steps = LOG_EVERY + 3
    lines = run(tmp_path, steps)
    assert [(line["step"], line["examples"]) for line in lines] == [(LOG_EVERY, 64 * LOG_EVERY), (steps, 64 * steps)]
    for line, window in zip(lines, (range(1, LOG_EVERY + 1), range(LOG_EVERY + 1, steps + 1)), strict=True):
        mean, last = np.mean(window), window[-1]
        expected = {
            "train/loss": 0.5 + mean,  # of small multiples of 1/4, exact in float32
            "train/loss/click": 0.25 * mean,
            "train/aux": mean,
            "train/grad_norm": 2.0 * last,
            "train/learning_rate": float(np.float32(0.1 * last)),
            "train/table_overflows": sum(step % 2 for step in window),
            "train/imbalance": 1.0,
        }
        assert {name: line[name] for name in expected} == pytest.approx(expected, rel=1e-15)
        evaluator = Evaluator(SCHEMA)
        for step in window:
            evaluator.update(*random_batch(step, 64))
        for task, measures in evaluator.result().items():
            for name in ("ne", "calibration", "logloss", "base_rate"):
                assert line[f"train/{name}/{task}"] == pytest.approx(measures[name], rel=1e-12)
        assert not any("auc" in name for name in line)


def test_outputs_are_read_one_step_late(tmp_path):
    class Unread(dict):
        def items(self):
            raise AssertionError("read before the next step was begun")

    logits, host = random_batch(0, 64)
    with RunLogger(None, total_examples=64) as log:
        window = Window(log, SCHEMA)
        window.add(1, 64, outputs(1, logits), host)
        window.add(2, 128, Unread(outputs(2, logits)), host)
        with pytest.raises(AssertionError, match="read before"):
            window.add(3, 192, outputs(3, logits), host)


@pytest.mark.parametrize("loss", [np.nan, np.inf])
def test_a_broken_loss_names_its_step(loss):
    logits, host = random_batch(0, 64)
    with RunLogger(None, total_examples=64) as log:
        window = Window(log, SCHEMA)
        window.add(7, 64, outputs(7, logits, loss=np.float32(loss)), host)
        with pytest.raises(DivergedError, match=f"the loss is {loss} at step 7; lower optimizer.learning_rate"):
            window.flush()


@pytest.mark.parametrize("name", ["loss", "ne/click", "imbalance"])
def test_a_measure_cannot_hide_a_scalar_of_the_run(name):
    logits, host = random_batch(0, 64)
    with RunLogger(None, total_examples=64) as log:
        window = Window(log, SCHEMA)
        window.add(1, 64, outputs(1, logits, measures={name: np.float32(1)}), host)
        with pytest.raises(UserError, match=f"measure '{name}' has the name of a scalar"):
            window.flush()

"""The window: what it logs and when, against sums by hand; a broken loss ends the run."""

import dataclasses

import numpy as np
import pytest
from rich.console import Console

from gem_jax.data.batch import Batch
from gem_jax.data.source import DataError
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


def batch_of(host, **changes) -> Batch:
    """What of a batch a broken loss may come from, on the mesh."""
    dense = np.zeros((64, len(SCHEMA.dense)), np.float32)
    columns = {"ids": {}, "dense": dense, "vectors": {}, "sequences": {}, "domain": host.domain}
    return place_batch(Batch(**columns | {"labels": host.labels, "weight": host.weight} | changes), MESH)


def run(run_dir, steps: int) -> list[dict]:
    with RunLogger(run_dir, total_examples=64 * steps, console=Console(quiet=True)) as log:
        window = Window(log, SCHEMA)
        for step in range(1, steps + 1):
            logits, host = random_batch(step, 64)
            window.add(step, 64 * step, outputs(step, logits), batch_of(host), host)
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
        window.add(1, 64, outputs(1, logits), batch_of(host), host)
        window.add(2, 128, Unread(outputs(2, logits)), batch_of(host), host)
        with pytest.raises(AssertionError, match="read before"):
            window.add(3, 192, outputs(3, logits), batch_of(host), host)


@pytest.mark.parametrize("loss", [np.nan, np.inf])
def test_a_broken_loss_names_its_step(loss):
    logits, host = random_batch(0, 64)
    with RunLogger(None, total_examples=64) as log:
        window = Window(log, SCHEMA)
        window.add(7, 64, outputs(7, logits, loss=np.float32(loss)), batch_of(host), host)
        with pytest.raises(DivergedError, match=f"the loss is {loss} at step 7; lower optimizer.learning_rate"):
            window.flush()


@pytest.mark.parametrize("name", ["loss", "ne/click", "imbalance"])
def test_a_measure_cannot_hide_a_scalar_of_the_run(name):
    logits, host = random_batch(0, 64)
    with RunLogger(None, total_examples=64) as log:
        window = Window(log, SCHEMA)
        window.add(1, 64, outputs(1, logits, measures={name: np.float32(1)}), batch_of(host), host)
        with pytest.raises(UserError, match=f"measure '{name}' has the name of a scalar"):
            window.flush()


@pytest.mark.parametrize("late", [0, 1], ids=["own step", "step before"])
def test_a_broken_loss_names_the_input_that_explains_it(late):
    """The loss of the step may still be finite, and its gradient not: then the next step's loss is broken."""
    logits, host = random_batch(0, 64)
    weight = np.where(np.arange(64) == 5, np.float32(1e30), host.weight)
    with RunLogger(None, total_examples=64) as log:
        window = Window(log, SCHEMA)
        for step in range(1, 3 + late):
            loss = np.nan if step == 2 + late else 0.5
            batch = batch_of(host, weight=weight) if step == 2 else batch_of(host)
            window.add(step, 64, outputs(step, logits, loss=np.float32(loss)), batch, host)
        named = f"at step {2 + late}; the weight is as large as 1e\\+30 in example {host.example_id[5]}: correct or scale it"
        with pytest.raises(DivergedError, match=named) as error:
            window.flush()
        assert "learning_rate" not in str(error.value)


def test_examples_none_of_which_counts():
    logits, host = random_batch(0, 64)
    with RunLogger(None, total_examples=64) as log:
        for weight, expected in (
            (host.weight, None),
            (np.zeros_like(host.weight), "no training example so far counts"),
        ):
            window = Window(log, SCHEMA)
            window.check_counted()
            columns = dataclasses.replace(host, weight=weight)
            window.add(1, 64, outputs(1, logits), batch_of(columns), columns)
            window.flush()
            if expected is None:
                window.check_counted()
            else:
                with pytest.raises(DataError, match=expected):
                    window.check_counted()

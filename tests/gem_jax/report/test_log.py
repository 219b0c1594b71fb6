"""The run's log files: metrics.jsonl and TensorBoard, when new, continued, interrupted."""

import io
import json

import pytest
from rich.console import Console
from tensorboardX.proto.event_pb2 import Event

from gem_jax.evaluation.evaluator import Evaluator
from gem_jax.report.console import evaluation_line
from gem_jax.report.log import RunLogger, read_metrics
from tests.gem_jax.evaluation.scored import SCHEMA, random_batch


def read_events(run_dir) -> list[tuple[str, float, int]]:
    """(name, value, step) of all TensorBoard files of a run; a record is length, checksum, data, checksum.

    A session's start is ("start", 0, step): TensorBoard hides what earlier files say about this step and later ones.
    """
    scalars = []
    for path in sorted((run_dir / "tensorboard").iterdir()):
        data = path.read_bytes()
        while data:
            size = int.from_bytes(data[:8], "little")
            event = Event.FromString(data[12 : 12 + size])
            scalars += [("start", 0, event.step)] if event.HasField("session_log") else []
            scalars += [(value.tag, value.simple_value, event.step) for value in event.summary.value]
            data = data[16 + size :]
    return scalars


def logger_for(run_dir, **kwargs) -> RunLogger:
    return RunLogger(run_dir, total_examples=1000, console=Console(file=io.StringIO()), **kwargs)


def test_jsonl_and_tensorboard(tmp_path):
    with logger_for(tmp_path / "new" / "run") as logger:
        logger.log(10, 320, {"train/loss": 0.5, "train/ne/click": 0.9})
        logger.log(20, 640, {"train/loss": float("nan"), "train/ne/click": None})
        on_disk = (tmp_path / "new" / "run" / "metrics.jsonl").read_text().splitlines()
        assert len(on_disk) == 2, "lines reach the disk at once, not on closing"
    lines = [json.loads(line) for line in on_disk]
    assert lines[0].items() >= {"step": 10, "examples": 320, "train/loss": 0.5, "train/ne/click": 0.9}.items()
    assert lines[1]["train/loss"] is None and lines[1]["train/ne/click"] is None
    assert lines[0]["time"] <= lines[1]["time"]
    events = read_events(tmp_path / "new" / "run")
    assert ("train/loss", 0.5, 10) in events and ("train/ne/click", pytest.approx(0.9), 10) in events
    assert events[0] == ("start", 0, 0)
    assert all(step == 10 for _, _, step in events[1:]), "undefined values are no events"


def test_interrupt_leaves_complete_files(tmp_path):
    with pytest.raises(KeyboardInterrupt), logger_for(tmp_path) as logger:
        logger.log(1, 32, {"train/loss": 0.5})
        raise KeyboardInterrupt
    assert [line["step"] for line in read_metrics(tmp_path / "metrics.jsonl")] == [1]
    assert ("train/loss", 0.5, 1) in read_events(tmp_path)


def test_resume_appends_after_the_checkpoint(tmp_path):
    with logger_for(tmp_path) as logger:
        for step in (1, 2, 3):
            logger.log(step, 10 * step, {"train/loss": float(step)})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "exam')  # killed while writing
    with logger_for(tmp_path, resume_step=2) as logger:
        logger.log(3, 30, {"train/loss": 30.0})
    lines = read_metrics(tmp_path / "metrics.jsonl")
    assert [(line["step"], line["train/loss"]) for line in lines] == [(1, 1.0), (2, 2.0), (3, 30.0)]
    assert {("start", 0, 3), ("train/loss", 30.0, 3)} <= set(read_events(tmp_path))


def test_a_new_run_begins_a_new_file(tmp_path):
    for _ in range(2):
        with logger_for(tmp_path) as logger:
            logger.log(0, 0, {"eval/ne/click": 1.0})
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == 1
    assert read_metrics(tmp_path / "missing.jsonl") == []


def test_an_evaluation_is_scalars_and_a_line(tmp_path):
    console = Console(file=io.StringIO(), width=40)
    evaluator = Evaluator(SCHEMA)
    evaluator.update(*random_batch(0, 200))
    result = evaluator.result()
    result["buy"]["auc"] = None
    with RunLogger(tmp_path, total_examples=1000, console=console) as logger:
        logger.evaluation(40, 12800, "valid", result)
    assert console.file.getvalue() == evaluation_line("valid", 12800, result) + "\n"
    (line,) = read_metrics(tmp_path / "metrics.jsonl")
    assert line["valid/ne/click"] == result["click"]["ne"] and line["valid/auc/buy"] is None and line["step"] == 40
    assert not any("num_" in key or "domain" in key for key in line)


def test_other_hosts_write_and_show_nothing(capsys):
    with RunLogger(None, total_examples=10) as logger:
        logger.progress(5, loss=0.1, task="click", ne=0.9)
        logger.log(1, 5, {"train/loss": 0.1})
        logger.print("hello")
    assert capsys.readouterr().out == ""

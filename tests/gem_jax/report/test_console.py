"""The run's log files and what it shows, with and without a terminal."""

import io
import json

import pytest
from rich.console import Console
from tensorboardX.proto.event_pb2 import Event

from gem_jax.report import console as console_module
from gem_jax.report.console import print_table
from gem_jax.report.formats import format_rate
from gem_jax.report.log import RunLogger, read_metrics

MEASURES = {
    "ne": 0.81234, "bayes_ne": 0.75, "closed": 0.75064, "auc": 0.7654321, "gauc": None, "calibration": 1.0123, "logloss": 0.1234567,
    "base_rate": 0.0321, "num_examples": 12345, "num_positives": 400,
}  # fmt: skip


def plain_console() -> Console:
    return Console(file=io.StringIO(), width=200)


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
    return RunLogger(run_dir, **{"total_examples": 1000, "console": plain_console(), **kwargs})


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


def test_an_evaluation_is_one_line_and_scalars(tmp_path):
    console = plain_console()
    result = {"click": MEASURES | {"by_domain": {"feed": MEASURES}}, "buy": MEASURES | {"auc": None, "by_domain": {}}}
    with logger_for(tmp_path, console=console) as logger:
        logger.evaluation(40, 12800, "valid", result)
    assert console.file.getvalue().splitlines() == [
        "valid after 12,800 examples:  click NE 0.8123, AUC 0.7654  buy NE 0.8123, AUC -"
    ]
    (line,) = read_metrics(tmp_path / "metrics.jsonl")
    assert line["valid/ne/click"] == 0.81234 and line["valid/auc/buy"] is None and line["step"] == 40
    assert not any("num_" in key or "domain" in key for key in line)


def test_other_hosts_write_and_show_nothing(capsys):
    with RunLogger(None, total_examples=10) as logger:
        logger.progress(5, loss=0.1, ne=0.9)
        logger.log(1, 5, {"train/loss": 0.1})
        logger.print("hello")
    assert capsys.readouterr().out == ""


def test_plain_progress_is_one_line_an_interval(tmp_path, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(console_module.time, "monotonic", lambda: now[0])
    console = plain_console()
    with logger_for(tmp_path, console=console) as logger:
        for i in range(1, 11):
            logger.progress(100 * i, loss=0.25, ne=None if i == 1 else 0.9)
            now[0] += 3.0
        logger.print("saved [bold]x[/bold]")
    lines = console.file.getvalue().splitlines()
    # at 0 s, then every fourth call (12 s >= 10 s), the last call because the run is over
    assert [line.split(" of")[0] for line in lines[:-1]] == ["100", "500", "900", "1,000"]
    assert "loss 0.2500  NE -" in lines[0]
    assert lines[1] == "500 of 1,000 examples (50%)  loss 0.2500  NE 0.9000  33 examples/s  0:00:15 left"
    assert lines[-1] == "saved [bold]x[/bold]"


def test_bar_on_a_terminal(tmp_path):
    console = Console(file=io.StringIO(), force_terminal=True, width=120)
    with RunLogger(tmp_path, total_examples=1000, console=console) as logger:
        logger.progress(250, loss=0.25, ne=0.9)
        logger.print("saved a checkpoint")
    shown = console.file.getvalue()
    assert "25%" in shown and "loss 0.2500" in shown and "NE 0.9000" in shown and "saved a checkpoint" in shown


def test_table():
    console = plain_console()
    empty = dict.fromkeys(MEASURES) | {"num_examples": 0}
    print_table({"click": MEASURES | {"by_domain": {"[feed]": MEASURES, "reels": empty}}}, console)
    rows = [line.split() for line in console.file.getvalue().splitlines() if line.strip()]
    assert rows[0] == "task base Bayes cali- log".split()
    assert rows[1] == "domain examples rate NE NE closed AUC gAUC bration loss".split()
    numbers = "12,345 3.21 % 0.8123 0.7500 75% 0.7654 - 1.012 0.1235".split()
    assert ["click", *numbers] in rows and ["[feed]", *numbers] in rows
    assert ["reels", "0", *"--------"] in rows


def test_a_quiet_console_shows_no_table(capsys):
    print_table({"click": MEASURES | {"by_domain": {}}}, Console(quiet=True))
    assert capsys.readouterr().out == ""


def test_table_fits_a_narrow_terminal():
    console = Console(file=io.StringIO(), force_terminal=True, color_system=None, width=80)
    print_table({"conversion": MEASURES | {"by_domain": {"a_very_long_domain": MEASURES, "reels": MEASURES}}}, console)
    lines = console.file.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    (row,) = (line for line in lines if "a_very" in line)
    assert row.split()[1:] == "12,345 3.21 % 0.8123 0.7500 75% 0.7654 - 1.012 0.1235".split()


def test_table_without_known_truth_has_no_bayes_columns():
    console = plain_console()
    print_table({"click": MEASURES | {"bayes_ne": None, "closed": None, "by_domain": {"only": MEASURES}}}, console)
    assert "Bayes" not in console.file.getvalue() and "closed" not in console.file.getvalue()
    assert "only" not in console.file.getvalue(), "one domain says nothing that the task does not"


@pytest.mark.parametrize(
    ("rate", "text"),
    [(0.0321, "3.21 %"), (0.5, "50.0 %"), (1.0, "100 %"), (0.00321, "0.321 %"), (0.0, "0.00 %"), (None, "-")],
)
def test_format_rate(rate, text):
    assert format_rate(rate) == text

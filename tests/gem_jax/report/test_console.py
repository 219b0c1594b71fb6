"""What a run shows, with and without a terminal."""

import io

import pytest
from rich.console import Console

from gem_jax.report import console as console_module
from gem_jax.report.console import evaluation_line, print_table
from gem_jax.report.log import RunLogger

MEASURES = {
    "ne": 0.81234, "bayes_ne": 0.75, "closed": 0.75064, "auc": 0.7654321, "gauc": None, "calibration": 1.0123, "logloss": 0.1234567,
    "base_rate": 0.0321, "num_examples": 12345, "num_positives": 400, "regret_ne": 0.0623,
    "standard_error": {"ne": 0.0021, "regret_ne": 0.0004, "auc": 0.01, "gauc": None},
}  # fmt: skip


def plain_console() -> Console:
    return Console(file=io.StringIO(), width=200)


def test_plain_progress_is_one_line_an_interval(tmp_path, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(console_module.time, "monotonic", lambda: now[0])
    console = plain_console()
    with RunLogger(tmp_path, total_examples=1000, console=console) as logger:
        for i in range(1, 11):
            logger.progress(100 * i, loss=0.25, task="click", ne=None if i == 1 else 0.9)
            now[0] += 3.0
        logger.print("saved [bold]x[/bold]")
    lines = console.file.getvalue().splitlines()
    # at 0 s, then every fourth call (12 s >= 10 s), the last call because the run is over
    assert [line.split(" of")[0] for line in lines[:-1]] == ["100", "500", "900", "1,000"]
    assert lines[0] == "100 of 1,000 examples (10%)  loss 0.2500  click NE -", "no speed is known yet"
    assert lines[1] == "500 of 1,000 examples (50%)  loss 0.2500  click NE 0.9000  33 examples/s  0:00:15 left"
    assert lines[-1] == "saved [bold]x[/bold]"


def test_bar_on_a_terminal(tmp_path):
    console = Console(file=io.StringIO(), force_terminal=True, width=120)
    with RunLogger(tmp_path, total_examples=1000, console=console) as logger:
        logger.progress(250, loss=0.25, task="[click]", ne=0.9)
        logger.print("saved a checkpoint")
    shown = console.file.getvalue()
    assert "25%" in shown and "loss 0.2500" in shown and "[click] NE 0.9000" in shown and "saved a checkpoint" in shown


def test_a_last_batch_beyond_the_end_is_no_more_than_all(tmp_path):
    """Epochs may end within a batch, which is trained on whole: 608 of 600 examples were 101 %."""
    console = plain_console()
    with RunLogger(tmp_path / "lines", total_examples=600, console=console) as logger:
        logger.progress(608, loss=0.25, task="click", ne=0.9)
    assert console.file.getvalue().startswith("608 of 608 examples (100%)")
    console = Console(file=io.StringIO(), force_terminal=True, width=120)
    with RunLogger(tmp_path / "bar", total_examples=600, console=console) as logger:
        logger.progress(608, loss=0.25, task="click", ne=0.9)
    assert "100%" in console.file.getvalue() and "101%" not in console.file.getvalue()


@pytest.mark.parametrize("options", [{}, {"force_terminal": True}, {"force_jupyter": True}])
def test_a_quiet_console_shows_nothing_at_all(tmp_path, capfd, options):
    console = Console(quiet=True, **options)
    with RunLogger(tmp_path, total_examples=1000, console=console) as logger:
        logger.progress(250, loss=0.25, task="click", ne=0.9)
        logger.print("saved")
    print_table({"click": MEASURES | {"by_domain": {}}}, console)
    assert capfd.readouterr() == ("", "")


def test_a_live_bar_in_a_notebook(tmp_path, monkeypatch):
    """Shown once and replaced in place; a script as it is would be run by the browser, so the task's name is escaped."""
    display = pytest.importorskip("IPython.display")
    shown = []

    class Handle:
        def update(self, what):
            shown.append(what.data)

    monkeypatch.setattr(display, "display", lambda what, display_id: Handle())
    now = [100.0]
    monkeypatch.setattr(console_module.time, "monotonic", lambda: now[0])
    with RunLogger(tmp_path, total_examples=1000, console=Console(force_jupyter=True)) as logger:
        for examples in (250, 260, 500, 1000):
            logger.progress(examples, loss=0.25, task="<i>", ne=0.9)
            now[0] += 0.3
    assert [text.partition("> ")[2].split(" loss")[0].strip() for text in shown] == ["25%", "50%", "100%"]
    assert shown[0].startswith('<progress value="250" max="1000"></progress>') and "&lt;i&gt; NE 0.9000" in shown[0]


NUMBERS = "12,345 400 3.21 % 0.8123 0.7500 0.0623 75% 0.7654 - 1.012 0.1235".split()


def test_table():
    console = plain_console()
    empty = dict.fromkeys(MEASURES) | {"num_examples": 0, "num_positives": 0, "standard_error": {}}
    print_table({"click": MEASURES | {"by_domain": {"[feed]": MEASURES, "reels": empty}}}, console)
    rows = [line.split() for line in console.file.getvalue().splitlines() if line.strip()]
    assert rows[0] == "task posi- base Bayes regret cali- log".split()
    assert rows[1] == "domain examples tives rate NE NE NE closed AUC gAUC bration loss".split()
    assert rows[3:] == [
        ["click", *NUMBERS],
        ["95", "%", "±.0041", "±.0008", "±.0196"],  # 1.96 standard errors, where there are any
        ["[feed]", *NUMBERS],
        ["reels", "0", "0", *"---------"],
    ]


def test_margins_stand_below_their_values():
    console = plain_console()
    print_table({"click": MEASURES | {"by_domain": {}}}, console)
    click, margins = (line for line in console.file.getvalue().splitlines() if "click" in line or "95 %" in line)
    for value, margin in (("0.8123", "±.0041"), ("0.0623", "±.0008"), ("0.7654", "±.0196")):
        assert click.index(value) == margins.index(margin)


def test_a_result_from_before_standard_errors_has_no_margins():
    console = plain_console()
    old = {name: value for name, value in MEASURES.items() if name not in ("standard_error", "regret_ne")}
    print_table({"click": old | {"by_domain": {}}}, console)
    assert "95 %" not in console.file.getvalue() and "regret" not in console.file.getvalue()


def test_a_quiet_console_shows_no_table(capsys):
    print_table({"click": MEASURES | {"by_domain": {}}}, Console(quiet=True))
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("width", "left_out"),
    [(120, ()), (93, ()), (92, ("loss",)), (80, ("loss", "closed")), (78, ("loss", "closed", "Bayes"))],
)
def test_a_narrow_table_leaves_out_what_others_make_up_for_and_cuts_no_number(width, left_out):
    console = Console(file=io.StringIO(), force_terminal=True, color_system=None, width=width)
    measures = MEASURES | {"num_examples": 1_234_567, "num_positives": 40_123}
    print_table({"conversion": measures | {"by_domain": {"a_very_long_domain": measures, "reels": measures}}}, console)
    lines = console.file.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    headings = " ".join(lines).split()
    assert {name for name in ("loss", "closed", "Bayes", "bration", "posi-") if name not in headings} == set(left_out)
    (row,) = (line for line in lines if "a_very" in line)
    texts = ["1,234,567", "40,123", *NUMBERS[2:]]
    spare = {"loss": "0.1235", "closed": "75%", "Bayes": "0.7500"}
    assert row.split()[1:] == [text for text in texts if text not in [spare[name] for name in left_out]]


def test_table_without_known_truth_has_no_bayes_columns():
    console = plain_console()
    print_table({"click": MEASURES | {"bayes_ne": None, "closed": None, "by_domain": {"only": MEASURES}}}, console)
    assert "Bayes" not in console.file.getvalue() and "closed" not in console.file.getvalue()
    assert "only" not in console.file.getvalue(), "one domain says nothing that the task does not"


def test_an_evaluation_in_one_line():
    result = {"click": MEASURES | {"by_domain": {"feed": MEASURES}}, "buy": MEASURES | {"auc": None, "by_domain": {}}}
    line = "valid after 12,800 examples:  click NE 0.8123, AUC 0.7654  buy NE 0.8123, AUC -"
    assert evaluation_line("valid", 12800, result) == line

"""One command line for all commands: any order, any spelling, help for any model, one sentence for what is wrong."""

import dataclasses
import pathlib
import re
import subprocess
import sys

import pytest

from gem_jax import cli, compare, train
from gem_jax.cli import Command, read, run
from gem_jax.config import ConfigError
from gem_jax.errors import UserError
from gem_jax.scale import __main__ as scale

ROOT = pathlib.Path(__file__).parents[1]
DEBUG = str(ROOT / "configs" / "gem_debug.py")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Of a command in this test."""

    fast: bool = False
    """Whether it hurries."""
    seeds: tuple[int, ...] = (0,)
    """Several numbers."""
    out_file: str | None = None
    """Where it writes."""


COMMAND = Command(name="gem_jax.test", about="Does nothing.", options=Options)


@pytest.mark.parametrize(
    "arguments",
    [
        [DEBUG, "train.seed=3", "--fast", "--seeds", "1,2", "--out-file=x.json"],
        ["--fast", "--train.seed=3", "--seeds=1,2", DEBUG, "--out_file", "x.json"],
        ["--seeds", "1,2", "--out-file", "x.json", "--train.seed", "3", DEBUG, "--fast"],
    ],
)
def test_any_order_and_spelling(arguments):
    request = read(COMMAND, arguments)
    assert request.config.train.seed == 3 and request.overrides == ("train.seed=3",) and request.paths == (DEBUG,)
    assert request.options == Options(fast=True, seeds=(1, 2), out_file="x.json")


def test_a_variant_is_a_config():
    assert read(COMMAND, [f"{DEBUG}:no_pyramid"]).config.name == "no_pyramid"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name a config first, e.g. python -m gem_jax.test configs/gem_debug.py"),
        (["train.seed=3"], "name a config first"),
        (
            [DEBUG, "--fsat"],
            "unknown flag --fsat; did you mean --fast\\? there are --fast, --seeds, --out-file, --help",
        ),
        ([DEBUG, "--seeds"], "--seeds needs a value: --seeds=<value>"),
        ([DEBUG, "--seeds", "--fast"], "--seeds needs a value"),
        ([DEBUG, "--seeds", "one"], "--seeds cannot be 'one'; it takes int values with commas between them"),
        ([DEBUG, "--train.sed=3"], "unknown config field 'train.sed'; did you mean train.seed\\? train has"),
        ([DEBUG, "--learning-rate=3"], "unknown flag --learning-rate; did you mean optimizer.learning_rate=<value>\\?"),
        ([DEBUG, "--zebra=3"], "unknown flag --zebra; there are --fast"),
        ([DEBUG, DEBUG], "is a second config; gem_jax.test takes one"),
        (["none.py"], "config file 'none.py' does not exist"),
    ],
)
def test_what_is_wrong(arguments, message):
    with pytest.raises(ConfigError, match=message) as error:
        read(COMMAND, arguments)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("module", [train, compare, scale])
def test_help_of_every_command(module, capsys):
    with pytest.raises(SystemExit) as stop:
        module.main(["--help"])
    assert stop.value.code == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "--resume" in out or "--json" in out
    with pytest.raises(SystemExit):
        module.main([DEBUG, "train.seed=5", "--help"])
    out = " ".join(capsys.readouterr().out.split())
    assert "--train.eval_every" in out and "Peak learning rate of the dense" in out and "(default: 5)" in out
    assert "--model.cross_layer" in out and "--runs_dir" in out


COMMANDS = [
    ".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__main__")
    for p in sorted((ROOT / "gem_jax").rglob("*.py"))
    if 'if __name__ == "__main__":' in p.read_text() or p.name == "__main__.py"
]


@pytest.mark.parametrize("command", COMMANDS)
def test_help_as_a_user_asks_for_it(command):
    done = subprocess.run([sys.executable, "-m", command, "--help"], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "") and command in done.stdout


def test_every_field_is_taken_as_help_prints_it(capsys):
    with pytest.raises(SystemExit):
        train.main([DEBUG, "--help"])
    printed = set(re.findall(r"--([a-z_]+\.[a-z_.]+) ", capsys.readouterr().out))
    assert {"train.epochs", "optimizer.learning_rate", "train.keep_best"} <= printed
    for field in printed:
        try:
            read(COMMAND, [DEBUG, f"--{field}=1"])
        except ConfigError as error:
            assert "unknown" not in str(error), error


HEAVY = ("grain", "orbax", "tensorboardX", "pyarrow", "polars", "pandas", "fsspec")
"""What takes a tenth of a second or more to import, and is of use only where data are read or a run is written."""


@pytest.mark.parametrize(
    "code",
    [
        "import gem_jax.train",
        "import gem_jax.compare",
        f"from gem_jax.cli import read; from gem_jax.train import COMMAND; read(COMMAND, [{DEBUG!r}, '--help'])",
    ],
    ids=["train", "compare", "help"],
)
def test_start_up_imports_nothing_heavy(code):
    """Guarded by what is imported: times depend on the machine."""
    ending = f"import sys; print('heavy:', *[m for m in {HEAVY!r} if m in sys.modules])"
    script = f"try:\n    {code}\nexcept SystemExit: pass\n{ending}"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.splitlines()[-1] == "heavy:", (done.stdout[-300:], done.stderr)


OWN = """
import dataclasses
from gem_jax.config import load

@dataclasses.dataclass(frozen=True)
class MyModel:
    \"\"\"A model of one's own.\"\"\"

    embedding_dim: int = 4
    \"\"\"Width of the tables.\"\"\"
    num_wheels: int = 3
    \"\"\"How many wheels it has.\"\"\"

    def build(self, schema, *, policy, rngs):
        raise NotImplementedError

def get_config():
    return load({debug!r}).replace(model=MyModel())
"""


def test_help_of_a_model_of_ones_own(tmp_path, capsys):
    path = tmp_path / "mine.py"
    path.write_text(OWN.format(debug=DEBUG))
    with pytest.raises(SystemExit) as stop:
        train.main([str(path), "model.num_wheels=5", "--help"])
    assert stop.value.code == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "--model.num_wheels" in out and "How many wheels it has" in out and "(default: 5)" in out


def test_users_errors_are_one_line_and_bugs_keep_their_traceback(capsys, monkeypatch):
    def wrong(_):
        raise UserError("the wheel\nis square; make it round")

    monkeypatch.delenv("GEM_TRACEBACK", raising=False)
    assert run(COMMAND, [DEBUG], wrong) == 2
    assert capsys.readouterr().err == "error: the wheel is square; make it round\n"
    for bug in (ValueError, OSError, TypeError):

        def broken(_, bug=bug):
            raise bug("ours")

        with pytest.raises(bug, match="ours"):
            run(COMMAND, [DEBUG], broken)

    def interrupted(_):
        raise KeyboardInterrupt

    assert run(COMMAND, [DEBUG], interrupted) == 130 and capsys.readouterr().err.startswith("interrupted: ")
    monkeypatch.setenv("GEM_TRACEBACK", "1")
    with pytest.raises(UserError):
        run(COMMAND, [DEBUG], wrong)
    assert run(COMMAND, [DEBUG], lambda request: cli.run(COMMAND, [DEBUG], lambda _: 7)) == 7

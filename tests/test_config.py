"""Loading and overriding configs: every shipped config, and every way to get one wrong."""

import json
import pathlib

import pytest

from gem_jax.config import ConfigError, from_command_line, load, override

CONFIGS = sorted((pathlib.Path(__file__).parents[1] / "configs").rglob("*.py"))
DEBUG = pathlib.Path(__file__).parents[1] / "configs" / "gem_debug.py"


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_every_config_loads_and_says_how_to_run_it(path):
    config = load(path)
    assert json.loads(json.dumps(config.to_dict()))["kind"] == "Config"
    assert f"python -m gem_jax.train configs/{path.relative_to(DEBUG.parent)}" in path.read_text()


def test_overrides_reach_their_fields():
    config = load(
        DEBUG,
        [
            "train.seed=7",
            "model.fmb_hidden=32,16",
            "model.window=none".replace("none", "None"),
            "batch.tokens.organic=4096",
            "train.task_weights.conversion=0.5",
            "train.shuffle=True",
            "model.levels.1.recent=4",
        ],
    )
    assert config.train.seed == 7
    assert config.model.fmb_hidden == (32, 16)
    assert config.model.window is None
    assert config.batch.tokens["organic"] == 4096
    assert config.train.task_weights == {"conversion": 0.5}
    assert config.train.shuffle is True
    assert config.model.levels[1].recent == 4
    assert load(DEBUG).train.seed == 0


@pytest.mark.parametrize(
    ("assignments", "message"),
    [
        (["train.sed=1"], "unknown config field 'train.sed'; train has .*seed"),
        (["trian.seed=1"], "unknown config field 'trian.seed'; the config has name"),
        (["train.seed=one"], "config field 'train.seed' cannot be 'one'; it takes int"),
        (["train.seed"], "is not an override; write field=value"),
        (["train.task_weights.click=much"], "'train.task_weights.click' cannot be 'much'; give a number"),
        (["optimizer.learning_rate=-1"], "learning_rate"),
    ],
)
def test_wrong_overrides(assignments, message):
    with pytest.raises(ValueError, match=message):
        override(load(DEBUG), assignments)


def test_wrong_files(tmp_path):
    with pytest.raises(ConfigError, match="does not exist"):
        load(tmp_path / "absent.py")
    (tmp_path / "empty.py").write_text("")
    with pytest.raises(ConfigError, match="get_config"):
        load(tmp_path / "empty.py")
    (tmp_path / "config.yaml").write_text("")
    with pytest.raises(ConfigError, match="not a Python file"):
        load(tmp_path / "config.yaml")


def test_command_line(capsys):
    path, config, resume = from_command_line([str(DEBUG), "train.seed=3", "--resume"])
    assert (path, config.train.seed, resume) == (DEBUG, 3, True)
    with pytest.raises(ConfigError, match="name a config first"):
        from_command_line(["train.seed=3"])
    with pytest.raises(ConfigError, match="unknown flag --restart"):
        from_command_line([str(DEBUG), "--restart"])
    with pytest.raises(SystemExit) as stop:
        from_command_line(["--help"])
    assert stop.value.code == 0
    out = capsys.readouterr().out
    assert "--train.eval_every" in out and "Peak learning rate of the dense" in " ".join(out.split())

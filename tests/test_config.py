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
        (["train.task_weights.click=much"], "'train.task_weights.click' cannot be 'much'; it takes float"),
        (["batch.tokens.organic=1.5"], "'batch.tokens.organic' cannot be '1.5'; it takes int"),
        (["train=1"], "config field 'train' is a group; set what is in it, as train.<field>=<value>"),
        (["optimizer.learning_rate=-1"], "^optimizer.learning_rate=-1.0 must be positive$"),
        (["train.epochs=0"], "^train.epochs=0.0 must be positive$"),
        (["train.seed=-1"], "^train.seed=-1 must not be negative$"),
        (["name="], "^name='' must be the name of a folder"),
    ],
)
def test_wrong_overrides(assignments, message, capfd):
    with pytest.raises(ConfigError, match=message) as error:
        override(load(DEBUG), assignments)
    assert "\n" not in str(error.value)
    assert capfd.readouterr() == ("", "")


def test_overrides_that_only_fit_together():
    wukong = load(DEBUG.parent / "baselines" / "wukong.py")
    num_layers = len(wukong.model.fmb_tokens)
    values = ",".join(["4"] * (num_layers + 1))
    assert override(wukong, [f"model.fmb_tokens={values}", f"model.lcb_tokens={values}"]).model.lcb_tokens[-1] == 4
    with pytest.raises(ConfigError, match="one entry per layer"):
        override(wukong, [f"model.fmb_tokens={values}"])


def test_wrong_files(tmp_path):
    with pytest.raises(ConfigError, match="does not exist"):
        load(tmp_path / "absent.py")
    (tmp_path / "empty.py").write_text("")
    with pytest.raises(ConfigError, match="get_config"):
        load(tmp_path / "empty.py")
    (tmp_path / "broken.py").write_text("def get_config():\n    return 1 / 0\n")
    with pytest.raises(ConfigError, match="broken.py' fails with ZeroDivisionError: division by zero"):
        load(tmp_path / "broken.py")
    (tmp_path / "config.yaml").write_text("")
    with pytest.raises(ConfigError, match="not a Python file"):
        load(tmp_path / "config.yaml")


def test_another_kind_of_data_has_its_own_fields_and_help(tmp_path, capsys):
    path = tmp_path / "sasrec.py"
    path.write_text(
        "from gem_jax.config import load\n"
        "from gem_jax.data.movielens import SasRecConfig\n\n"
        "def get_config():\n"
        f"    return load({str(DEBUG)!r}).replace(data=SasRecConfig(path='ml1m.txt'))\n"
    )
    assert load(path, ["data.negative_seed=3"]).data.negative_seed == 3
    with pytest.raises(ConfigError, match="unknown config field 'data.seed'; data has path, max_len, negative_seed"):
        load(path, ["data.seed=3"])
    with pytest.raises(SystemExit):
        from_command_line([str(path), "--help"])
    assert "--data.negative_seed" in capsys.readouterr().out


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

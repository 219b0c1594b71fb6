"""Loading and overriding configs: every shipped config and variant, and every way to get one wrong."""

import dataclasses
import json
import pathlib
import subprocess
import sys
import typing

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gem_jax import train
from gem_jax.config import Config, ConfigError, TrainConfig, from_dict, load, override, to_dict, variants
from gem_jax.config import _module_of as module_of
from gem_jax.data.parquet import ParquetConfig
from gem_jax.data.synthetic import SyntheticConfig
from gem_jax.errors import UserError
from gem_jax.models.gem import GemConfig, Level
from gem_jax.parallel.mesh import MeshConfig
from gem_jax.precision.policy import Policy
from gem_jax.training.objective import MultiTaskConfig
from gem_jax.training.optimizer import OptimizerConfig
from tests.gem_jax.data.random_examples import SCHEMA

ROOT = pathlib.Path(__file__).parents[1]
FILES = sorted(f for f in (ROOT / "configs").rglob("*.py") if f.parent.name != "transfer")
DEBUG = ROOT / "configs" / "gem_debug.py"
ALL = [f"{file}{name}" for file in FILES for name in ("", *(f":{v}" for v in variants(module_of(file))))]


@pytest.mark.parametrize("path", ALL, ids=lambda p: p.removeprefix(str(ROOT)))
def test_every_config_loads_and_comes_back_from_json(path):
    config = load(path)
    tree = json.loads(json.dumps(to_dict(config), allow_nan=False))
    assert tree["kind"] == "Config" and from_dict(tree) == config
    file = pathlib.Path(path.partition(":")[0])
    named = file.relative_to(ROOT)
    assert any(f"python -m gem_jax.{command} {named}" in file.read_text() for command in ("train", "bench step"))


def test_variants_differ_from_the_config_in_name_and_model_alone():
    base, names = load(DEBUG), variants(module_of(DEBUG))
    assert {"no_cross_layer", "no_pyramid", "no_domains", "no_sequences", "dlrm", "hstu", "wukong"} <= set(names)
    found = [load(f"{DEBUG}:{name}") for name in names]
    assert len({config.name for config in [base, *found]}) == len(names) + 1
    for config in found:
        assert config.model != base.model
        assert config.replace(name=base.name, model=base.model) == base


def test_overrides_reach_their_fields():
    config = load(
        DEBUG,
        [
            "train.seed=7",
            "train.epochs=2",
            "model.fmb_hidden=32,16",
            "model.window=None",
            "batch.tokens.organic=4096",
            "objective.task_weights.conversion=0.5",
            "train.shuffle=True",
            "model.levels.1.recent=4",
            "precision.recompute=norm,activation",
            "optimizer.group_rates.dense=0.5",
        ],
    )
    assert (config.train.seed, config.train.epochs, config.train.shuffle) == (7, 2, True)
    assert config.model.fmb_hidden == (32, 16)
    assert config.model.window is None
    assert config.batch.tokens["organic"] == 4096
    assert config.objective.task_weights == {"conversion": 0.5}
    assert config.model.levels[1].recent == 4
    assert config.precision.recompute == ("norm", "activation")
    assert config.optimizer.group_rates == {"dense": 0.5}
    assert load(DEBUG).train.seed == 0


@pytest.mark.parametrize(
    ("assignments", "message"),
    [
        (["train.sed=1"], "unknown config field 'train.sed'; did you mean train.seed\\? train has .*seed"),
        (["trian.seed=1"], "unknown config field 'trian.seed'; did you mean train\\? the config has name"),
        (["train.zebra=1"], "unknown config field 'train.zebra'; train has epochs"),
        (["name.first=1"], "unknown config field 'name.first'; name has no fields"),
        (["train.seed=one"], "config field 'train.seed' cannot be 'one'; it takes int"),
        (["train.seed"], "is not an override; write field=value"),
        (["objective.task_weights.click=much"], "'objective.task_weights.click' cannot be 'much'; it takes float"),
        (["batch.tokens.organic=1.5"], "'batch.tokens.organic' cannot be '1.5'; it takes int"),
        (["train=1"], "config field 'train' is a group; set what is in it, as train.<field>=<value>"),
        (["optimizer.learning_rate=-1"], "^optimizer.learning_rate=-1.0 must be positive$"),
        (["optimizer.learning_rate=nan"], "^optimizer.learning_rate=nan must be positive$"),
        (["optimizer.learning_rate=inf"], "^optimizer.learning_rate=inf must be a finite number$"),
        (["model.dropout=nan"], "^model.dropout=nan must be a finite number$"),
        (["objective.task_weights.click=inf"], "^objective.task_weights.click=inf must be a finite number$"),
        (["train.epochs=0"], "^train.epochs=0(.0)? must be positive$"),
        (["train.epochs=nan"], "^train.epochs=nan must be positive$"),
        (["train.epochs=inf"], "^train.epochs=inf must be a finite number$"),
        (["train.seed=-1"], r"^train.seed=-1 must lie in \[0, 2\^32\)$"),
        (["train.seed=4294967296"], r"^train.seed=4294967296 must lie in \[0, 2\^32\)$"),
        ([f"train.eval_every={2**63}"], "^train.eval_every=9223372036854775808 must be a number of at most 64 bits$"),
        ([f"data.train_examples={-(2**70)}"], "train_examples=-1180591620717411303424 "),
        (
            ["model.fmb_hidden=32", "model.fmb_hidden.0=16"],
            "'model.fmb_hidden' and 'model.fmb_hidden.0' cannot both be set",
        ),
        ([f"name={'n' * 201}"], "^name='nnnnnnnnnnnnnnnnnnnn...' is too long for a folder; use at most 200 bytes$"),
        (["checkpoint.minutes=0"], "^checkpoint.minutes=0.0 must be positive$"),
        (["precision.recompute=everything"], "precision.recompute names 'everything'; the tags are norm"),
        *(([f"name={name}"], "^name=.* must be the name of a folder") for name in ("", ".", "..", "a/b", " a")),
    ],
)
def test_wrong_overrides(assignments, message, capfd):
    with pytest.raises(ConfigError, match=message) as error:
        override(load(DEBUG), assignments)
    assert "\n" not in str(error.value)
    assert capfd.readouterr() == ("", "")


def test_overrides_that_only_fit_together():
    wukong = load(f"{DEBUG}:wukong")
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
    with pytest.raises(ConfigError, match="empty.py' has no variant 'small'; it has none"):
        load(f"{tmp_path / 'empty.py'}:small")
    with pytest.raises(ConfigError, match="gem_debug.py' has no variant 'no_piramid'; it has .*no_pyramid"):
        load(f"{DEBUG}:no_piramid")
    (tmp_path / "silent.py").write_text(
        "from typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    from elsewhere import Thing\n"
        "from gem_jax.config import Config, load\n\n"
        f"def get_config():\n    return load({str(DEBUG)!r})\n\n"
        "def helper(x: 'Thing') -> 'Thing':\n    return x\n\n"
        "def small() -> 'Config':\n    return get_config().replace(name='small')\n\n"
        "def large():\n    return get_config()\n"
    )
    assert load(tmp_path / "silent.py") == load(DEBUG) and load(f"{tmp_path / 'silent.py'}:small").name == "small"
    with pytest.raises(
        ConfigError, match=r"no variant 'large' \(a variant is a function that says -> Config\); it has small"
    ):
        load(f"{tmp_path / 'silent.py'}:large")
    (tmp_path / "broken.py").write_text("def get_config():\n    return 1 / 0\n")
    with pytest.raises(ConfigError, match="broken.py' fails with ZeroDivisionError: division by zero"):
        load(tmp_path / "broken.py")
    (tmp_path / "config.yaml").write_text("")
    with pytest.raises(ConfigError, match="not a Python file"):
        load(tmp_path / "config.yaml")


def test_another_kind_of_data_has_its_own_fields(tmp_path):
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


floats = st.floats(min_value=1e-6, max_value=1e6)
names = st.text("abcdefgh_", min_size=1, max_size=8)
maybe = st.none() | st.integers(1, 9)
values = st.fixed_dictionaries(
    dict(
        name=names,
        data=st.sampled_from([SyntheticConfig(seed=3), ParquetConfig(path="a b", columns=SCHEMA)]),
        model=st.fixed_dictionaries(
            dict(
                fmb_hidden=st.lists(st.integers(1, 64), max_size=3).map(tuple),
                levels=st.lists(maybe, max_size=3).map(tuple),
                window=maybe,
                cross_layer=st.booleans(),
                dropout=st.floats(0, 0.9),
            )
        ),
        task_weights=st.dictionaries(names, floats, max_size=3),
        learning_rate=floats,
        epochs=st.integers(1, 9) | floats,
        eval_every=maybe,
        recompute=st.sampled_from([(), ("norm",), ("norm", "attention")]),
        shard=maybe,
    )
)


def float_fields(node, hint, path="") -> list[str]:
    """Every field of the tree that takes a float, dotted; of a dict of floats an entry."""
    if dataclasses.is_dataclass(node):
        hints = typing.get_type_hints(type(node))
        return [
            name
            for f in dataclasses.fields(node)
            for name in float_fields(getattr(node, f.name), hints[f.name], f"{path}.{f.name}" if path else f.name)
        ]
    if typing.get_origin(hint) is dict:
        return [f"{path}.click"] if typing.get_args(hint)[1] is float else []
    return [path] if hint is float or float in typing.get_args(hint) else []


FLOATS = float_fields(load(DEBUG), Config)


def test_the_float_fields_are_found():
    assert {"train.epochs", "optimizer.learning_rate", "optimizer.group_rates.click", "model.dropout"} <= set(FLOATS)
    assert len(FLOATS) > 12


@pytest.mark.parametrize("field", FLOATS)
def test_no_float_may_be_nan_or_infinite(field, tmp_path, monkeypatch, capsys):
    """On the command line, of any field: one sentence, and no run folder."""
    monkeypatch.delenv("GEM_TRACEBACK", raising=False)
    for value in ("nan", "inf", "-inf"):
        assert train.main([str(DEBUG), f"{field}={value}", f"runs_dir={tmp_path / 'runs'}"]) == 2
        out, err = capsys.readouterr()
        assert out == "" and err.startswith("error: ") and err.count("\n") == 1, err
        assert field.rpartition(".")[2] in err or field in err, err
    assert not (tmp_path / "runs").exists()


@settings(max_examples=60, deadline=None)
@given(given=values)
def test_any_config_comes_back_from_json(given):
    levels = tuple(Level(recent=recent) for recent in given["model"]["levels"])
    config = Config(
        name=given["name"],
        data=given["data"],
        model=GemConfig(**given["model"] | {"levels": levels}),
        batch=load(DEBUG).batch,
        objective=MultiTaskConfig(task_weights=given["task_weights"]),
        optimizer=OptimizerConfig(learning_rate=given["learning_rate"]),
        train=TrainConfig(epochs=given["epochs"], eval_every=given["eval_every"]),
        precision=Policy(recompute=given["recompute"]),
        mesh=MeshConfig(shard=given["shard"]),
    )
    assert from_dict(json.loads(json.dumps(to_dict(config), allow_nan=False))) == config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d["model"].update(kind="Strange"), "^model is a 'Strange', which gem_jax does not have$"),
        (
            lambda d: d["model"].update(kind="Mine", defined_in="my.py"),
            "^model is a 'Mine', which gem_jax does not have; it is defined in my.py$",
        ),
        (lambda d: d["train"].update(sed=1), "^unknown field 'sed' of train; TrainConfig has epochs"),
        (lambda d: d.pop("data"), "^field 'data' of the config is missing$"),
        (lambda d: d["model"].pop("kind"), "^model does not say its "),
        (
            lambda d: d["model"].update(kind="DLRMConfig", defined_in="my.py"),  # one of gem_jax is called so too
            "^model is a 'DLRMConfig', which gem_jax does not have; it is defined in my.py$",
        ),
        (lambda d: d["train"].update(epochs=-1), "^train.epochs=-1 must be positive$"),
    ],
)
def test_wrong_trees(change, message):
    tree = to_dict(load(DEBUG))
    change(tree)
    with pytest.raises(ConfigError, match=message):
        from_dict(tree)


def test_a_dicts_keys_are_the_users():
    config = override(load(DEBUG), ["objective.task_weights.kind=2", "optimizer.group_rates.defined_in=3"])
    assert from_dict(to_dict(config)) == config


WRONG = """
import dataclasses
from gem_jax.config import ConfigError, Policy, load

class Bare:
    pass

@dataclasses.dataclass
class Melting:
    def build(self, schema): ...

@dataclasses.dataclass(frozen=True)
class Idle:
    pass

def attempt(**changes):
    try:
        load({debug!r}).replace(**changes)
    except ConfigError as error:
        print(error)

attempt(model=Bare())
attempt(model=Melting())
attempt(model=Melting)
attempt(model=Idle())
attempt(data=Idle())
attempt(objective=None)
attempt(train=None)
attempt(mesh=Policy())
"""


def test_what_a_config_cannot_hold():
    # In a process of its own: here types are enforced, which a user's Python does not do.
    command = [sys.executable, "-c", WRONG.format(debug=str(DEBUG))]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.splitlines() == [
        "model is a 'Bare'; make it an instance of a frozen dataclass",
        "model is a 'Melting'; make it an instance of a frozen dataclass",
        "model is a 'type'; make it an instance of a frozen dataclass",
        "model is a 'Idle', which has no method build(); add it",
        "data is a 'Idle', which has no method schema(); add it",
        "objective is a 'NoneType'; make it an instance of a frozen dataclass",
        "train is a 'NoneType'; it takes a TrainConfig",
        "mesh is a 'Policy'; it takes a MeshConfig",
    ], done.stderr


def test_a_field_that_a_tree_lacks_keeps_its_default():
    tree = to_dict(load(DEBUG))
    del tree["checkpoint"], tree["train"]["eval_every"]
    assert from_dict(tree) == load(DEBUG)


@dataclasses.dataclass(frozen=True, kw_only=True)
class OwnModel:
    embedding_dim: int = 4
    sizes: tuple[int, ...] = (3,)

    def build(self, schema, *, policy, rngs):
        raise AssertionError("not built")


def test_a_class_of_the_users_own_says_where_it_is_defined():
    config = load(DEBUG).replace(model=OwnModel(sizes=(5, 6)))
    tree = to_dict(config)
    assert tree["model"]["kind"] == "OwnModel" and tree["model"]["defined_in"] == __file__
    assert from_dict(tree, classes=(OwnModel,)) == config
    with pytest.raises(
        UserError, match="model is a 'OwnModel', which gem_jax does not have; it is defined in .*test_config.py"
    ):
        from_dict(tree)

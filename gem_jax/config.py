"""One tree of frozen dataclasses says everything about a run; configs/*.py build it, the command line overrides it.

python -m gem_jax.train configs/gem_debug.py train.seed=1 batch.examples=256
"""

import dataclasses
import importlib.util
import json
import pathlib
from typing import Any, Literal

import tyro

from gem_jax.data.criteo import CriteoConfig
from gem_jax.data.frappe import FrappeConfig
from gem_jax.data.loader import BatchConfig
from gem_jax.data.movielens import MovieLensConfig
from gem_jax.data.parquet import ParquetConfig
from gem_jax.data.synthetic import SyntheticConfig
from gem_jax.models import ModelConfig
from gem_jax.training.optimizer import OptimizerConfig

type DataConfig = SyntheticConfig | ParquetConfig | CriteoConfig | FrappeConfig | MovieLensConfig


class ConfigError(ValueError):
    """The user's configuration is wrong; the message is one sentence naming the field and what to change."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    epochs: float = 1.0
    """Passes over the training examples; a fraction is allowed."""
    eval_every: int | None = None
    """Evaluate each time this many more examples were trained on; None evaluates only at the end."""
    eval_examples: int | None = None
    """Evaluate on at most this many examples; None takes the whole split."""
    checkpoint_every: int | None = None
    """Save each time this many more examples were trained on; None saves only at the end and on interruption."""
    task_weights: dict[str, float] = dataclasses.field(default_factory=dict)
    """Weight of a task's loss; 1 for a task not named."""
    domain_weights: dict[str, float] = dataclasses.field(default_factory=dict)
    """Weight of a domain's examples in the loss; 1 for a domain not named."""
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    """What matrix products compute in; parameters, reductions and losses stay float32."""
    seed: int = 0
    """Seeds parameters, dropout and the order of examples."""
    shuffle: bool = True
    """Shuffle the training examples; off keeps the stream's order in time."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    name: str
    """Name of the run: its folder is <runs_dir>/<name>."""
    data: DataConfig
    model: ModelConfig
    batch: BatchConfig
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    train: TrainConfig = dataclasses.field(default_factory=TrainConfig)
    runs_dir: str = "runs"
    """Folder that holds the runs."""

    def replace(self, **changes: Any) -> "Config":
        return dataclasses.replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """The tree as JSON-able dicts, with each dataclass's name under "kind"."""
        return _to_dict(self)


def _to_dict(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: _to_dict(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {"kind": type(value).__name__, **fields}
    if isinstance(value, tuple | list):
        return [_to_dict(v) for v in value]
    if isinstance(value, dict):
        return {k: _to_dict(v) for k, v in value.items()}
    return value


def from_command_line(arguments: list[str]) -> tuple[pathlib.Path, Config, bool]:
    """`<config.py> [a.b=value ...] [--resume] [--help]` as (path, config, resume); --help prints all fields and exits.

    Raises:
      ConfigError: no config is named, or as `load` says.
    """
    flags = [a for a in arguments if a.startswith("-")]
    words = [a for a in arguments if not a.startswith("-")]
    unknown = set(flags) - {"--resume", "--help", "-h"}
    if unknown:
        raise ConfigError(f"unknown flag {sorted(unknown)[0]}; there are --resume and --help, and fields as a.b=value")
    wants_help = "--help" in flags or "-h" in flags
    if not words and wants_help:
        words = [str(pathlib.Path(__file__).parents[1] / "configs" / "gem_debug.py")]
    if not words or "=" in words[0]:
        raise ConfigError("name a config first, e.g. python -m gem_jax.train configs/gem_debug.py batch.examples=256")
    config = load(words[0], words[1:])
    if wants_help:
        _parse(config, ["--help"], quiet=False)
    return pathlib.Path(words[0]), config, "--resume" in flags


def load(path: str | pathlib.Path, overrides: list[str] | None = None) -> Config:
    """The config that `path`'s `get_config()` returns, with `a.b=value` overrides applied.

    Raises:
      ConfigError: no such file, no `get_config` in it, an unknown field, or a value that its field cannot take.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise ConfigError(f"config file '{path}' does not exist; name one of configs/*.py")
    spec = importlib.util.spec_from_file_location(f"gem_config_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"config file '{path}' is not a Python file; name one of configs/*.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, "get_config"):
        raise ConfigError(f"config file '{path}' has no function get_config(); add one that returns a Config")
    return override(module.get_config(), overrides or [])


def override(config: Config, assignments: list[str]) -> Config:
    """`config` with `a.b=value` assignments applied together, each checked against its field's type.

    A tuple's values are separated by commas; an entry of a dict is named like a field (`batch.tokens.clicks=4096`).

    Raises:
      ConfigError: an assignment names no field, or its field cannot take the value.
    """
    flags = []
    for assignment in assignments:
        name, equals, value = assignment.partition("=")
        if not equals:
            raise ConfigError(f"'{assignment}' is not an override; write field=value, e.g. batch.examples=256")
        parent, old = _find(config, name)
        if isinstance(parent, dict):
            config = _with_entry(config, name, _number(name, value))
            continue
        values = [v for v in value.split(",") if v] if isinstance(old, tuple) else [value]
        flag = [f"--{name}", *values]
        _parse_or_say(config, flag, name, value)
        flags += flag
    return _parse(config, flags) if flags else config


def _find(config: Config, name: str) -> tuple[Any, Any]:
    """The node that holds the field, and the field's value."""
    parent: Any = None
    node: Any = config
    path = ""
    for part in name.split("."):
        if isinstance(node, dict):
            return node, node.get(part)
        if isinstance(node, tuple) and part.isdecimal() and int(part) < len(node):
            parent, node = node, node[int(part)]
        elif dataclasses.is_dataclass(node) and part in (known := [f.name for f in dataclasses.fields(node)]):
            parent, node = node, getattr(node, part)
        else:
            fields = ", ".join(known) if dataclasses.is_dataclass(node) else "no fields"
            raise ConfigError(f"unknown config field '{name}'; {path or 'the config'} has {fields}")
        path = f"{path}.{part}" if path else part
    return parent, node


def _with_entry(config: Any, name: str, value: float) -> Any:
    """`config` with an entry of one of its dicts set."""
    first, _, rest = name.partition(".")
    if isinstance(config, dict):
        return {**config, name: value}
    return dataclasses.replace(config, **{first: _with_entry(getattr(config, first), rest, value)})


def _number(name: str, text: str) -> float:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError(f"config entry '{name}' cannot be '{text}'; give a number") from error


def _parse_or_say(config: Config, flag: list[str], name: str, value: str) -> None:
    try:
        _parse(config, flag)
    except SystemExit as error:
        node, _ = _find(config, name)
        field = name.rpartition(".")[2]
        wanted = next((f.type for f in dataclasses.fields(node) if f.name == field), "another type")
        wanted = wanted.__name__ if isinstance(wanted, type) else wanted
        raise ConfigError(f"config field '{name}' cannot be '{value}'; it takes {wanted}") from error


def _parse(config: Config, flags: list[str], *, quiet: bool = True) -> Config:
    return tyro.cli(
        Config,
        default=config,
        args=flags,
        prog="python -m gem_jax.train <config.py>",
        description="Fields of the config; change one with a.b=value, continue a run with --resume.",
        config=(tyro.conf.AvoidSubcommands, tyro.conf.FlagConversionOff),
        use_underscores=True,
        console_outputs=not quiet,
    )

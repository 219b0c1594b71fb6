"""One tree of frozen dataclasses says everything about a run; configs/*.py build it, the command line overrides it.

python -m gem_jax.train configs/gem_debug.py train.seed=1 batch.examples=256
"""

import contextlib
import dataclasses
import importlib.util
import io
import pathlib
import typing
from typing import Any, Literal

import tyro

from gem_jax.data.criteo import CriteoConfig
from gem_jax.data.frappe import FrappeConfig
from gem_jax.data.loader import BatchConfig
from gem_jax.data.movielens import MovieLensConfig, SasRecConfig
from gem_jax.data.parquet import ParquetConfig
from gem_jax.data.synthetic import SyntheticConfig
from gem_jax.embedding.sharded import TablesConfig
from gem_jax.models import ModelConfig
from gem_jax.parallel.mesh import MeshConfig
from gem_jax.training.optimizer import OptimizerConfig

type DataConfig = SyntheticConfig | ParquetConfig | CriteoConfig | FrappeConfig | MovieLensConfig | SasRecConfig

_TYRO_CONFIG = (tyro.conf.AvoidSubcommands, tyro.conf.FlagConversionOff)


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

    def __post_init__(self):
        for name in ("epochs", "eval_every", "eval_examples", "checkpoint_every"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ConfigError(f"train.{name}={value} must be positive")
        if self.seed < 0:
            raise ConfigError(f"train.seed={self.seed} must not be negative")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    name: str
    """Name of the run: its folder is <runs_dir>/<name>."""
    data: DataConfig
    model: ModelConfig
    batch: BatchConfig
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    train: TrainConfig = dataclasses.field(default_factory=TrainConfig)
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    tables: TablesConfig = dataclasses.field(default_factory=TablesConfig)
    runs_dir: str = "runs"
    """Folder that holds the runs."""

    def __post_init__(self):
        if not self.name or "/" in self.name:
            raise ConfigError(f"name='{self.name}' must be the name of a folder, without '/'")

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
        _print_help(config)
    return pathlib.Path(words[0]), config, "--resume" in flags


def load(path: str | pathlib.Path, overrides: list[str] | None = None) -> Config:
    """The config that `path`'s `get_config()` returns, with `a.b=value` overrides applied.

    Raises:
      ConfigError: no such file, one that fails or makes no config, an unknown field, or a value that its field cannot take.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise ConfigError(f"config file '{path}' does not exist; name one of configs/*.py")
    spec = importlib.util.spec_from_file_location(f"gem_config_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"config file '{path}' is not a Python file; name one of configs/*.py")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        config = module.get_config() if hasattr(module, "get_config") else None
    except ConfigError:
        raise
    except Exception as error:  # the file is the user's own program and may raise anything
        raise ConfigError(f"config file '{path}' fails with {type(error).__name__}: {error}; correct it") from error
    if not isinstance(config, Config):
        raise ConfigError(f"config file '{path}' has no function get_config() that returns a Config; add one")
    return override(config, overrides or [])


def override(config: Config, assignments: list[str]) -> Config:
    """`config` with `a.b=value` assignments applied together, each checked against its field's type.

    A tuple's values are separated by commas; an entry of a dict is named like a field (`batch.tokens.clicks=4096`).

    Raises:
      ConfigError: an assignment names no field, or its field cannot take the value.
    """
    changes = {}
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        if not equals:
            raise ConfigError(f"'{assignment}' is not an override; write field=value, e.g. batch.examples=256")
        changes[name] = _value(name, text, _type_of(config, name))
    try:
        return _changed(config, changes)
    except ValueError as error:  # a config's own check of its values
        raise ConfigError(str(error)) from error


def _type_of(config: Config, name: str) -> Any:
    """The annotated type of the field, or of the dict's or tuple's entry, that `name` leads to."""
    node: Any = config
    hint: Any = Config
    path = ""
    for part in name.split("."):
        if isinstance(node, dict):
            hint, node = typing.get_args(hint)[1], node.get(part)
        elif isinstance(node, tuple) and part.isdecimal() and int(part) < len(node):
            hint, node = typing.get_args(hint)[0], node[int(part)]
        elif dataclasses.is_dataclass(node) and part in (known := [f.name for f in dataclasses.fields(node)]):
            hint, node = typing.get_type_hints(type(node), include_extras=True)[part], getattr(node, part)
        else:
            fields = ", ".join(known) if dataclasses.is_dataclass(node) else "no fields"
            raise ConfigError(f"unknown config field '{name}'; {path or 'the config'} has {fields}")
        path = f"{path}.{part}" if path else part
    if dataclasses.is_dataclass(node) or isinstance(node, dict):
        raise ConfigError(f"config field '{name}' is a group; set what is in it, as {name}.<field>=<value>")
    return hint


def _value(name: str, text: str, hint: Any) -> Any:
    """`text` as a value of type `hint`."""
    words = [v for v in text.split(",") if v] if typing.get_origin(hint) is tuple else [text]
    holder = dataclasses.make_dataclass("Holder", [("value", hint)])
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # our own sentence takes the place of tyro's box
            return tyro.cli(holder, args=["--value", *words], config=_TYRO_CONFIG).value
    except SystemExit as error:
        wanted = hint.__name__ if isinstance(hint, type) else str(hint).removeprefix("typing.")
        raise ConfigError(f"config field '{name}' cannot be '{text}'; it takes {wanted}") from error


def _changed(node: Any, changes: dict[str, Any]) -> Any:
    """`node` with the values at the dotted names in `changes`; each node is made anew once, with all its changes."""
    if "" in changes:
        return changes[""]
    parts: dict[str, dict[str, Any]] = {}
    for name, value in changes.items():
        first, _, rest = name.partition(".")
        parts.setdefault(first, {})[rest] = value
    if isinstance(node, dict):
        return node | {key: _changed(node.get(key), inner) for key, inner in parts.items()}
    if isinstance(node, tuple):
        return tuple(_changed(x, parts[str(i)]) if str(i) in parts else x for i, x in enumerate(node))
    return dataclasses.replace(node, **{key: _changed(getattr(node, key), inner) for key, inner in parts.items()})


def _print_help(config: Config) -> None:
    """Prints every field with its meaning and its value in `config`, and exits."""
    tyro.cli(
        Config,
        default=config,
        args=["--help"],
        prog="python -m gem_jax.train <config.py>",
        description="Fields of the config; change one with a.b=value, continue a run with --resume.",
        config=_TYRO_CONFIG,
        use_underscores=True,
    )

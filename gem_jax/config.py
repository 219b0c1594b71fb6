"""One tree of frozen dataclasses says everything about a run; configs/*.py build it, the command line overrides it.

python -m gem_jax.train configs/gem_debug.py train.seed=1 batch.examples=256
python -m gem_jax.train configs/gem_debug.py:no_pyramid                        a variant: another function of the file
"""

import contextlib
import dataclasses
import difflib
import functools
import importlib.util
import inspect
import io
import math
import os
import pathlib
import sys
import types
import typing
from collections.abc import Callable, Sequence
from typing import Any

import tyro

from gem_jax.checkpoint.config import CheckpointConfig
from gem_jax.data.packing import BatchConfig
from gem_jax.data.source import DataConfig
from gem_jax.embedding.config import TablesConfig
from gem_jax.errors import UserError
from gem_jax.models.outputs import ModelConfig
from gem_jax.parallel.mesh import MeshConfig
from gem_jax.precision.policy import Policy
from gem_jax.training.config import TrainConfig
from gem_jax.training.objective import MultiTaskConfig, ObjectiveConfig
from gem_jax.training.optimizer import OptimizerConfig

TYRO = (tyro.conf.AvoidSubcommands, tyro.conf.FlagConversionOff)

ENTRY = "get_config"
"""The function of a config file that is called where no variant is named."""

_LONGEST_NAME = 200
"""Bytes of a run's name: file systems allow 255, and later runs of the same name get a number behind it."""


class ConfigError(UserError):
    """The user's configuration is wrong; the message is one sentence naming the field and what to change."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Everything about a run. The kinds of data, model and objective are open: any frozen dataclass with the right methods."""

    name: str
    """Name of the run: its folder is <runs_dir>/<name>."""
    data: DataConfig
    """Where examples come from."""
    model: ModelConfig
    """What scores them."""
    batch: BatchConfig
    """How many of them one device takes at a time."""
    objective: ObjectiveConfig = dataclasses.field(default_factory=MultiTaskConfig)
    """What is minimised."""
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    """How it is minimised."""
    train: TrainConfig = dataclasses.field(default_factory=TrainConfig)
    """For how long."""
    checkpoint: CheckpointConfig = dataclasses.field(default_factory=CheckpointConfig)
    """When it is saved."""
    precision: Policy = dataclasses.field(default_factory=Policy)
    """In which dtypes."""
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    """On which arrangement of devices."""
    tables: TablesConfig = dataclasses.field(default_factory=TablesConfig)
    """How embedding tables lie on them."""
    runs_dir: str = "runs"
    """Folder that holds the runs."""

    def __post_init__(self):
        if (
            not self.name.strip()
            or self.name != self.name.strip()
            or self.name in (".", "..")
            or any(c in "/\\" or not c.isprintable() for c in self.name)
        ):
            raise ConfigError(f"name={self.name!r} must be the name of a folder: without '/', and not '.' or '..'")
        if len(os.fsencode(self.name)) > _LONGEST_NAME:
            raise ConfigError(f"name='{self.name[:20]}...' is too long for a folder; use at most {_LONGEST_NAME} bytes")
        for field, methods in (("data", ("schema", "build")), ("model", ("build",)), ("objective", ("build",))):
            _check_kind(field, getattr(self, field), methods)
        for field, kind in typing.get_type_hints(Config).items():
            if dataclasses.is_dataclass(kind) and not isinstance(getattr(self, field), kind):
                raise ConfigError(f"{field} is a '{type(getattr(self, field)).__name__}'; it takes a {kind.__name__}")
        _check_numbers(self, "")

    def replace(self, **changes: Any) -> "Config":
        """A copy with other values of top-level fields."""
        return dataclasses.replace(self, **changes)


def _check_kind(field: str, value: Any, methods: tuple[str, ...]) -> None:
    """What a config file brings must be shown by --help and kept in config.json, and have what a run calls."""
    kind = type(value)
    if not dataclasses.is_dataclass(kind) or not getattr(kind, "__dataclass_params__").frozen:  # noqa: B009 (typed nowhere)
        raise ConfigError(f"{field} is a '{kind.__name__}'; make it an instance of a frozen dataclass")
    for name in methods:
        if not callable(getattr(value, name, None)):
            raise ConfigError(f"{field} is a '{kind.__name__}', which has no method {name}(); add it")


def _check_numbers(value: Any, field: str) -> None:
    """No number anywhere in the tree may be NaN or infinite, or have more than 64 bits: it would train in silence, end in JSON that
    nobody reads, or in an error of the compiler."""
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{field}={value} must be a finite number")
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise ConfigError(f"{field}={value} must be a number of at most 64 bits")
    for name, inner in _members(value):
        _check_numbers(inner, f"{field}.{name}" if field else str(name))


def _members(value: Any) -> list[tuple[Any, Any]]:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [(f.name, getattr(value, f.name)) for f in dataclasses.fields(value)]
    if isinstance(value, dict):
        return list(value.items())
    return list(enumerate(value)) if isinstance(value, tuple | list) else []


# --- as JSON --------------------------------------------------------------------------------------------------------------------


def to_dict(value: Any) -> Any:
    """A tree of dataclasses as JSON-able dicts, with each dataclass's name under "kind".

    A class that is not of gem_jax, such as a model of the user's own, also gets "defined_in": the file that defines it.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        kind = {"kind": type(value).__name__}
        if not type(value).__module__.startswith("gem_jax."):
            kind["defined_in"] = getattr(sys.modules.get(type(value).__module__), "__file__", type(value).__module__)
        return kind | {name: to_dict(inner) for name, inner in _members(value)}
    if isinstance(value, tuple | list):
        return [to_dict(v) for v in value]
    return {k: to_dict(v) for k, v in value.items()} if isinstance(value, dict) else value


def from_dict(tree: dict[str, Any], classes: Sequence[type] = ()) -> Any:
    """The inverse of `to_dict`; a field that the tree lacks keeps its default.

    Args:
      tree: of a dataclass, a `Config` for one.
      classes: of the user's own; only they stand for kinds with "defined_in", and only for those.

    Raises:
      ConfigError: a kind or field is unknown, or one without default is missing.
    """
    known = {(c.__name__, False): c for c in _kinds()} | {(c.__name__, True): c for c in classes}
    try:
        return _from_tree(tree, Any, known, "")
    except ConfigError:
        raise
    except UserError as error:  # a dataclass's own check of its values
        raise ConfigError(str(error)) from error


def _kinds() -> list[type]:
    """Every dataclass of gem_jax that a config may hold."""
    from gem_jax import models
    from gem_jax.bench.data import BenchDataConfig
    from gem_jax.data import criteo, frappe, movielens, parquet, schema, subset, synthetic
    from gem_jax.prepare.config import PreparedConfig
    from gem_jax.transfer.distill import DistillationConfig, DistilledConfig
    from gem_jax.transfer.joined import JoinedConfig
    from gem_jax.transfer.sharing import FrozenConfig

    modules = (criteo, frappe, movielens, parquet, schema, subset, synthetic, models, models.gem)
    found = [
        c for module in modules for c in vars(module).values() if isinstance(c, type) and dataclasses.is_dataclass(c)
    ]
    others = [BatchConfig, CheckpointConfig, Config, MeshConfig, MultiTaskConfig, OptimizerConfig, Policy, TablesConfig]
    of_transfer = [DistillationConfig, DistilledConfig, FrozenConfig, JoinedConfig]
    return [*found, *others, TrainConfig, BenchDataConfig, PreparedConfig, *of_transfer]


type _Known = dict[tuple[str, bool], type]
"""(name, whether it is the user's own) -> class."""


def _from_tree(value: Any, hint: Any, known: _Known, field: str) -> Any:
    if isinstance(value, dict) and typing.get_origin(hint) is dict:  # its keys are the user's, "kind" may be one
        inner = typing.get_args(hint)[1]
        return {k: _from_tree(v, inner, known, f"{field}.{k}") for k, v in value.items()}
    if isinstance(value, dict):
        return _dataclass_from(value, known, field)
    if isinstance(value, list):
        return tuple(_from_tree(v, Any, known, f"{field}.{i}") for i, v in enumerate(value))
    return value


def _dataclass_from(tree: dict[str, Any], known: _Known, field: str) -> Any:
    if "kind" not in tree:
        raise ConfigError(f'{field or "the config"} does not say its "kind"; give what to_dict made')
    kind = known.get((tree["kind"], "defined_in" in tree))
    if kind is None:
        where = f"; it is defined in {tree['defined_in']}" if "defined_in" in tree else ""
        raise ConfigError(f"{field or 'the config'} is a '{tree['kind']}', which gem_jax does not have{where}")
    hints = typing.get_type_hints(kind)
    names = [f.name for f in dataclasses.fields(kind)]
    given = {k: v for k, v in tree.items() if k not in ("kind", "defined_in")}
    for name in given:
        if name not in names:
            raise ConfigError(
                f"unknown field '{name}' of {field or 'the config'}; {kind.__name__} has {', '.join(names)}"
            )
    for f in dataclasses.fields(kind):
        has_default = f.default is not dataclasses.MISSING or f.default_factory is not dataclasses.MISSING
        if f.name not in given and not has_default:
            raise ConfigError(f"field '{f.name}' of {field or 'the config'} is missing")
    return kind(**{k: _from_tree(v, hints[k], known, f"{field}.{k}" if field else k) for k, v in given.items()})


# --- from files and command lines -------------------------------------------------------------------------------------------------


def load(path: str | pathlib.Path, overrides: list[str] | None = None, kind: type = Config) -> Any:
    """The config that a file's `get_config()` returns, or that another of its functions does, with `a.b=value` overrides applied.

    Args:
      path: a Python file, `configs/gem_debug.py`; with a function after a colon a variant, `configs/gem_debug.py:no_pyramid`.
      overrides: see `override`.
      kind: of the config, a frozen dataclass.

    Raises:
      ConfigError: no such file or variant, a file that fails or makes no config, an unknown field, or a value that its field
        cannot take.
    """
    file, _, variant = str(path).partition(":")
    module = _module_of(pathlib.Path(file))
    function = getattr(module, variant or ENTRY, None)
    names = variants(module, kind)
    if not callable(function) or (variant and variant not in names):
        if not variant:
            raise ConfigError(f"config file '{file}' has no function {ENTRY}() that returns a {kind.__name__}; add one")
        unsaid = f" (a variant is a function that says -> {kind.__name__})" if callable(function) else ""
        raise ConfigError(
            f"config file '{file}' has no variant '{variant}'{unsaid}; it has {', '.join(names) or 'none'}"
        )
    config = _called(function, file)
    if not isinstance(config, kind):
        raise ConfigError(
            f"config file '{file}' has no function {variant or ENTRY}() that returns a {kind.__name__}; add one"
        )
    return override(config, overrides or [])


def variants(module: types.ModuleType, kind: type = Config) -> list[str]:
    """Names of a config file's own public functions that say that they return a config of a kind, `get_config` left out."""
    return [
        name
        for name, value in vars(module).items()
        if isinstance(value, types.FunctionType)
        and value.__module__ == module.__name__
        and not name.startswith("_")
        and name != ENTRY
        and _says(inspect.get_annotations(value).get("return"), kind)
    ]


def _says(annotation: Any, kind: type) -> bool:
    """Whether it is the class or its name: annotations of the user's file are not evaluated, they may name what is not imported."""
    return annotation is kind or (isinstance(annotation, str) and annotation.split(".")[-1] == kind.__name__)


def _module_of(file: pathlib.Path) -> types.ModuleType:
    if not file.is_file():
        raise ConfigError(f"config file '{file}' does not exist; name one of configs/*.py")
    name = f"gem_config_{file.resolve().as_posix()}"
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise ConfigError(f"config file '{file}' is not a Python file; name one of configs/*.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where the types of the file's own dataclasses are looked up
    _called(functools.partial(spec.loader.exec_module, module), str(file))
    return module


def _called(function: Callable[[], Any], file: str) -> Any:
    """What a part of the user's file returns; whatever it raises is the user's to correct."""
    try:
        return function()
    except UserError as error:  # says itself what to change
        raise ConfigError(str(error)) from error
    except Exception as error:  # the file is the user's own program and may raise anything
        raise ConfigError(f"config file '{file}' fails with {type(error).__name__}: {error}; correct it") from error


def override[C](config: C, assignments: list[str]) -> C:
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
        changes[name] = parse_value(f"config field '{name}'", text, _type_of(config, name))
    for name in changes:
        for outer in changes:
            if name.startswith(f"{outer}."):
                raise ConfigError(f"'{outer}' and '{name}' cannot both be set; write the whole value of '{outer}'")
    try:
        return _changed(config, changes)
    except ConfigError:
        raise
    except UserError as error:  # a config's own check of its values
        raise ConfigError(str(error)) from error


def _type_of(config: Any, name: str) -> Any:
    """The annotated type of the field, or of the dict's or tuple's entry, that `name` leads to."""
    node: Any = config
    hint: Any = type(config)
    path = ""
    for part in name.split("."):
        if isinstance(node, dict):
            hint, node = typing.get_args(hint)[1], node.get(part)
        elif isinstance(node, tuple) and part.isdecimal() and int(part) < len(node):
            hint, node = typing.get_args(hint)[0], node[int(part)]
        elif dataclasses.is_dataclass(node) and part in (known := [f.name for f in dataclasses.fields(node)]):
            hint, node = typing.get_type_hints(type(node), include_extras=True)[part], getattr(node, part)
        else:
            fields = known if dataclasses.is_dataclass(node) else []
            close = difflib.get_close_matches(part, fields, n=1)
            hint = f"did you mean {f'{path}.' if path else ''}{close[0]}? " if close else ""
            raise ConfigError(
                f"unknown config field '{name}'; {hint}{path or 'the config'} has {', '.join(fields) or 'no fields'}"
            )
        path = f"{path}.{part}" if path else part
    if dataclasses.is_dataclass(node) or isinstance(node, dict):
        raise ConfigError(f"config field '{name}' is a group; set what is in it, as {name}.<field>=<value>")
    return hint


def parse_value(what: str, text: str, hint: Any) -> Any:
    """`text` as a value of type `hint`; a tuple's values are separated by commas.

    Raises:
      ConfigError: it is none; `what` says of which field.
    """
    words = [v for v in text.split(",") if v] if typing.get_origin(hint) is tuple else [text]
    holder = dataclasses.make_dataclass("Holder", [("value", hint)])
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # our own sentence takes the place of tyro's box
            return tyro.cli(holder, args=["--value", *words], config=TYRO).value
    except SystemExit as error:
        raise ConfigError(f"{what} cannot be '{text}'; it takes {_wanted(hint)}") from error


def _wanted(hint: Any) -> str:
    if typing.get_origin(hint) is tuple:
        return f"{_wanted(typing.get_args(hint)[0])} values with commas between them"
    return hint.__name__ if isinstance(hint, type) else str(hint).removeprefix("typing.")


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

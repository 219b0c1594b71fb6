"""The command line of every command: a config, its fields, the command's own options, in any order.

    python -m gem_jax.<command> <config.py[:variant]> [a.b=value | --a.b=value | --a.b value] [--option value] [--help]

A command declares its options as a frozen dataclass with a docstring under each field, and runs its body through `run`:

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Options:
        resume: bool = False
        \"\"\"Continue the newest run of that name.\"\"\"

    COMMAND = Command(name="gem_jax.train", about="Train a model.", options=Options)

    def main(arguments: list[str]) -> int:
        return run(COMMAND, arguments, lambda request: train(request.config, request.options))
"""

import ast
import dataclasses
import difflib
import functools
import inspect
import itertools
import sys
import textwrap
import typing
from collections.abc import Callable
from typing import Any

import tyro

from gem_jax.config import TYRO, Config, ConfigError, load, parse_value
from gem_jax.errors import exit_code


@dataclasses.dataclass(frozen=True, kw_only=True)
class Command:
    """A command, for its help and its errors.

    Attributes:
      name: as in `python -m <name>`.
      about: what it does, one line.
      options: its own options.
      config: the class of its configs.
      num_configs: how many configs it takes: "one", "some", or "none or some" where an option takes their place.
    """

    name: str
    about: str
    options: type
    config: type = Config
    num_configs: typing.Literal["one", "some", "none or some"] = "one"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """A command line, read.

    Attributes:
      paths: the configs' files, with their variants.
      configs: the configs, of the command's class, with the overrides applied.
      overrides: as a.b=value.
      options: of the command's class.
    """

    paths: tuple[str, ...]
    configs: tuple[Any, ...]
    overrides: tuple[str, ...]
    options: Any

    @property
    def config(self) -> Any:
        """The one config."""
        (config,) = self.configs
        return config


def run(command: Command, arguments: list[str], body: Callable[[Request], int]) -> int:
    """Reads the command line and runs the body; the exit code: the body's, 2 (the user's input is wrong), 130 (interrupted).

    What is the user's to change is one line on standard error; GEM_TRACEBACK=1 in the environment lets it through with its
    traceback. Any other exception is a bug, and keeps its own.
    """
    try:
        return exit_code(lambda: body(read(command, arguments)))
    except KeyboardInterrupt:
        print("interrupted: stopped at once; what the last checkpoint does not hold is lost", file=sys.stderr)
        return 130


def read(command: Command, arguments: list[str]) -> Request:
    """The command line as a request; --help prints and exits.

    Raises:
      ConfigError: a config, field or option is missing, unknown or wrong.
    """
    fields = {f.name: f for f in dataclasses.fields(command.options)}
    hints = typing.get_type_hints(command.options)
    paths: list[str] = []
    overrides: list[str] = []
    options: dict[str, Any] = {}
    wants_help = False
    words = list(arguments)
    while words:
        word = words.pop(0)
        if word in ("--help", "-h"):
            wants_help = True
        elif not word.startswith("-"):
            (overrides if "=" in word else paths).append(word)
        else:
            name, equals, text = word.lstrip("-").partition("=")
            option = name.replace("-", "_")
            if option in fields and hints[option] is bool and not equals:
                options[option] = True
            elif option not in fields and "." not in name and not _is_field(command, name):
                raise ConfigError(_unknown(word.partition("=")[0], list(fields)))
            else:
                if not equals:
                    if not words or words[0].startswith("--"):
                        raise ConfigError(f"{word} needs a value: {word}=<value>")
                    text = words.pop(0)
                if option in fields:
                    options[option] = parse_value(f"--{option.replace('_', '-')}", text, hints[option])
                else:
                    overrides.append(f"{name}={text}")
    if wants_help and not paths:
        _help(command, None)
    _check_count(command, paths)
    configs = tuple(load(path, overrides, command.config) for path in paths)
    if wants_help:
        _help(command, configs[0])
    return Request(paths=tuple(paths), configs=configs, overrides=tuple(overrides), options=command.options(**options))


def _is_field(command: Command, name: str) -> bool:
    return name in {f.name for f in dataclasses.fields(command.config)}


def _unknown(word: str, options: list[str]) -> str:
    shown = [f"--{name.replace('_', '-')}" for name in options] + ["--help"]
    close = difflib.get_close_matches(word, shown, n=1) or _fields_named(word.lstrip("-"))
    hint = f"did you mean {close[0]}? " if close else ""
    return f"unknown flag {word}; {hint}there are {', '.join(shown)}, and fields as a.b=value or --a.b=value"


def _fields_named(word: str) -> list[str]:
    """Fields of a config's groups with this last name or nearly so, dotted."""
    groups = typing.get_type_hints(Config)
    dotted = {
        f.name: f"{g}.{f.name}"
        for g, kind in groups.items()
        if dataclasses.is_dataclass(kind)
        for f in dataclasses.fields(kind)
    }
    return [f"{dotted[name]}=<value>" for name in difflib.get_close_matches(word.replace("-", "_"), dotted, n=1)]


def _check_count(command: Command, paths: list[str]) -> None:
    example = f"python -m {command.name} configs/gem_debug.py batch.examples=256"
    if not paths and command.num_configs != "none or some":
        raise ConfigError(f"name a config first, e.g. {example}")
    if len(paths) > 1 and command.num_configs == "one":
        raise ConfigError(f"'{paths[1]}' is a second config; {command.name} takes one, and fields as a.b=value")


def _help(command: Command, config: Any) -> typing.NoReturn:
    """Prints the options, and every field of a config with its meaning and its value there, and exits."""
    names = {"one": "<config.py[:variant]>", "some": "<config.py[:variant]> ..."}.get(
        command.num_configs, "[<config.py[:variant]> ...]"
    )
    usage = f"python -m {command.name} {names} [a.b=value ...]"
    about = f"{command.about} Fields of the config are changed by a.b=value or --a.b=value"
    about += "." if config is not None else "; with a config before --help all of them are shown."
    holder: Any = command.options
    default: Any = None
    if config is not None:
        holder, default = _with_fields(command.options, config)
    elif any(f.default is dataclasses.MISSING for f in dataclasses.fields(command.options)):
        default = tyro.MISSING
    keywords = {} if default is None else {"default": default}
    tyro.cli(holder, args=["--help"], prog=usage, description=about, config=TYRO, use_underscores=True, **keywords)
    raise AssertionError("--help exits")


def _with_fields(options: type, config: Any) -> tuple[type, Any]:
    """A dataclass of the options and the config's fields, of the types that these have in this config, for tyro to show; without
    dicts, whose values are shown by nobody."""
    kind = type(config)
    hints, texts = typing.get_type_hints(kind), _docs(kind)
    fields: list[tuple[str, Any, Any]] = []
    for f in dataclasses.fields(config):
        value = getattr(config, f.name)
        if dataclasses.is_dataclass(value):
            fields.append((f.name, type(value), dataclasses.field(default_factory=functools.partial(_same, value))))
        elif not isinstance(value, dict):
            hint: Any = hints[f.name]
            annotated = typing.Annotated[hint, tyro.conf.arg(help=texts.get(f.name, ""))]
            fields.append((f.name, annotated, dataclasses.field(default=value)))
    holder = dataclasses.make_dataclass("Fields", fields, bases=(options,), frozen=True, kw_only=True)
    return holder, holder()


def _docs(kind: type) -> dict[str, str]:
    """Field -> the docstring under it."""
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    assert isinstance(tree, ast.ClassDef)
    return {
        field.target.id: below.value.value
        for field, below in itertools.pairwise(tree.body)
        if isinstance(field, ast.AnnAssign)
        and isinstance(field.target, ast.Name)
        and isinstance(below, ast.Expr)
        and isinstance(below.value, ast.Constant)
        and isinstance(below.value.value, str)
    }


def _same(value: Any) -> Any:
    return value

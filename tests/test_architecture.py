"""Imports go one way: configs -> gem_jax -> pallas_kernels -> jax; and what only one place may use stays there."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[1]


def imported(path: pathlib.Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name} uses a relative import"
            names.add(node.module or "")
    return names


def imports_under(folder: str) -> dict[str, set[str]]:
    files = sorted((ROOT / folder).rglob("*.py"))
    assert files, f"no Python files in {folder}"
    return {str(f.relative_to(ROOT)): imported(f) for f in files}


@pytest.mark.parametrize(
    ("folder", "forbidden"),
    [("gem_jax", ("configs", "tests")), ("pallas_kernels", ("gem_jax", "configs", "tests", "flax", "optax"))],
)
def test_one_way(folder, forbidden):
    for path, names in imports_under(folder).items():
        wrong = [n for n in names if n.split(".")[0] in forbidden]
        assert not wrong, f"{path} imports {wrong}"


@pytest.mark.parametrize(
    ("package", "home"),
    [
        ("orbax", "gem_jax/checkpoint/store.py"),
        ("grain", "gem_jax/data"),
        ("pyarrow", ("gem_jax/data", "gem_jax/prepare")),
        ("tensorboardX", "gem_jax/report/log.py"),
    ],
)
def test_each_library_has_one_home(package, home):
    users = [p for p, names in imports_under("gem_jax").items() if package in {n.split(".")[0] for n in names}]
    assert users, f"{package} is a dependency that nothing imports"
    assert all(p.startswith(home) for p in users), users


def test_models_know_nothing_of_training():
    for folder in ("gem_jax/models", "gem_jax/nn"):
        for path, names in imports_under(folder).items():
            assert not [n for n in names if n.startswith("gem_jax.training")], path


ROOMS = (
    ("errors",),
    ("files",),
    ("data",),
    ("prepare",),
    ("parallel", "precision"),
    ("embedding",),
    ("nn",),
    ("models",),
    ("training", "evaluation"),
    ("report", "checkpoint"),
    ("config",),
    ("cli", "run"),
    ("train", "scale", "scoring"),
    ("compare", "predict", "transfer"),
    ("bench",),
)
"""From the bottom up. A room imports from those below it and from itself; rooms of one line do not know each other."""

LEAVES = (
    "gem_jax.checkpoint.config",
    "gem_jax.bench.data",
    "gem_jax.transfer.distill",
    "gem_jax.transfer.joined",
    "gem_jax.transfer.sharing",
)
"""Modules of a room above that a room below may import: plain dataclasses of a config."""


def room_of(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def test_rooms_import_downwards_only():
    floor = {room: number for number, rooms in enumerate(ROOMS) for room in rooms}
    found = {path: names for path, names in imports_under("gem_jax").items() if path != "gem_jax/__init__.py"}
    for path, names in found.items():
        own = pathlib.Path(path).parts[1].removesuffix(".py")
        assert own in floor, f"{path}: give '{own}' a place in ROOMS"
        for name in names:
            other = room_of(name) if name.startswith("gem_jax.") else None
            if other is None or other == own or name in LEAVES:
                continue
            assert floor[other] < floor[own], f"{path} imports {name}: '{other}' does not lie below '{own}'"

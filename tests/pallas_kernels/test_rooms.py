"""common and hopper know no operation, so that an operation is a folder."""

import ast
import pathlib

import pytest

import pallas_kernels

ROOT = pathlib.Path(pallas_kernels.__file__).parent


@pytest.mark.parametrize(("room", "allowed"), [("common", {"common"}), ("hopper", {"common", "hopper"})])
def test_shared_rooms_import_no_operation(room, allowed):
    paths = sorted((ROOT / room).glob("*.py"))
    assert len(paths) > 3
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("pallas_kernels"):
                rooms = {node.module.split(".")[1]} if "." in node.module else {alias.name for alias in node.names}
                assert rooms <= allowed, f"{path.name} imports {rooms - allowed}"

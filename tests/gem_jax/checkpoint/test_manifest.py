"""The manifest: it comes back as it was, and guards itself."""

import json

import numpy as np
import pytest

from gem_jax.checkpoint.errors import CheckpointError, Damage
from gem_jax.checkpoint.manifest import FORMAT, Manifest, SavedArray, digest

MANIFEST = Manifest(
    step=7,
    arrays={
        "dense/w/value": SavedArray(
            shape=(2, 3), dtype="float32", axes=(("a", "b"), None), checksum="0123456789abcdef"
        ),
        "step": SavedArray(shape=(), dtype="int32", axes=(), checksum="00"),
    },
    config={"name": "mine", "optimizer": {"kind": "OptimizerConfig", "learning_rate": 0.1 + 0.2}},
    schema={"tasks": [{"name": "click"}]},
    mesh={"replica": 1, "shard": 1},
    placement={"ad": "rows"},
    data={"train": {"examples": 10, "digest": "ab"}},
    position={"loader": {"position": 96, "seed": None}, "seconds": 1e-300},
    versions={"jax": "0.11.2"},
)


def test_what_was_written_comes_back():
    text = json.dumps(MANIFEST.to_json(), indent=2)
    assert Manifest.from_text(text, "here") == MANIFEST


def paths(node, path=()):
    """Every number, text or None in the tree, by the way to it."""
    if isinstance(node, dict | list):
        for key, inner in node.items() if isinstance(node, dict) else enumerate(node):
            yield from paths(inner, (*path, key))
    else:
        yield path


def test_every_edited_value_is_found():
    whole = MANIFEST.to_json()
    found = list(paths(whole))
    assert len(found) > 20
    for path in found:
        edited = json.loads(json.dumps(whole))
        node = edited
        for key in path[:-1]:
            node = node[key]
        old = node[path[-1]]
        node[path[-1]] = old + 1 if isinstance(old, int | float) and old + 1 != old else "edited"
        with pytest.raises(Damage):
            Manifest.from_text(json.dumps(edited), "here")


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", "3", '"a"', "{}", "[" * 100_000, '{"checksum": 1}', '{"a": NaN}']
)
def test_what_is_no_manifest_is_found(text):
    with pytest.raises(Damage):
        Manifest.from_text(text, "here")


def test_a_newer_format_is_refused():
    content = {**MANIFEST.to_json(), "format": FORMAT + 1}
    del content["checksum"]
    with pytest.raises(CheckpointError, match="checkpoint here was written by a newer gem_jax; install that version"):
        Manifest.from_text(json.dumps({**content, "checksum": digest(content)}), "here")


def test_numpy_numbers_are_refused_before_anything_is_written():
    with pytest.raises(TypeError):
        Manifest(**{**vars(MANIFEST), "position": {"seen": np.int64(3)}}).to_json()

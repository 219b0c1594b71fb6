"""Problem sizes: what they say is what the configs say, and files of them."""

import json
import pathlib

import pytest

from gem_jax.config import load
from pallas_kernels.common import shapes

CONFIGS = pathlib.Path(__file__).parents[3] / "configs"


@pytest.mark.parametrize("name", shapes.NAMED)
def test_named_shapes_are_the_configs(name):
    config, found = load(CONFIGS / f"{name}.py"), shapes.NAMED[name]
    assert found.examples == config.batch.examples
    assert found.heads == config.model.num_heads
    assert found.heads * found.head_dim == config.model.embedding_dim
    assert {source: sizes.tokens for source, sizes in found.sources.items()} == config.batch.tokens
    for source, sizes in found.sources.items():
        assert sizes.max_len == getattr(config.data, f"{source}_max_len")


def test_a_file_of_shapes(tmp_path):
    path = tmp_path / "mine.json"
    path.write_text(
        json.dumps(dict(examples=8, heads=2, head_dim=64, sources={"past": {"tokens": 160, "max_len": 32}}))
    )
    expected = shapes.Shapes(8, 2, 64, {"past": shapes.Sequences(160, 32)})
    assert shapes.find(str(path)) == expected


@pytest.mark.parametrize(
    "text", ["{", "[]", "{}", '{"examples": 8, "sources": {}}', '{"sources": {"past": {"rows": 1}}}']
)
def test_a_file_of_something_else_is_refused(text, tmp_path):
    path = tmp_path / "mine.json"
    path.write_text(text)
    with pytest.raises(ValueError, match="must hold an object of"):
        shapes.find(str(path))


def test_unknown_shapes_are_refused():
    with pytest.raises(ValueError, match="shapes must be one of"):
        shapes.find("gem_huge")

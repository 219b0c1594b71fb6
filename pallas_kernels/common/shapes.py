"""Problem sizes of models, for benchmarks. Kernels import no configs: sizes are data here, or come from a JSON file.

A test (`tests/pallas_kernels/common/test_shapes.py`) checks that the sets below are what the configs say.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib


@dataclasses.dataclass(frozen=True)
class Sequences:
    """One source of packed histories.

    Attributes:
      tokens: rows of a packed batch, T.
      max_len: the longest history.
    """

    tokens: int
    max_len: int


@dataclasses.dataclass(frozen=True)
class Shapes:
    """What a model asks of the kernels.

    Attributes:
      examples: of a batch, B.
      heads: H.
      head_dim: K.
      sources: histories by the name of their source.
    """

    examples: int
    heads: int
    head_dim: int
    sources: dict[str, Sequences]


NAMED = {
    # configs/gem_small.py
    "gem_small": Shapes(1024, 2, 32, {"organic": Sequences(1024 * 61, 64), "impressions": Sequences(1024 * 31, 32)}),
    # configs/gem_base.py
    "gem_base": Shapes(1024, 4, 64, {"organic": Sequences(1024 * 107, 128), "impressions": Sequences(1024 * 58, 64)}),
    # configs/gem_1b.py
    "gem_1b": Shapes(128, 4, 128, {"organic": Sequences(128 * 116, 128), "impressions": Sequences(128 * 88, 96)}),
    # configs/gem_10b.py
    "gem_10b": Shapes(32, 8, 128, {"organic": Sequences(32 * 122, 128), "impressions": Sequences(32 * 92, 96)}),
}


def find(name: str) -> Shapes:
    """A named set, or the one that a `.json` file holds (an object of the fields above).

    Raises:
      ValueError: there is no such set, or the file has other fields.
    """
    if name in NAMED:
        return NAMED[name]
    path = pathlib.Path(name)
    if path.suffix != ".json" or not path.is_file():
        raise ValueError(f"shapes must be one of {tuple(NAMED)} or a JSON file, got {name!r}.")
    try:
        fields = json.loads(path.read_text())
        sources = {source: Sequences(**sizes) for source, sizes in fields.pop("sources").items()}
        return Shapes(sources=sources, **fields)
    except (TypeError, KeyError, AttributeError, json.JSONDecodeError) as error:
        names = [field.name for field in dataclasses.fields(Shapes)]
        raise ValueError(
            f"{path} must hold an object of {names}, each source one of tokens and max_len: {error}."
        ) from error

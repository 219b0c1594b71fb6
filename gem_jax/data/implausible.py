"""Which input a model cannot have learned from: the reason of many a loss that is not finite."""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Int

from gem_jax.data.batch import Batch, Examples
from gem_jax.data.schema import Schema

LARGEST = 1e6
"""The largest magnitude of an input that can be learned from. A step of 0.001 on a weight moves the logit of an input x by 0.001 x,
and its gradient is x times as large: from here on one example throws every logit of the step after it to 0 or 1."""

NAMED = 3
"""Example ids in a message."""


def implausible(schema: Schema, columns: Batch | Examples, example_id: Int[np.ndarray, "B"]) -> str | None:
    """The column with the largest input, where that is beyond `LARGEST` or not finite, as a part of a sentence; None where all are
    plausible.

    Args:
      schema: of the columns.
      columns: NumPy leaves.
      example_id: of their rows; -1 in empty slots.
    """
    sizes = {name: _magnitude(values, is_nan_fine) for name, values, is_nan_fine in _inputs(schema, columns)}
    name = max(sizes, key=lambda name: sizes[name].max(initial=0.0))
    rows = np.flatnonzero(sizes[name] > LARGEST)
    if not len(rows):
        return None
    worst = rows[np.argmax(sizes[name][rows])]
    others = [str(example_id[row]) for row in rows if row != worst]
    more = f" (also in {', '.join(others[:NAMED])}{', ...' if len(others) > NAMED else ''})" if others else ""
    return f"{name} is as large as {sizes[name][worst]:.3g} in example {example_id[worst]}{more}"


def _inputs(schema: Schema, columns: Batch | Examples) -> Iterator[tuple[str, np.ndarray, bool]]:
    """What it is called, its values [B, ...], and whether NaN says that one is unknown."""
    for place, dense in enumerate(schema.dense):
        yield f"dense column '{dense.name}'", columns.dense[:, place], False
    for name, values in columns.vectors.items():
        yield f"vector '{name}'", values, False
    for place, task in enumerate(schema.tasks):
        yield f"label '{task.name}'", columns.labels[:, place], True
    for name, values in columns.training.items():
        yield f"training column '{name}'", values, True
    yield "the weight", columns.weight, False


def _magnitude(values: np.ndarray, is_nan_fine: bool) -> np.ndarray:
    """float64 [B]: the largest magnitude of each row, infinite for a NaN that should not be there."""
    size = np.abs(np.asarray(values, np.float64)).reshape(len(values), -1)
    return np.nan_to_num(size, nan=0.0 if is_nan_fine else np.inf, posinf=np.inf).max(axis=1, initial=0.0)

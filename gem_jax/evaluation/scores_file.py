"""The scores of a run's test examples as a Parquet file, so that runs can be compared example by example later.

Columns: example_id, user (-1 unknown), domain (place among the schema's), weight, and for each task label.<task> (NaN unobserved),
logit.<task> and true_probability.<task> (NaN unknown).
"""

import pathlib
from collections.abc import Sequence

import numpy as np

from gem_jax.data.columns_file import read_columns, write_columns
from gem_jax.data.source import DataError
from gem_jax.evaluation.evaluator import ScoredExamples

FILE_NAME = "test_scores.parquet"
"""Its name in a run folder."""

OF_EXAMPLE = ("example_id", "user", "domain", "weight")
OF_TASK = {"label": "labels", "logit": "logits", "true_probability": "true_probability"}
"""Column's name before the task -> attribute of `ScoredExamples`."""


def write_scores(path: pathlib.Path, scores: ScoredExamples, tasks: Sequence[str]) -> None:
    """Writes scored examples in ascending order of id.

    Args:
      path: of the file.
      scores: of these tasks, in this order.
      tasks: their names.

    Raises:
      DataError: the file cannot be written.
    """
    order = np.argsort(scores.example_id, kind="stable")
    columns = {name: vars(scores)[name][order] for name in OF_EXAMPLE}
    for n, task in enumerate(tasks):
        columns |= {f"{name}.{task}": vars(scores)[attribute][order, n] for name, attribute in OF_TASK.items()}
    write_columns(path, columns)


def read_scores(path: pathlib.Path) -> tuple[ScoredExamples, tuple[str, ...]]:
    """What `write_scores` wrote: the scored examples in ascending order of id, and the names of their tasks.

    Raises:
      DataError: the file cannot be read, or is not one of scores.
    """
    columns = read_columns(path)
    tasks = tuple(name.removeprefix("logit.") for name in columns if name.startswith("logit."))
    wanted = {*OF_EXAMPLE, *(f"{name}.{task}" for name in OF_TASK for task in tasks)}
    if not tasks or not wanted <= columns.keys():
        missing = ", ".join(sorted(wanted - columns.keys())) or "logit.<task>"
        raise DataError(f"'{path}' is no file of scores, it has no column {missing}; name a run's {FILE_NAME}")
    by_task = {a: np.stack([columns[f"{name}.{task}"] for task in tasks], axis=1) for name, a in OF_TASK.items()}
    return ScoredExamples(**by_task, **{name: columns[name] for name in OF_EXAMPLE}), tasks

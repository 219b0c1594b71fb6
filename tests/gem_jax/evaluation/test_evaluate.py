"""A pass over a source with a model that stands for any: every example scored once, in order, on several devices."""

import dataclasses
import functools
import io

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from gem_jax.data.columns import MemorySource, take_examples
from gem_jax.data.packing import BatchConfig
from gem_jax.data.parquet import ParquetSource, write_parquet
from gem_jax.data.source import DataError
from gem_jax.evaluation.errors import DivergedError
from gem_jax.evaluation.evaluate import check_counts, evaluate, scored_batches, scored_examples
from gem_jax.evaluation.evaluator import Evaluator
from gem_jax.parallel.mesh import make_mesh
from gem_jax.report.console import print_table
from tests.gem_jax.data.random_examples import SCHEMA, random_examples
from tests.gem_jax.evaluation.scored import host_columns

BATCH = BatchConfig(examples=4, tokens={"clicks": 96, "views": 48})
SLOPE = np.float32(0.5)


class Linear:
    """logits = [slope, -slope] * first dense feature; the state is the slope."""

    schema = SCHEMA

    def __init__(self, replica: int, shard: int):
        self.mesh = make_mesh(replica, shard)

    @functools.partial(jax.jit, static_argnums=0)
    def eval_step(self, state, batch):
        logit = jnp.where(batch.weight > 0, state * batch.dense[:, 0], jnp.nan)  # empty slots are poisoned
        return jnp.stack([logit, -logit], axis=1)


def memory(examples) -> MemorySource:
    return MemorySource(schema=SCHEMA, examples=examples)


def logits_of(examples) -> np.ndarray:
    logit = SLOPE * examples.dense[:, 0]
    return np.stack([logit, -logit], axis=1)


def expected(examples) -> dict:
    evaluator = Evaluator(SCHEMA)
    columns = {name: getattr(examples, name) for name in ("domain", "weight", "user", "true_probability")}
    evaluator.update(logits_of(examples), host_columns(examples.labels, **columns))
    return evaluator.result()


def by_user(scored) -> dict[int, np.ndarray]:
    found: dict[int, np.ndarray] = {}
    for logits, host in scored:
        for slot in np.flatnonzero(host.weight > 0):
            assert host.user[slot] not in found, "scored twice"
            found[host.user[slot]] = logits[slot]
    return found


@pytest.mark.parametrize(("replica", "shard"), [(1, 1), (2, 4)])
def test_every_example_is_scored_once(replica, shard):
    examples = random_examples(101, seed=3)  # user i is example i
    found = by_user(scored_batches(Linear(replica, shard), SLOPE, memory(examples), BATCH))
    kept = np.flatnonzero(examples.weight > 0)
    assert sorted(found) == list(kept)
    np.testing.assert_array_equal(np.stack([found[i] for i in kept]), logits_of(examples)[kept])


def test_metrics_of_the_first_examples():
    examples = random_examples(101, seed=3)
    program, source = Linear(2, 4), memory(examples)
    # Packing moves examples between slots: sums of 101 float64 terms in another order.
    for limit, count in ((None, 101), (37, 37), (1000, 101)):
        result = evaluate(program, SLOPE, source, BATCH, limit)
        wanted = expected(take_examples(examples, np.arange(count)))
        for task in ("click", "conversion"):
            for name in ("ne", "auc", "calibration", "logloss", "num_examples"):
                assert result[task][name] == pytest.approx(wanted[task][name], rel=1e-12), (task, name)


def test_scores_keep_what_they_are_of():
    examples = random_examples(101, seed=3)
    scores = scored_examples(Linear(2, 4), SLOPE, memory(examples), BATCH)
    place = {example_id: i for i, example_id in enumerate(examples.example_id)}
    rows = np.array([place[example_id] for example_id in scores.example_id])
    assert sorted(rows) == list(np.flatnonzero(examples.weight > 0))
    np.testing.assert_array_equal(scores.logits, logits_of(examples)[rows])
    for name in ("labels", "weight", "domain", "user", "true_probability"):
        np.testing.assert_array_equal(getattr(scores, name), getattr(examples, name)[rows])


@pytest.mark.parametrize(
    "users",
    [lambda table: table.drop_columns("user"), lambda table: set_users(table, [None] * 200)],
    ids=["no column", "nulls"],
)
def test_a_file_without_users_has_no_gauc(tmp_path, users):
    """From the file to the table: an unknown user is never one user of all, whose gAUC would be the AUC."""
    examples = random_examples(200, seed=4)
    write_parquet(tmp_path / "known.parquet", memory(dataclasses.replace(examples, user=np.arange(200) % 20)))
    table = pq.read_table(tmp_path / "known.parquet")
    pq.write_table(users(table), tmp_path / "unknown.parquet")
    known, unknown = (
        evaluate(Linear(1, 1), SLOPE, ParquetSource((tmp_path / f"{name}.parquet",), SCHEMA), BATCH)["click"]
        for name in ("known", "unknown")
    )
    assert known["gauc"] is not None and unknown["gauc"] is unknown["standard_error"]["gauc"] is None
    assert known["auc"] == pytest.approx(unknown["auc"], rel=1e-12) and unknown["standard_error"]["auc"] > 0
    shown = Console(file=io.StringIO(), width=120)
    print_table({"click": unknown}, shown)
    heading, row = (line for line in shown.file.getvalue().splitlines() if "gAUC" in line or line.startswith(" click"))
    assert row[: heading.index("gAUC") + 4].endswith(" -")


def set_users(table: pa.Table, users: list) -> pa.Table:
    return table.set_column(table.column_names.index("user"), "user", pa.array(users, pa.int64()))


def test_where_no_example_counts_there_is_a_sentence():
    examples = random_examples(40, seed=3)
    nothing = dataclasses.replace(examples, weight=np.zeros(40, np.float32))
    result = evaluate(Linear(1, 1), SLOPE, memory(nothing), BATCH)
    assert result["click"]["num_examples"] == 0 and result["click"]["ne"] is None
    with pytest.raises(
        DataError, match="no example of the test part counts: each has weight 0 or no label of any task; "
    ):
        check_counts(result, "test")
    labels = np.stack([examples.labels[:, 0], np.full(40, np.nan, np.float32)], axis=1)
    one_task = evaluate(Linear(1, 1), SLOPE, memory(dataclasses.replace(examples, labels=labels)), BATCH)
    check_counts(one_task, "test")
    assert one_task["conversion"]["num_examples"] == 0, "a task without labels shows dashes"


def test_a_logit_that_is_not_finite():
    with pytest.raises(DivergedError, match="task 'click': .* not finite"):
        evaluate(Linear(1, 2), np.float32(np.inf), memory(random_examples(10)), BATCH)

"""The frozen ruler: its numbers are pinned, an example depends on nothing but its index, and its batches are full."""

import dataclasses
import hashlib
import pathlib

import numpy as np
import pytest

from gem_jax.bench.data import BenchDataConfig
from gem_jax.config import load
from gem_jax.data.batch import Examples
from gem_jax.data.packing import pack
from gem_jax.errors import UserError

RULER = load(pathlib.Path(__file__).parents[3] / "configs" / "bench" / "gem_base.py")
DATA = RULER.data
DIGEST = "34eeefb5048d9eff6d68cefaf56eec516dda9c379aa2b76ed59c7f623fa29a0f"


def columns(examples: Examples) -> dict[str, np.ndarray]:
    """Every column by name; `dense` and `vectors` go through cosines, which libraries round differently."""
    found = {f"id/{name}": a for name, a in examples.ids.items()}
    for source, h in examples.sequences.items():
        found |= {f"{source}/{name}": a for name, a in h.ids.items()}
        found |= {f"{source}/age_s": h.age_s, f"{source}/lengths": h.lengths}
    names = ("labels", "domain", "weight", "user", "true_probability", "example_id", "time_s")
    return found | {name: getattr(examples, name) for name in names}


def test_the_numbers_are_those_of_the_day_they_were_frozen():
    found = hashlib.sha256()
    for name, array in sorted(columns(DATA.build().train.read(np.arange(200))).items()):
        found.update(f"{name} {array.dtype} {array.shape}".encode() + np.ascontiguousarray(array).tobytes())
    assert found.hexdigest() == DIGEST


def test_an_example_depends_on_its_index_alone():
    source = DATA.build().train
    together, alone = source.read(np.array([7, 3, 999_999])), source.read(np.array([3]))
    for name in ("labels", "dense", "domain", "example_id"):
        np.testing.assert_array_equal(getattr(together, name)[1:2], getattr(alone, name))
    for name, a in alone.ids.items():
        np.testing.assert_array_equal(together.ids[name][1:2], a)
    for name, h in alone.sequences.items():
        first, length = int(together.sequences[name].lengths[0]), int(h.lengths[0])
        np.testing.assert_array_equal(together.sequences[name].age_s[first : first + length], h.age_s)
    other = dataclasses.replace(DATA, seed=1).build()
    assert not np.array_equal(other.train.read(np.arange(9)).ids["user"], source.read(np.arange(9)).ids["user"])
    assert len({part.identity() for part in (source, DATA.build().test, other.train)}) == 3


def test_batches_have_the_shapes_that_the_figures_name():
    source = DATA.build().train
    assert (RULER.batch.examples, RULER.precision.compute) == (2048, "bfloat16")
    budgets = RULER.batch.budgets(source.schema)
    assert budgets == {"organic": 55_296, "impressions": 55_296}
    examples = source.read(np.arange(2_100))
    batch, host = pack(examples, source.schema, RULER.batch.examples, budgets)
    assert host.num_examples == 2048 and not any(host.truncated.values())
    for name, events in batch.sequences.items():
        assert 0.9 < events.offsets[-1] / budgets[name] <= 1
        h = examples.sequences[name]
        assert h.age_s.min() >= 0 and len(h.age_s) == h.lengths.sum()
        # 2,100 draws of at most 64 with deviation 22: the mean is within four of its own deviations.
        assert abs(h.lengths.mean() - np.mean(DATA.lengths[name])) < 4 * np.std(DATA.lengths[name]) / np.sqrt(2_100)
    for table in source.schema.tables:
        ids = [examples.ids[f.name] for f in source.schema.categoricals if f.table == table.name]
        for s in source.schema.sequences:
            ids += [examples.sequences[s.name].ids[a.name] for a in s.attributes if a.table == table.name]
        assert all(0 <= a.min() and a.max() < table.rows for a in ids)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lengths": {"organic": (1,)}}, r"data.lengths names \['organic'\] and the sources are \['impressions', 'organic'\]"),
        ({"lengths": {"organic": (1,), "impressions": (65,)}}, "data.lengths.impressions=.* from 0 to the source's max_len of 64"),
        ({"lengths": {"organic": (), "impressions": (6,)}}, "data.lengths.organic=.* must be numbers from 0"),
        ({"lengths": {"organic": (-1,), "impressions": (6,)}}, "data.lengths.organic=.* must be numbers from 0"),
        ({"examples": 99}, "data.examples=99 must be at least 100"),
        ({"seed": -1}, "data.seed=-1 must not be negative"),
    ],
)  # fmt: skip
def test_wrong_values(changes, message):
    with pytest.raises(UserError, match=message):
        BenchDataConfig(**{"columns": DATA.columns, "lengths": DATA.lengths, **changes})

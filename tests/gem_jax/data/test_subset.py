"""A subset shows what the whole has, and nothing of what it leaves out."""

import dataclasses

import numpy as np
import pytest

from gem_jax.data.columns import MemorySource, take_examples
from gem_jax.data.source import DataError, Splits
from gem_jax.data.subset import SubsetConfig
from tests.gem_jax.data.random_examples import SCHEMA, random_examples


@dataclasses.dataclass(frozen=True)
class Whole:
    def schema(self):
        return SCHEMA

    def build(self):
        examples = [random_examples(n, seed=n) for n in (50, 20)]
        return Splits(
            **{p: MemorySource(schema=SCHEMA, examples=e) for p, e in zip(("train", "test"), examples, strict=True)}
        )


def test_features_histories_and_tasks_are_left_out():
    config = SubsetConfig(
        data=Whole(),
        without_sequences=("clicks",),
        without_features=("topics", "price", "image"),
        tasks=("conversion",),
    )
    schema, splits = config.schema(), config.build()
    assert schema == splits.schema
    assert [t.name for t in schema.tables] == ["ad"] and [s.name for s in schema.sequences] == ["views"]
    assert [f.name for f in schema.categoricals] == ["ad"] and [d.name for d in schema.dense] == ["hour"]
    assert not schema.vectors and [t.name for t in schema.tasks] == ["conversion"]
    rows = np.array([7, 3, 49])
    got, whole = splits.train.read(rows), Whole().build().train.read(rows)
    assert set(got.ids) == {"ad"} and set(got.sequences) == {"views"} and not got.vectors
    np.testing.assert_array_equal(got.dense[:, 0], whole.dense[:, 1])
    np.testing.assert_array_equal(got.labels[:, 0], whole.labels[:, 1])
    np.testing.assert_array_equal(got.true_probability[:, 0], whole.true_probability[:, 1])
    for column in ("example_id", "user", "time_s", "domain", "weight"):
        np.testing.assert_array_equal(getattr(got, column), getattr(whole, column))


def test_domains_and_a_beginning():
    whole = Whole().build()
    splits = SubsetConfig(data=Whole(), domains=("stories", "feed"), first=30).build()
    for part, end in (("train", 30), ("test", 20)):
        examples = take_examples(getattr(whole, part).examples, np.arange(end))
        rows = np.flatnonzero(np.isin(examples.domain, [0, 2]))
        got = getattr(splits, part)
        assert len(got) == len(rows) > 3
        np.testing.assert_array_equal(got.read(np.arange(len(got))).example_id, examples.example_id[rows])
    assert splits.schema.domains == SCHEMA.domains
    assert len(SubsetConfig(data=Whole(), first=30).build().train) == 30


def test_identity_depends_on_what_is_shown():
    configs = [
        SubsetConfig(data=Whole()),
        SubsetConfig(data=Whole(), domains=("feed",)),
        SubsetConfig(data=Whole(), tasks=("click",)),
        SubsetConfig(data=Whole(), first=30),
        SubsetConfig(data=Whole(), without_features=("hour",)),
    ]
    digests = [c.build().train.identity() for c in configs]
    assert len({*digests, Whole().build().train.identity()}) == 6
    assert [c.build().train.identity() for c in configs] == digests


@pytest.mark.parametrize(
    "fields, match",
    [
        ({"without_sequences": ("image",)}, "without_sequences names 'image'.*it has clicks, views"),
        ({"without_features": ("clicks",)}, "without_features names 'clicks'"),
        ({"domains": ("web",)}, "domains names 'web'"),
        ({"tasks": ("sale",)}, "tasks names 'sale'"),
    ],
)
def test_unknown_names(fields, match):
    with pytest.raises(DataError, match=match):
        SubsetConfig(data=Whole(), **fields).schema()


def test_no_examples():
    with pytest.raises(DataError, match="must be at least 1"):
        SubsetConfig(data=Whole(), first=0)

"""A schema refuses what contradicts itself: names that would collide as columns, paths or command-line fields, and empty sizes."""

import re

import pytest

from gem_jax.data.schema import (
    RESERVED,
    Categorical,
    Dense,
    Schema,
    SchemaError,
    Sequence,
    Table,
    Task,
    TrainingColumn,
    Vector,
)
from gem_jax.errors import UserError
from tests.gem_jax.data.random_examples import SCHEMA


def _categorical(name: str, **fields) -> Categorical:
    return Categorical(name=name, table="ad", role="ad", **fields)


def _sequence(name: str, attribute: str = "ad") -> Sequence:
    return Sequence(name=name, attributes=(_categorical(attribute),), max_len=3)


NAMED = {
    "table": lambda name: {"tables": (*SCHEMA.tables, Table(name=name, rows=3))},
    "feature": lambda name: {"categoricals": (*SCHEMA.categoricals, _categorical(name))},
    "dense": lambda name: {"dense": (Dense(name=name, role="ad"),)},
    "vector": lambda name: {"vectors": (Vector(name=name, dim=2, role="ad"),)},
    "sequence": lambda name: {"sequences": (_sequence(name),)},
    "attribute": lambda name: {"sequences": (_sequence("clicks", name),)},
    "task": lambda name: {"tasks": (Task(name=name),)},
    "domain": lambda name: {"domains": (name,)},
    "training": lambda name: {"training": (TrainingColumn(name=name),)},
}


@pytest.mark.parametrize("name", ["", "a.b", "a/b", "a:b", "a,b", "a=b", " a", "a\n"])
@pytest.mark.parametrize("kind", NAMED)
def test_ambiguous_names_are_refused_everywhere(kind, name):
    SCHEMA.replace(**NAMED[kind]("other"))
    with pytest.raises(SchemaError, match=re.escape(f"'{name}' needs another name")):
        SCHEMA.replace(**NAMED[kind](name))


@pytest.mark.parametrize("name", RESERVED)
@pytest.mark.parametrize("kind", ["feature", "dense", "vector", "sequence"])
def test_the_readers_own_columns_are_no_features(kind, name):
    with pytest.raises(SchemaError, match=f"'{name}' has the name of a column that readers keep"):
        SCHEMA.replace(**NAMED[kind](name))


@pytest.mark.parametrize("name", (*RESERVED, "user"))
@pytest.mark.parametrize("kind", ["table", "task", "domain", "training"])
def test_what_has_a_prefix_or_is_no_column_may_be_called_so(kind, name):
    SCHEMA.replace(**NAMED[kind](name))


def test_user_may_be_the_users_id_alone():
    SCHEMA.replace(categoricals=(_categorical("user"),))
    for wrong in (
        {"categoricals": (_categorical("user", max_ids=2),)},
        NAMED["dense"]("user"),
        NAMED["vector"]("user"),
    ):
        with pytest.raises(SchemaError, match="feature 'user' is the user's id: make it a categorical feature"):
            SCHEMA.replace(**wrong)
    with pytest.raises(SchemaError, match="sequence 'user' has the name of the user's id"):
        SCHEMA.replace(**NAMED["sequence"]("user"))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"categoricals": (_categorical("clicks"),)}, "feature 'clicks' has the name of a sequence"),
        ({"dense": (Dense(name="views", role="ad"),)}, "feature 'views' has the name of a sequence"),
        ({"sequences": (_sequence("clicks", "age_s"),)}, "attribute 'age_s' of sequence 'clicks'"),
        ({"dense": (Dense(name="ad", role="ad"),)}, "feature 'ad' is declared twice"),
        ({"training": (TrainingColumn(name="a"), TrainingColumn(name="a"))}, "training column 'a' is declared twice"),
        ({"training": (TrainingColumn(name="a", dim=0),)}, "'a' has dim=0; it needs at least 1"),
        ({"vectors": (Vector(name="a", dim=0, role="ad"),)}, "'a' has dim=0; it needs at least 1"),
        ({"tasks": ()}, "at least one task and one domain"),
        ({"tables": (Table(name="ad", rows=0), Table(name="topic", rows=1))}, "table 'ad' has rows=0"),
        ({"categoricals": (Categorical(name="a", table="b", role="ad"),)}, "feature 'a' names table 'b'"),
    ],
)
def test_contradictions_are_named(changes, message):
    with pytest.raises(SchemaError, match=message) as error:
        SCHEMA.replace(**changes)
    assert isinstance(error.value, UserError) and "\n" not in str(error.value)


@pytest.mark.parametrize("kind", ["feature", "dense", "vector"])
def test_a_feature_has_no_tasks_name(kind):
    with pytest.raises(
        SchemaError, match="feature 'click' has the name of a task; rename it, or remove it if it is the"
    ):
        SCHEMA.replace(**NAMED[kind]("click"))
    SCHEMA.replace(**NAMED["sequence"]("click"))  # what was clicked before is no label
    SCHEMA.replace(**NAMED["training"]("click"))  # a teacher's opinion of the task


@pytest.mark.parametrize("kind", ["feature", "dense", "vector", "sequence"])
def test_an_unknown_role_is_named(kind):
    changes = NAMED[kind]("other")
    (features,) = changes.values()
    feature = features[-1].attributes[0] if kind == "sequence" else features[-1]
    object.__setattr__(feature, "role", "advert")  # the tests' type checks would refuse it as an argument
    with pytest.raises(SchemaError, match="' has the role 'advert'; roles are user, context, ad, goal, format"):
        SCHEMA.replace(**changes)


def test_schemas_are_values():
    assert SCHEMA.replace() == SCHEMA and isinstance(SCHEMA, Schema)
    assert SCHEMA.replace(training=(TrainingColumn(name="a"),)) != SCHEMA

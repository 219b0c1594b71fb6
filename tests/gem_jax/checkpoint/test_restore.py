"""Restoring: the same numbers on any mesh, by name; what does not fit is one sentence; init_from says what it took."""

import dataclasses
import itertools
import shutil

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from gem_jax.checkpoint.checkpoints import Checkpoints
from gem_jax.checkpoint.errors import CheckpointError
from gem_jax.checkpoint.fit import check_positions
from gem_jax.checkpoint.restore import init_from, newest_manifest, restore, restore_values
from gem_jax.parallel.mesh import make_mesh
from tests.gem_jax.checkpoint.fake import FakeProgram, assert_same, saved

MESHES = ((1, 1), (1, 8), (8, 1), (2, 4), (4, 2))
CUTS = (P(("replica", "shard")), P("shard"), P())


def silent(line: str) -> None:
    raise AssertionError(f"nothing was to be said: {line}")


def sentence(error: pytest.ExceptionInfo) -> str:
    text = str(error.value)
    assert "\n" not in text and len(text) < 500
    return text


@pytest.mark.parametrize(("old", "new"), list(itertools.product(MESHES, MESHES)))
def test_from_any_mesh_to_any_other(tmp_path, old, new):
    before = FakeProgram(mesh=make_mesh(*old), cut=CUTS[sum(old) % 3])
    checkpoints = saved(tmp_path, before, 7)
    after = before.replace(mesh=make_mesh(*new), cut=CUTS[sum(new) % 2])
    restored = restore(checkpoints, after, silent)
    assert_same(restored.state, before.numbers(7))
    assert (restored.manifest.step, restored.manifest.position) == (7, {"loader": {"position": 96}})
    assert str(restored.report) == f"taken    {len(restored.state)} arrays as they are"
    assert after.inits == []  # a new state is not made where it is not needed


def test_the_random_key_draws_the_same(tmp_path):
    program = FakeProgram()
    state = restore(saved(tmp_path, program, 1), program, silent).state
    key, expected = (jax.random.wrap_key_data(k) for k in (state["key"], program.numbers(1)["key"]))
    assert jax.random.bits(key) == jax.random.bits(expected)


@pytest.mark.parametrize("mesh", MESHES)
def test_a_table_that_has_grown(tmp_path, mesh):
    """Odd numbers of old rows, which no device count divides."""
    old = FakeProgram(tables={"ad": 61, "user": 32}, cut=P())
    new = old.replace(tables={"ad": 64, "user": 72}, mesh=make_mesh(*mesh), cut=P(("replica", "shard")))
    restored = restore(saved(tmp_path, old, 7), new, silent)
    expected = new.numbers(3)  # seeded by the run's config
    for name, x in old.numbers(7).items():
        expected[name] = np.concatenate([x, expected[name][len(x) :]]) if name.startswith("tables/") else x
    assert_same(restored.state, expected)
    assert new.inits == [3]
    assert "grown    tables/ad/weight: 61 rows taken, 3 new" in restored.report.lines


@pytest.mark.parametrize("mesh", [(1, 1), (2, 4)])
def test_places_are_found_by_name(tmp_path, mesh):
    """Features reordered, one new and one gone; tasks exchanged. Optimizer slots follow."""
    old = FakeProgram()
    new = old.replace(dense=("new", "hour", "age"), tasks=("buy", "click"), mesh=make_mesh(*mesh))
    restored = restore(saved(tmp_path, old, 7), new, silent)
    expected, before, fresh = {}, old.numbers(7), new.numbers(3)
    for name, x in before.items():
        if "bottom" in name:
            x = np.stack([fresh[name][0], x[2], x[0]])
        elif "head" in name:
            x = x[:, [1, 0]]
        elif name == "base_logits":
            x = x[[1, 0]]
        expected[name] = x
    assert_same(restored.state, expected)
    assert (
        "moved    dense/bottom/kernel/value: places taken by name, new 'new', dropped 'price'" in restored.report.lines
    )
    assert "moved    base_logits: places taken by name" in restored.report.lines


def test_a_reordering_needs_no_new_values(tmp_path):
    old = FakeProgram()
    new = old.replace(tasks=("buy", "click"), tables={"user": 32, "ad": 64})
    restore(saved(tmp_path, old, 7), new, silent)
    assert new.inits == []


def test_tables_that_come_and_go_with_the_schema(tmp_path):
    old = FakeProgram()
    new = old.replace(tables={"page": 16, "ad": 64})
    restored = restore(saved(tmp_path, old, 7), new, silent)
    expected = {n: new.numbers(3)[n] if "page" in n else old.numbers(7)[n] for n in new.logical_specs()}
    assert_same(restored.state, expected)
    assert {"new      tables/page/weight", "dropped  tables/user/accumulator"} <= set(restored.report.lines)


def with_another(program: FakeProgram, **specs) -> FakeProgram:
    """The program with specs replaced, or taken away by None."""

    class Another(FakeProgram):
        def logical_specs(self):
            changed = super().logical_specs() | specs
            return {name: spec for name, spec in changed.items() if spec is not None}

    return Another(**vars(program))


SPECS = FakeProgram().logical_specs()
UNFIT = {
    "fewer rows": (FakeProgram(tables={"ad": 32, "user": 32}), "table 'ad' has 64 rows in the checkpoint and 32 in the schema; "),
    "another width": (FakeProgram(width=8), r"has shape \(64, 4\) in the checkpoint and \(64, 8\) in the model; go back|'dense"),
    "an array more": (
        with_another(FakeProgram(), **{"dense/extra/value": SPECS["step"]}),
        "'dense/extra/value' is in the model and not in the checkpoint; go back to the config",
    ),
    "an array less": (
        with_another(FakeProgram(), **{"dense/layers/0/mu": None}),
        "'dense/layers/0/mu' is in the checkpoint and not in the model; go back to the config",
    ),
    "another dtype": (
        with_another(FakeProgram(), step=SPECS["key"]),
        "'step' is int32 in the checkpoint and uint32 in the model",
    ),
    "places that lost their names": (
        with_another(FakeProgram(), base_logits=dataclasses.replace(SPECS["base_logits"], axes=(None,))),
        r"'base_logits' of shape \(2,\) has places on axis 0 without names in the model",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", UNFIT)
def test_what_does_not_fit_is_refused_by_name(tmp_path, case):
    program, message = UNFIT[case]
    checkpoints = saved(tmp_path, FakeProgram(), 5, 7)
    with pytest.raises(CheckpointError, match=message) as error:
        restore(checkpoints, program, silent)
    sentence(error)
    assert checkpoints.candidates() == [5, 7]  # a whole checkpoint is not set aside


def test_members_known_by_position_alone(tmp_path):
    program = FakeProgram(positional={"dense": "dense/layers/0"})
    checkpoints = saved(tmp_path, program, 7)
    with pytest.raises(
        CheckpointError, match=r"dense of the schema changed from \(age, price, hour\) to \(price, age, hour\)"
    ):
        restore(checkpoints, program.replace(dense=("price", "age", "hour")), silent)
    restore(checkpoints, program.replace(tasks=("buy", "click")), silent)


def test_check_comes_before_anything_is_read(tmp_path, monkeypatch):
    checkpoints = saved(tmp_path, FakeProgram(), 5, 7)
    monkeypatch.setattr(Checkpoints, "read", lambda *a: pytest.fail("was read"))

    def check(manifest):
        raise CheckpointError(f"not {manifest.step}")

    with pytest.raises(CheckpointError, match="not 7"):
        restore(checkpoints, FakeProgram(), silent, check=check)


def test_init_from_takes_values_alone(tmp_path):
    old = FakeProgram()
    new = old.replace(tables={"ad": 96, "user": 16}, dense=("hour", "age"), mesh=make_mesh(2, 4))
    checkpoints = saved(tmp_path, old, 7)
    restored = init_from(checkpoints, new, new.init(9), say=silent)
    before, expected = old.numbers(7), new.numbers(9)
    for name in ("dense/layers/0/value", "dense/head/value", "base_logits"):
        expected[name] = before[name]
    expected["tables/ad/weight"][:64] = before["tables/ad/weight"]
    expected["dense/bottom/kernel/value"] = before["dense/bottom/kernel/value"][[2, 0]]
    assert_same(restored.state, expected)
    assert restored.report.taken == 3
    assert (
        "unfit    tables/user/weight: table 'user' has 32 rows in the checkpoint and 16 in the schema"
        in restored.report.lines
    )
    assert "grown    tables/ad/weight: 64 rows taken, 32 new" in restored.report.lines


@pytest.mark.parametrize("patterns", [("tables/*",), ("tables",), ("tables/ad/weight", "*/user/*")])
def test_init_from_by_patterns(tmp_path, patterns):
    program = FakeProgram()
    restored = init_from(saved(tmp_path, program, 7), program, program.init(9), patterns, silent)
    taken = ("tables/ad/weight", "tables/user/weight")
    assert_same(restored.state, {n: program.numbers(7 if n in taken else 9)[n] for n in restored.state})
    assert str(restored.report) == "taken    2 arrays as they are"


def test_init_from_that_takes_nothing_is_refused(tmp_path):
    program = FakeProgram()
    with pytest.raises(
        CheckpointError, match=r"init_from takes nothing from .*/7: no parameter that matches \(none\)"
    ) as error:
        init_from(saved(tmp_path, program, 7), program, program.init(9), ("none",), silent)
    sentence(error)


def test_the_newest_manifest_needs_no_program(tmp_path):
    checkpoints = saved(tmp_path, FakeProgram(), 5, 7)
    assert newest_manifest(checkpoints, silent).step == 7
    (tmp_path / "7" / "manifest" / "metadata").write_text("")
    said = []
    assert newest_manifest(checkpoints, said.append).step == 5
    assert len(said) == 1 and "/7 is damaged: its manifest is not whole JSON" in said[0]


def test_attributes_are_members_of_their_sequences():
    def schema(*names):
        return {"sequences": [{"name": "clicks", "attributes": [{"name": n} for n in names]}]}

    check_positions({"attributes": "events/w"}, schema("ad", "place"), schema("ad", "place"))
    with pytest.raises(
        CheckpointError, match=r"attributes .* from \(clicks.ad, clicks.place\) to \(clicks.place, clicks.ad\)"
    ):
        check_positions({"attributes": "events/w"}, schema("ad", "place"), schema("place", "ad"))


def test_what_a_run_knows_without_its_optimizer(tmp_path):
    """For who scores: the program has no optimizer, or another one, and nothing of the old one is read."""
    trained = FakeProgram(mesh=make_mesh(2, 4))
    checkpoints = saved(tmp_path, trained, 3, 7)
    shutil.rmtree(tmp_path / "7" / "manifest")
    scoring = FakeProgram(optimizer=False)
    said, asked = [], []

    def program_of(manifest):
        asked.append(manifest.step)
        return scoring

    program, restored = restore_values(checkpoints, program_of, said.append)
    assert program is scoring and restored.manifest.step == 3 and asked == [3] and len(said) == 1
    expected = trained.numbers(3)
    for name, x in restored.state.items():
        if name in ("step", "key", "optimizer/count"):
            assert not np.asarray(x).any(), name
        else:
            assert np.asarray(x).tobytes() == expected[name].tobytes(), name
    assert not any(name.endswith(("/mu", "/accumulator")) for name in restored.state)
    assert scoring.inits == []
    with pytest.raises(CheckpointError, match="there is no whole checkpoint in"):
        restore_values(checkpoints, program_of, said.append, step=7)
    fewer = FakeProgram(optimizer=False, tables={"ad": 64})
    with pytest.raises(CheckpointError, match="tables/user/weight.* is in the checkpoint and not in the model"):
        restore_values(checkpoints, lambda manifest: fewer, said.append)

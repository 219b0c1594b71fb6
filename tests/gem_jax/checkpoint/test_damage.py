"""Damage of every kind: the checkpoint before is taken, or one sentence ends the run; no traceback, no wrong number."""

import json
import pathlib
import shutil
import threading

import jax
import numpy as np
import pytest

from gem_jax.checkpoint.checkpoints import Checkpoints
from gem_jax.checkpoint.errors import CheckpointError
from gem_jax.checkpoint.restore import init_from, restore
from gem_jax.parallel.mesh import make_mesh
from tests.gem_jax.checkpoint.fake import FakeProgram, assert_same, save, saved

PROGRAM = FakeProgram(mesh=make_mesh(2, 4))
OLD, NEW = 5, 7


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("run")
    saved(folder, PROGRAM, OLD, NEW)
    return folder


def flip(byte: float, bit: int):
    def flipped(path: pathlib.Path) -> None:
        data = bytearray(path.read_bytes())
        if data:
            data[min(int(byte * len(data)), len(data) - 1)] ^= 1 << bit
        path.write_bytes(data)

    return flipped


def cut(share: float):
    def shortened(path: pathlib.Path) -> None:
        path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])

    return shortened


def emptied(path: pathlib.Path) -> None:
    shutil.rmtree(path)
    path.mkdir()


def a_file_instead(path: pathlib.Path) -> None:
    shutil.rmtree(path)
    path.write_text("rubbish")


FILE_WAYS = {
    f"bit {bit} at {byte:.0%}": flip(byte, bit) for byte in (0, 0.1, 0.3, 0.5, 0.7, 0.9, 1) for bit in (0, 6)
} | {
    "half": cut(0.5),
    "but a byte": cut(0.999),
    "nothing left": cut(0),
    "gone": pathlib.Path.unlink,
}
FOLDER_WAYS = {"removed": shutil.rmtree, "emptied": emptied, "a file instead": a_file_instead}


def ways(step: pathlib.Path):
    """(name, damage to a copy of the run's folder) for each file and folder of the checkpoint."""
    for path in sorted((step, *step.rglob("*"))):
        inner = path.relative_to(step.parent)
        for name, damage in (FOLDER_WAYS if path.is_dir() else FILE_WAYS).items():
            yield f"{inner}: {name}", lambda run, inner=inner, damage=damage: damage(run / inner)


def outcome(run: pathlib.Path, capfd) -> str:
    """Restores, and proves that what came back is right."""
    said: list[str] = []
    there = (run / str(NEW)).exists()
    before = set(threading.enumerate())
    try:
        restored = restore(Checkpoints(run), PROGRAM, said.append)
    except CheckpointError as error:
        assert "\n" not in str(error) and len(str(error)) < 500
        return "refused"
    assert restored.manifest.step in (OLD, NEW)
    assert_same(restored.state, PROGRAM.numbers(restored.manifest.step))
    assert not set(threading.enumerate()) - before, "threads were left"
    shown = "".join(capfd.readouterr())
    assert "Traceback" not in shown and "never retrieved" not in shown, shown
    if restored.manifest.step == NEW:
        assert not said and (run / str(NEW)).is_dir()
        return "harmless"
    assert len(said) == there  # of a folder that is gone nothing is known
    assert not there or "\n" not in said[0] and f"{run}/{NEW} is damaged: " in said[0]
    assert not (run / str(NEW)).exists()
    return "older"


def damaged(whole, folder, damage, capfd) -> str:
    run = folder / "run"
    shutil.rmtree(run, ignore_errors=True)
    shutil.copytree(whole, run)
    damage(run)
    return outcome(run, capfd)


def run_through(whole, tmp_path, capfd, every: int) -> dict[str, str]:
    return {
        name: damaged(whole, tmp_path, damage, capfd)
        for i, (name, damage) in enumerate(ways(whole / str(NEW)))
        if i % every == 0
    }


def test_a_sample_of_damages(whole, tmp_path, capfd):
    outcomes = run_through(whole, tmp_path, capfd, every=7)
    assert len(outcomes) >= 30
    assert {"older", "harmless"} >= set(outcomes.values()) and list(outcomes.values()).count("older") >= 8, outcomes


@pytest.mark.slow
def test_all_damages(whole, tmp_path, capfd):
    outcomes = run_through(whole, tmp_path, capfd, every=1)
    assert len(outcomes) >= 200
    assert {"older", "harmless"} >= set(outcomes.values()), outcomes
    needed = (
        "7/manifest/metadata",
        "7/arrays/d/",
        "7/arrays/manifest.ocdbt",
        "7/arrays:",
    )  # the rest is Orbax's own affair
    assert not [name for name, found in outcomes.items() if name.startswith(needed) and found != "older"]
    assert list(outcomes.values()).count("older") >= 70, outcomes


def test_every_bit_of_a_part_of_the_numbers(whole, tmp_path, capfd):
    """In the files that hold the arrays, where nothing but a checksum finds it: never another number."""
    data = max((p for p in (whole / str(NEW) / "arrays").rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    assert (
        data.stat().st_size > 2_000
    )  # a shard's numbers, whose bits do not compress; how many share a file is a matter of timing
    inner = data.relative_to(whole)
    outcomes = [damaged(whole, tmp_path, lambda run, i=i: flip(i / 24, i % 8)(run / inner), capfd) for i in range(24)]
    assert outcomes.count("older") >= 16, outcomes  # the rest are bytes that nothing refers to


def edited(run: pathlib.Path, edit) -> None:
    path = run / str(NEW) / "manifest" / "metadata"
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


EDITS = {
    "step": lambda m: m.update(step=OLD),
    "format": lambda m: m.update(format=2),
    "position": lambda m: m["position"]["loader"].update(position=97),
    "seed": lambda m: m["config"]["train"].update(seed=4),
    "a shape": lambda m: m["arrays"]["tables/ad/weight"].update(shape=[32, 4]),
    "a dtype": lambda m: m["arrays"]["step"].update(dtype="uint32"),
    "a checksum": lambda m: m["arrays"]["step"].update(checksum="0" * 16),
    "names exchanged": lambda m: m["arrays"]["base_logits"]["axes"][0].reverse(),
    "an array less": lambda m: m["arrays"].pop("step"),
    "the manifest's checksum": lambda m: m.update(checksum="0"),
    "no checksum": lambda m: m.pop("checksum"),
}


@pytest.mark.parametrize("edit", EDITS)
def test_edited_numbers_are_found(whole, tmp_path, capfd, edit):
    assert damaged(whole, tmp_path, lambda run: edited(run, EDITS[edit]), capfd) == "older"


def test_another_checkpoints_folder_under_its_name(whole, tmp_path, capfd):
    def exchange(run):
        shutil.rmtree(run / str(NEW))
        shutil.copytree(run / str(OLD), run / str(NEW))

    assert damaged(whole, tmp_path, exchange, capfd) == "older"


def test_arrays_of_another_checkpoint(whole, tmp_path, capfd):
    def exchange(run):
        shutil.rmtree(run / str(NEW) / "arrays")
        shutil.copytree(run / str(OLD) / "arrays", run / str(NEW) / "arrays")

    assert damaged(whole, tmp_path, exchange, capfd) == "older"


def stray(name: str, rubbish: bool):
    def made(run: pathlib.Path) -> None:
        (run / name).mkdir()
        if rubbish:
            (run / name / "arrays").mkdir()
            (run / name / "arrays" / "_METADATA").write_text("rubbish")
            (run / name / "notes.txt").write_text("mine")

    return made


@pytest.mark.parametrize("rubbish", [False, True])
@pytest.mark.parametrize("name", ["999", "6", "007", "notes", "7.orbax-checkpoint-tmp", "-3", "1e3", "٣"])
def test_stray_folders(whole, tmp_path, name, rubbish):
    """None is taken as the newest; none stops a save or counts among what is kept."""
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    stray(name, rubbish)(run)
    checkpoints = Checkpoints(run, keep=2)
    assert checkpoints.steps() == [OLD, NEW]
    said: list[str] = []
    assert_same(restore(checkpoints, PROGRAM, said.append).state, PROGRAM.numbers(NEW))
    assert len(said) == (name == "999")

    stray(name, rubbish)(run) if not (run / name).exists() else None
    state = PROGRAM.init(8)
    for step in (8, 999):
        save(checkpoints, PROGRAM, state, step)
    checkpoints.close()
    assert checkpoints.steps() == [8, 999]
    assert_same(restore(checkpoints, PROGRAM, said.append).state, PROGRAM.numbers(8))


def test_a_stray_file_with_a_steps_name(whole, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    (run / "8").write_text("mine")
    checkpoints = Checkpoints(run)
    state = PROGRAM.init(8)
    save(checkpoints, PROGRAM, state, 8)
    checkpoints.close()
    assert checkpoints.steps() == [NEW, 8] and (run / "damaged-8").read_text() == "mine"


def test_none_left_is_one_sentence_and_the_steps_can_be_saved_again(whole, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    for step in (OLD, NEW):
        shutil.rmtree(run / str(step) / "arrays")
    checkpoints, said = Checkpoints(run), []
    with pytest.raises(CheckpointError, match="there is no whole checkpoint in .*run; name another run's, or start"):
        restore(checkpoints, PROGRAM, said.append)
    assert ["going back" in line for line in said] == [True, False]
    assert {p.name for p in run.iterdir()} == {f"damaged-{OLD}", f"damaged-{NEW}"}
    state = PROGRAM.init(NEW)
    save(checkpoints, PROGRAM, state, NEW)
    checkpoints.close()
    assert_same(restore(checkpoints, PROGRAM, said.append).state, PROGRAM.numbers(NEW))


def test_who_only_reads_moves_nothing(whole, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    shutil.rmtree(run / str(NEW) / "arrays")
    said: list[str] = []
    for read in (
        lambda: restore(Checkpoints(run), PROGRAM, said.append, set_aside=False),
        lambda: init_from(Checkpoints(run), PROGRAM, PROGRAM.init(1), say=said.append),
    ):
        assert read().manifest.step == OLD
        assert {p.name for p in run.iterdir()} == {str(OLD), str(NEW)}
    assert len(said) == 2 and not any("moved" in line for line in said)


def test_format_0_is_refused_by_name(tmp_path):
    (tmp_path / "9" / "state").mkdir(parents=True)
    (tmp_path / "9" / "position").mkdir()
    with pytest.raises(CheckpointError, match="checkpoint .*/9 is of format 0, .*; train anew, or go on with"):
        restore(Checkpoints(tmp_path), PROGRAM, pytest.fail)


def test_a_failure_in_another_process_is_damage_too(whole, tmp_path, monkeypatch):
    """All processes go back together, though only one of them saw it: the second question here is the arrays'."""
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    answers = iter([False, True])
    monkeypatch.setattr("gem_jax.checkpoint.restore.any_process", lambda flag: next(answers, flag))
    said: list[str] = []
    assert restore(Checkpoints(run), PROGRAM, said.append).manifest.step == OLD
    assert "another process could not read it" in said[0]


def test_numbers_that_change_on_their_way_to_the_devices(whole, tmp_path, monkeypatch):
    """What is verified is what arrived."""
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    read = Checkpoints.read

    def flipped(self, step, wanted):
        arrays = read(self, step, wanted)
        if step == NEW:
            x = np.array(arrays["base_logits"])
            x.view(np.uint32)[1] ^= 1
            arrays["base_logits"] = jax.device_put(x, arrays["base_logits"].sharding)
        return arrays

    monkeypatch.setattr(Checkpoints, "read", flipped)
    said: list[str] = []
    assert restore(Checkpoints(run), PROGRAM, said.append).manifest.step == OLD
    assert "the numbers of array 'base_logits' were changed: their checksum differs" in said[0]


@pytest.mark.parametrize("error", [MemoryError(), jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")])
def test_no_room_is_no_damage(whole, tmp_path, monkeypatch, error):
    """A checkpoint that does not fit into memory is not set aside."""
    from orbax.checkpoint.type_handlers import ArrayHandler

    async def full(*args):
        raise error

    run = tmp_path / "run"
    shutil.copytree(whole, run)
    monkeypatch.setattr(ArrayHandler, "deserialize", full)
    with pytest.raises(type(error)):
        restore(Checkpoints(run), PROGRAM, pytest.fail)
    assert Checkpoints(run).steps() == [OLD, NEW]

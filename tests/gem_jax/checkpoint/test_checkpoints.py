"""Saving: in the background, the newest kept, a step once, and a full disk told by the next save."""

import jax
import numpy as np
import pytest

from gem_jax.checkpoint import store
from gem_jax.checkpoint.checkpoints import Checkpoints, snapshot
from gem_jax.checkpoint.errors import CheckpointError
from gem_jax.checkpoint.restore import restore
from gem_jax.parallel.mesh import make_mesh
from tests.gem_jax.checkpoint.fake import FakeProgram, assert_same, save, saved

PROGRAM = FakeProgram(mesh=make_mesh(2, 4))


@pytest.mark.parametrize(("keep", "left"), [(1, [9]), (2, [5, 9]), (3, [3, 5, 9])])
def test_the_newest_are_kept(tmp_path, keep, left):
    checkpoints = saved(tmp_path / "checkpoints", PROGRAM, 1, 3, 5, 9, keep=keep)
    assert checkpoints.steps() == left
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == [str(step) for step in left]


def test_no_folder_is_no_checkpoint(tmp_path):
    checkpoints = Checkpoints(tmp_path / "none")
    assert checkpoints.steps() == checkpoints.candidates() == []
    with pytest.raises(CheckpointError, match="there is no whole checkpoint in .*none; name another run's, or start"):
        restore(checkpoints, PROGRAM, pytest.fail)
    checkpoints.close()
    assert not (tmp_path / "none").exists()


def test_a_step_is_saved_once(tmp_path):
    checkpoints = saved(tmp_path, PROGRAM, 7)
    other = PROGRAM.init(8)
    save(checkpoints, PROGRAM, other, 7)
    checkpoints.close()
    assert_same(restore(checkpoints, PROGRAM, pytest.fail).state, PROGRAM.numbers(7))


def test_the_state_may_be_given_away_once_save_returns(tmp_path):
    """As a train step does that donates its state."""
    checkpoints = Checkpoints(tmp_path)
    state = PROGRAM.init(7)
    save(checkpoints, PROGRAM, state, 7)
    for x in state.values():
        x.delete()
    checkpoints.close()
    assert_same(restore(checkpoints, PROGRAM, pytest.fail).state, PROGRAM.numbers(7))


def test_saves_go_on_after_a_close(tmp_path):
    checkpoints = saved(tmp_path, PROGRAM, 1)
    state = PROGRAM.init(2)
    save(checkpoints, PROGRAM, state, 2)
    checkpoints.wait()
    assert checkpoints.steps() == [1, 2]
    checkpoints.close()


def test_what_an_interrupted_save_left_is_cleared(tmp_path):
    (tmp_path / "3.orbax-checkpoint-tmp").mkdir(parents=True)
    (tmp_path / "removed-1").mkdir()
    saved(tmp_path, PROGRAM, 7)
    assert [p.name for p in tmp_path.iterdir()] == ["7"]


def test_empty_arrays_come_back(tmp_path):
    program = FakeProgram(dense=(), cut=jax.P())
    checkpoints = saved(tmp_path, program, 7)
    state = restore(checkpoints, program, pytest.fail).state
    assert state["dense/bottom/kernel/value"].shape == (0, 4)
    assert_same(state, program.numbers(7))


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    checkpoints = Checkpoints(tmp_path / "file" / "checkpoints")
    state = PROGRAM.init(7)
    with pytest.raises(
        CheckpointError, match="checkpoint .*/7 could not be written .*; see to space and rights in"
    ) as error:
        save(checkpoints, PROGRAM, state, 7)
    assert "\n" not in str(error.value)
    checkpoints.close()


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), ValueError("RESOURCE_EXHAUSTED: writing /a/b")]
)
def test_a_full_disk_in_the_background_is_told_by_the_next_call(tmp_path, monkeypatch, error):
    wait = store.Writer.wait

    def full(self):
        wait(self)
        raise error

    checkpoints = Checkpoints(tmp_path)
    state = PROGRAM.init(7)
    save(checkpoints, PROGRAM, state, 7)
    with monkeypatch.context() as patch:
        patch.setattr(store.Writer, "wait", full)
        with pytest.raises(CheckpointError, match="checkpoint .*/7 could not be written"):
            save(checkpoints, PROGRAM, state, 8)
    save(checkpoints, PROGRAM, state, 9)  # another try once there is room
    checkpoints.close()
    assert checkpoints.steps() == [7, 9]


def test_a_bug_in_the_background_keeps_its_traceback(tmp_path, monkeypatch):
    wait = store.Writer.wait

    def bug(self):
        wait(self)
        raise ValueError("shapes differ")

    checkpoints = Checkpoints(tmp_path)
    state = PROGRAM.init(7)
    save(checkpoints, PROGRAM, state, 7)
    monkeypatch.setattr(store.Writer, "wait", bug)
    with pytest.raises(ValueError, match="shapes differ") as error:
        checkpoints.close()
    assert not isinstance(error.value, CheckpointError)


def test_a_write_that_fails_in_orbax_itself(tmp_path, monkeypatch):
    """The failure of a thread of Orbax, not of a stand-in for it."""
    from orbax.checkpoint import JsonCheckpointHandler

    async def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    checkpoints = Checkpoints(tmp_path)
    state = PROGRAM.init(7)
    monkeypatch.setattr(JsonCheckpointHandler, "async_save", full)
    with pytest.raises(CheckpointError, match="could not be written .*No space left on device"):
        save(checkpoints, PROGRAM, state, 7)
        checkpoints.wait()
    assert checkpoints.steps() == []
    monkeypatch.undo()
    save(checkpoints, PROGRAM, state, 7)
    checkpoints.close()
    assert checkpoints.steps() == [7] and len(list(tmp_path.iterdir())) == 1


def test_what_is_saved_must_be_what_was_specified():
    state = PROGRAM.init(7)
    state["step"] = state["step"].astype(np.float32)
    with pytest.raises(AssertionError, match="step"):
        snapshot(PROGRAM, state, step=7, data={}, position={})

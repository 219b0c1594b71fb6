"""Checkpoints: what comes back is what was saved, to the bit; what cannot come back says why."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gem_jax.embedding.touched_rows import TableState
from gem_jax.models import DLRMConfig, LogisticRegressionConfig
from gem_jax.checkpoint.checkpoint import Checkpointer, CheckpointError, write_json
from gem_jax.training.optimizer import OptimizerConfig
from gem_jax.checkpoint.run_folder import new_run_folder, newest_run_folder
from gem_jax.training.state import TrainState, init_state
from tests.gem_jax.models.batches import FULL

MODEL = LogisticRegressionConfig()


def make_state(model=MODEL, seed: int = 0, step: int = 0) -> TrainState:
    _, state = init_state(model, FULL, OptimizerConfig(), seed=seed, base_logits=np.float32([-1, 2]))
    return dataclasses.replace(state, step=jnp.int32(step))


def numbers(state: TrainState) -> list[np.ndarray]:
    """Every array of the state; the random key as its numbers."""
    return [np.asarray(x) for x in jax.tree.leaves(dataclasses.replace(state, key=jax.random.key_data(state.key)))]


def test_what_was_saved_comes_back(tmp_path):
    state = make_state(seed=5, step=7)
    tables = state.tables["rows"]
    subnormal = dataclasses.replace(tables, accumulator=tables.accumulator.at[3].set(jnp.float32(1e-42)))
    state = dataclasses.replace(state, tables={"rows": subnormal})
    position = {"loader": {"position": 96, "seed": None}, "progress": {"step": 7, "seconds": 0.1 + 0.2}}
    checkpointer = Checkpointer(tmp_path)
    checkpointer.save(state, position)
    checkpointer.close()

    other = Checkpointer(tmp_path)
    restored, restored_position = other.restore(make_state(seed=6))
    other.close()
    assert restored_position == position
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    for actual, expected in zip(numbers(restored), numbers(state), strict=True):
        assert actual.dtype == expected.dtype
        np.testing.assert_array_equal(actual, expected)
    drawn = [jax.random.bits(jax.random.fold_in(s.key, 3)) for s in (restored, state)]
    assert drawn[0] == drawn[1]


def test_the_newest_two_are_kept_and_the_newest_is_restored(tmp_path):
    checkpointer = Checkpointer(tmp_path)
    for step in (3, 5, 9):
        checkpointer.save(make_state(step=step), {"step": step})
    checkpointer.save(make_state(seed=1, step=9), {"step": "not again"})
    assert checkpointer.latest_step() == 9
    state, position = checkpointer.restore(make_state())
    checkpointer.close()
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["5", "9"]
    assert (int(state.step), position) == (9, {"step": 9})


@pytest.mark.parametrize(
    "model",
    [DLRMConfig(embedding_dim=4, bottom_hidden=(4,), top_hidden=(4,)), DLRMConfig(embedding_dim=2, top_hidden=())],
    ids=["other widths", "other names"],
)
def test_another_model_is_refused_in_one_sentence(tmp_path, model):
    checkpointer = Checkpointer(tmp_path)
    checkpointer.save(make_state(), {})
    with pytest.raises(CheckpointError, match="does not fit the configured model.*resume with the config") as error:
        checkpointer.restore(make_state(model))
    checkpointer.close()
    assert "\n" not in str(error.value) and len(str(error.value)) < 500
    assert str(tmp_path / "checkpoints" / "0") in str(error.value)


def test_another_table_size_is_refused(tmp_path):
    checkpointer = Checkpointer(tmp_path)
    checkpointer.save(make_state(), {})
    like = make_state()
    larger = dataclasses.replace(
        like, tables={"rows": TableState(weight=jnp.zeros((100, 2)), accumulator=jnp.zeros(100))}
    )
    with pytest.raises(
        CheckpointError, match=r"'tables/rows/accumulator' is \(77,\) in the checkpoint and \(100,\) in the model"
    ):
        checkpointer.restore(larger)
    checkpointer.close()


def test_a_broken_checkpoint_is_refused(tmp_path):
    checkpointer = Checkpointer(tmp_path)
    checkpointer.save(make_state(), {})
    checkpointer.close()
    (tmp_path / "checkpoints" / "0" / "position" / "metadata").write_text("{")
    checkpointer = Checkpointer(tmp_path)
    with pytest.raises(CheckpointError, match="checkpoints/0 cannot be read .*; remove it to resume from") as error:
        checkpointer.restore(make_state())
    checkpointer.close()
    assert "\n" not in str(error.value)


def test_no_checkpoint_is_said(tmp_path):
    checkpointer = Checkpointer(tmp_path)
    assert checkpointer.latest_step() is None
    with pytest.raises(CheckpointError, match="no checkpoint in .*checkpoints; start without --resume"):
        checkpointer.restore(make_state())
    checkpointer.close()


def test_run_folders_are_numbered(tmp_path):
    with pytest.raises(CheckpointError, match="there is no run '.*gem' to resume; start it without --resume"):
        newest_run_folder(str(tmp_path), "gem")
    for expected in ("gem", "gem-2", "gem-3"):
        folder = new_run_folder(str(tmp_path), "gem")
        assert folder == tmp_path / expected and not folder.exists()
        folder.mkdir()
        assert newest_run_folder(str(tmp_path), "gem") == folder


def test_json_is_strict_and_replaced_whole(tmp_path):
    path = tmp_path / "summary.json"
    write_json(path, {"a": [1, None]})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, {"a": float("nan")})
    assert json.loads(path.read_text()) == {"a": [1, None]}
    assert [p.name for p in tmp_path.iterdir()] == ["summary.json"]

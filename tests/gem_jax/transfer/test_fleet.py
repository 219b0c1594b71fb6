"""A whole transfer of a minute: every recipe, killed on the way and gone on with, and what its rows say."""

import dataclasses
import pathlib
import signal
from typing import Any

import numpy as np
import pytest

import gem_jax.train as train_module
from gem_jax.config import Config, from_dict, load, to_dict
from gem_jax.data.subset import SubsetConfig
from gem_jax.errors import UserError
from gem_jax.models import DLRMConfig
from gem_jax.models.outputs import serving_model
from gem_jax.train import Options
from gem_jax.training.objective import MultiTaskConfig
from gem_jax.transfer import __main__ as command
from gem_jax.transfer import stages
from gem_jax.transfer.config import Strength, TransferConfig
from gem_jax.transfer.distill import DistilledConfig
from gem_jax.transfer.fleet import matching
from gem_jax.transfer.labels import LabelStore
from gem_jax.transfer.manifest import EmbeddingConfig
from gem_jax.transfer.recipes import Taught, student_run
from gem_jax.transfer.table import markdown
from tests.gem_jax.transfer.small import NUM_TEST, NUM_TRAIN, Data, config_of

CONFIGS = pathlib.Path(__file__).parents[3] / "configs" / "transfer"
MODEL = DLRMConfig(embedding_dim=4, bottom_hidden=(4,), top_hidden=(6,))


def transfer_of(tmp_path, **fields) -> TransferConfig:
    small = config_of(tmp_path)
    shown = SubsetConfig(data=Data(), without_sequences=("clicks",))
    of_feed = dataclasses.replace(shown, domains=("feed",))
    strength = Strength(embedding=EmbeddingConfig(representation="last", dim=4), hidden=(4,), adapter_hidden=(3,))
    given: dict[str, Any] = {
        "name": "small",
        "teacher": small,
        "students": {"all": small.replace(data=shown, model=MODEL), "feed": small.replace(data=of_feed, model=MODEL)},
        "domain_models": {"feed": small.replace(data=SubsetConfig(data=Data(), domains=("feed",)))},
        "seeds": (0,),
        "strength": strength,
        "runs_dir": str(tmp_path),
    }
    return TransferConfig(**(given | fields))


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.py")), ids=lambda p: p.stem)
def test_every_config_loads(path):
    config = load(path, kind=TransferConfig)
    assert f"python -m gem_jax.transfer configs/transfer/{path.name}" in path.read_text()
    for run in (config.teacher, *config.students.values(), *config.domain_models.values()):
        assert from_dict(to_dict(run)) == run
        assert run.model.embedding_dim == config.teacher.model.embedding_dim  # or no table could be shared
    assert load(path, ["seeds=0", "recipes=kd,full", "strength.kd_weight=2"], TransferConfig).seeds == (0,)


def test_recipes(tmp_path):
    config, strength = transfer_of(tmp_path), Strength(frozen=("tables/ad",), kd_weight=0.7)
    student, by = config.students["all"], Taught(run="r", labels="l")
    made = {r: student_run(student, r, strength, by) for r in config.all_recipes()}
    assert made["scratch"][0] == student
    assert made["kd"][0].model == MODEL and made["kd"][0].objective.serving_weight == 0.7
    assert made["representation"][0].objective == MultiTaskConfig()
    for recipe, (of_recipe, options) in made.items():
        own: Config = of_recipe
        is_sharing = recipe in ("sharing", "full", "stale_full", "hierarchical")
        assert (options.init_from == "r") == is_sharing == ("frozen" in own.optimizer.group_rates)
        assert serving_model(own.model) == MODEL
        reads = getattr(own.data, "embedding", None)
        assert (reads == "history") == (recipe in ("representation", "full", "stale_full", "hierarchical"))
        assert isinstance(own.model, DistilledConfig) == (
            recipe in ("auxiliary", "adapter", "full", "stale_full", "hierarchical")
        )
    assert made["auxiliary"][0].model.adapter_hidden == () and made["adapter"][0].model.adapter_hidden == (16,)


@pytest.mark.slow
def test_a_whole_transfer_that_is_killed_on_the_way(tmp_path, monkeypatch):
    config = transfer_of(tmp_path, results=str(tmp_path / "rows.json"))
    trained = []

    def dies(config, options, **rest):
        if len(trained) == 4:
            trained.append("killed")
            raise KeyboardInterrupt
        trained.append(config.name)
        return train_module.train(config, options, **rest)

    monkeypatch.setattr(stages, "train", dies)
    with pytest.raises(KeyboardInterrupt):
        command.transfer(config, "first")
    rows = command.transfer(config, "second")
    trained.remove("killed")
    assert (
        len(trained) == len(set(trained)) == 22
    )  # 2 teachers, 9 and 10 recipes, the domain's model: none of them twice
    rows_again = command.transfer(config, "second")
    without_commit = [[{**row, "commit": None} for row in some] for some in (rows, rows_again)]
    assert without_commit[0] == without_commit[1] and len(trained) == 22

    recipes = {(row["student"], row["recipe"]) for row in rows}
    assert len(recipes) == 19 and ("feed", "hierarchical") in recipes
    assert {row["domain"] for row in rows if row["student"] == "all"} == {"all", "feed", "reels", "stories"}
    assert {row["domain"] for row in rows if row["student"] == "feed"} == {"all"}
    for row in rows:
        if row["recipe"] == "scratch":
            assert row["ne"] == row["ne_scratch"] and row["gain"] in (0, None)
        if row["gain"] is not None:  # of a domain of a few examples
            assert row["gain"] == pytest.approx(row["ne_scratch"] - row["ne"], abs=1e-12)
        if row["eta"] is not None:
            assert row["eta"] == pytest.approx(row["gain"] / (row["ne_scratch"] - row["ne_teacher"]), rel=1e-9)
    table = markdown(rows)
    assert "| all | click | all | full |" in table and "| feed | conversion | all | hierarchical |" in table

    other = dataclasses.replace(config, strength=dataclasses.replace(config.strength, kd_weight=2.0))
    with pytest.raises(UserError, match="all.kd.0 was trained with another objective.serving_weight"):
        command.transfer(other, "third")


def test_a_teacher_that_is_stopped_goes_on_and_labels_every_example_once(tmp_path, monkeypatch):
    options, lines = [], []

    def stops(config, given, **rest):
        options.append(given)
        if not given.resume:
            step, seen = rest["observer"].step, []

            def step_and_stop(*args):
                step(*args)
                seen.append(None)
                if len(seen) == 4:
                    signal.raise_signal(signal.SIGINT)

            rest["observer"].step = step_and_stop
        return train_module.train(config, given, **rest)

    monkeypatch.setattr(stages, "train", stops)
    labels, embedding = tmp_path / "labels", EmbeddingConfig(representation="last", dim=4)
    given = (config_of(tmp_path), Options(), labels, embedding, lines.append)
    with pytest.raises(KeyboardInterrupt):
        stages.taught_while_training(*given)
    stage = stages.taught_while_training(*given)
    assert lines == ["teacher: begins", "teacher: goes on"] and [o.resume for o in options] == [False, True]
    store = LabelStore(labels)
    assert len(store) == NUM_TRAIN + NUM_TEST and store.manifest.passes["train"].examples == NUM_TRAIN
    assert set(stage.scores["click"].example_id) <= set(store.example_id)
    assert stages.taught_while_training(*given).summary == stage.summary and len(options) == 2


def test_matching():
    from tests.gem_jax.transfer.test_eta import NUM, four

    scores = four()[0]
    found = matching(scores.select(np.random.default_rng(0).permutation(NUM)), np.array([7, 3, 11]))
    np.testing.assert_array_equal(found.example_id, [3, 7, 11])
    with pytest.raises(AssertionError):
        matching(scores, np.array([NUM]))


def test_errors(tmp_path):
    with pytest.raises(UserError, match="students is empty"):
        transfer_of(tmp_path, students={}, domain_models={})
    with pytest.raises(UserError, match="must be some different numbers"):
        transfer_of(tmp_path, seeds=(1, 1))
    with pytest.raises(UserError, match="domain_models names 'web'"):
        transfer_of(tmp_path, domain_models={"web": config_of(tmp_path)})
    with pytest.raises(UserError, match="'hierarchical' needs a model"):
        transfer_of(tmp_path, domain_models={})

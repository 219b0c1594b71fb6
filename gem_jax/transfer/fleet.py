"""A transfer from its beginning to its rows: teachers, their labels, and every student by every recipe."""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from gem_jax.config import Config
from gem_jax.data.subset import SubsetConfig
from gem_jax.evaluation.metrics import ne
from gem_jax.evaluation.paired import differences
from gem_jax.evaluation.scores import Scores
from gem_jax.files import commit
from gem_jax.train import Options
from gem_jax.transfer import eta as measures
from gem_jax.transfer.config import Recipe, TransferConfig
from gem_jax.transfer.recipes import Taught, student_run
from gem_jax.transfer.stages import Say, Stage, taught_afterwards, taught_while_training, trained

EVERYWHERE = "all"
"""What a row calls the examples of all domains together."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Found:
    """A student's run, and whose it is compared with.

    Attributes:
      student: its name.
      recipe: how it learned.
      seed: of the run.
      stage: the run.
      scratch: the same student's without a teacher.
      teacher: who taught it; for scratch the teacher that it could have had.
      kd: the same student's with plain distillation from the same teacher; None where it was not trained.
      fresh: for a stale recipe the student and the teacher of the same recipe that is not; None where it was not trained.
      domains: of the data, in the schema's order.
    """

    student: str
    recipe: Recipe
    seed: int
    stage: Stage
    scratch: Stage
    teacher: Stage
    kd: Stage | None
    fresh: tuple[Stage, Stage] | None
    domains: tuple[str, ...]


class Fleet:
    """All stages of a transfer, made as they are asked for.

    Args:
      config: of the transfer.
      say: takes a line for the user.
    """

    def __init__(self, config: TransferConfig, say: Say):
        self.config, self.say = config, say
        self._folder = pathlib.Path(config.folder)

    def students(self) -> Iterator[Found]:
        """Every student of every seed by every recipe, scratch first.

        Raises:
          UserError: a config or its data is wrong, or a stage was finished with another config.
          KeyboardInterrupt: a run was stopped; called again, it goes on.
        """
        for seed in self.config.seeds:
            for student in self.config.students:
                stages: dict[str, Stage] = {}
                teachers: dict[str, Stage] = {}
                for recipe in self.config.all_recipes():
                    if recipe == "hierarchical" and student not in self.config.domain_models:
                        continue
                    teachers[recipe], by = self._teacher_of(student, recipe, seed)
                    stages[recipe] = self._student(student, recipe, seed, by)
                    is_stale, fresh = recipe.startswith("stale"), recipe.removeprefix("stale_")
                    yield Found(
                        student=student,
                        recipe=recipe,
                        seed=seed,
                        stage=stages[recipe],
                        scratch=stages["scratch"],
                        teacher=teachers[recipe],
                        kd=stages.get("stale_kd" if is_stale else "kd"),
                        fresh=(stages[fresh], teachers[fresh]) if is_stale and fresh in stages else None,
                        domains=self.config.students[student].data.schema().domains,
                    )

    def _student(self, student: str, recipe: Recipe, seed: int, by: Taught) -> Stage:
        config, options = student_run(self.config.students[student], recipe, self.config.strength, by)
        return trained(self._named(config, f"{student}.{recipe}", seed), options, self.say)

    def _teacher_of(self, student: str, recipe: Recipe, seed: int) -> tuple[Stage, Taught]:
        """Who teaches the student by a recipe, trained and with its labels written."""
        teacher, embedding = self.config.teacher, self.config.strength.embedding
        fresh = self._named(teacher, "teacher", seed)
        if recipe.startswith("stale"):
            name, first = "stale_teacher", self.config.stale_examples
            first = len(teacher.data.build().train) // 2 if first is None else first
            stale = self._named(teacher.replace(data=SubsetConfig(data=teacher.data, first=first)), name, seed)
            stage = taught_afterwards(stale, fresh, self._labels(name, seed), embedding, self.say)
            return stage, self._taught(stage, name, seed)
        stage = taught_while_training(fresh, Options(), self._labels("teacher", seed), embedding, self.say)
        by = self._taught(stage, "teacher", seed)
        if recipe != "hierarchical":
            return stage, by
        name = f"{student}.domain"
        config, options = student_run(self.config.domain_models[student], "full", self.config.strength, by)
        config = self._named(config, name, seed)
        middle = taught_while_training(config, options, self._labels(name, seed), embedding, self.say)
        return stage, self._taught(middle, name, seed)

    def _taught(self, stage: Stage, name: str, seed: int) -> Taught:
        return Taught(run=str(stage.run_dir), labels=str(self._labels(name, seed)))

    def _labels(self, name: str, seed: int) -> pathlib.Path:
        return self._folder / "labels" / f"{name}.{seed}"

    def _named(self, config: Config, name: str, seed: int) -> Config:
        train = dataclasses.replace(config.train, seed=seed)
        return config.replace(name=f"{name}.{seed}", train=train, runs_dir=str(self._folder))


def rows_of(found: Found, command: str) -> list[dict[str, Any]]:
    """A row for each task and domain of a student's run, and for all domains together; JSON-able.

    `eta` is measured by the teacher that taught the student (for hierarchical by the one at the top), `gain_over_kd` by plain
    distillation from that teacher; both are None where what they are measured by is not clearly better than scratch. `gain` is the
    NE of scratch less the student's. `transfer_ratio`, of stale recipes, is what the step from the stale teacher to the fresh one
    is worth to the student (`eta.transfer_ratio`). Each `_se` is a standard error over the draw of the test examples, in pairs.
    """
    rows = []
    for task, own in found.stage.scores.items():
        others = {
            name: None if stage is None else matching(stage.scores[task], own.example_id)
            for name, stage in _others(found).items()
        }
        for domain, selected in _domains(own, found.domains):
            rows.append(
                {
                    "data": _data(found.stage),
                    "recipe": found.recipe,
                    "student": found.student,
                    "seed": found.seed,
                    "domain": domain,
                    "task": task,
                    **_measured(selected(own), {n: None if s is None else selected(s) for n, s in others.items()}),
                    "device": found.stage.summary["device"],
                    "jax": found.stage.summary["jax"],
                    "commit": commit(),
                    "command": command,
                }
            )
    return rows


def _others(found: Found) -> dict[str, Stage | None]:
    """Whose scores a student's are measured by."""
    student, teacher = found.fresh or (None, None)
    return {
        "scratch": found.scratch,
        "teacher": found.teacher,
        "kd": found.kd,
        "fresh": student,
        "fresh_teacher": teacher,
    }


def _measured(own: Scores, others: dict[str, Scores | None]) -> dict[str, Any]:
    """The measures of a row; `others`: by the names of `_others`, on the same examples."""
    scratch, teacher, kd, fresh, fresh_teacher = others.values()
    assert scratch is not None and teacher is not None
    gain = (differences(own, scratch) or {}).get("ne")
    eta = measures.eta(scratch, own, teacher)
    over_kd = None if kd is None else measures.gain_over(scratch, own, kd)
    generations = None
    if fresh is not None and fresh_teacher is not None:
        generations = measures.transfer_ratio((own, fresh), (teacher, fresh_teacher))
    return {
        "examples": len(own.labels),
        "ne": ne(own.sums),
        "ne_scratch": ne(scratch.sums),
        "ne_teacher": ne(teacher.sums),
        "ne_kd": None if kd is None else ne(kd.sums),
        "gain": None if gain is None else gain.value,
        "gain_se": None if gain is None else gain.standard_error,
        "eta": None if eta is None else eta.value,
        "eta_se": None if eta is None else eta.standard_error,
        "gain_over_kd": None if over_kd is None else over_kd.value,
        "gain_over_kd_se": None if over_kd is None else over_kd.standard_error,
        "transfer_ratio": None if generations is None else generations.value,
        "transfer_ratio_se": None if generations is None else generations.standard_error,
    }


def matching(scores: Scores, example_id: np.ndarray) -> Scores:
    """The scores of these examples, e.g. of a student's domain among a teacher's, in ascending order of id.

    Raises:
      AssertionError: one of the examples is not scored.
    """
    scores = scores.select(np.argsort(scores.example_id, kind="stable"))
    found = scores.select(np.isin(scores.example_id, example_id))
    assert len(found.example_id) == len(example_id), (len(found.example_id), len(example_id))
    return found


def _domains(own: Scores, domains: tuple[str, ...]) -> Iterator[tuple[str, Callable[[Scores], Scores]]]:
    """(name, selection) of all examples, and of each domain's where there are several."""
    yield EVERYWHERE, lambda scores: scores
    present = np.unique(own.domain)
    for place in present.tolist() if len(present) > 1 else ():
        yield domains[place], functools.partial(_of_domain, place=place)


def _of_domain(scores: Scores, place: int) -> Scores:
    return scores.select(scores.domain == place)


def _data(stage: Stage) -> str:
    """Kinds of the data's config, from the outside in."""
    tree, kinds = stage.summary["config"]["data"], []
    while isinstance(tree, dict):
        kinds.append(tree["kind"])
        tree = tree.get("data")
    return "/".join(kinds)

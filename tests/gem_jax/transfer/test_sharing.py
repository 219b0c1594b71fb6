"""What is taken of a teacher and frozen stays; the rest learns. What serves has nothing that only training needs."""

import dataclasses

import jax
import numpy as np
import pytest
from rich.console import Console

from gem_jax.config import from_dict, to_dict
from gem_jax.errors import UserError
from gem_jax.models import DLRMConfig
from gem_jax.run.plan import RunPlan
from gem_jax.run.program import Program
from gem_jax.scoring.run import load_run
from gem_jax.scoring.saved import scoring_program
from gem_jax.train import Options, train
from gem_jax.training.objective import MultiTaskConfig
from gem_jax.training.optimizer import OptimizerConfig
from gem_jax.transfer.distill import DistillationConfig, DistilledConfig
from gem_jax.transfer.joined import JoinedConfig
from gem_jax.transfer.scoring import ProgressiveLabels
from gem_jax.transfer.sharing import FrozenConfig, with_rates
from tests.gem_jax.transfer.small import Data, config_of

STUDENT = DLRMConfig(embedding_dim=4, bottom_hidden=(4,), top_hidden=(6,))
FROZEN = ("tables/ad", "dense/tokens/dense")


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """A teacher's run, and its labels."""
    folder = tmp_path_factory.mktemp("transfer")
    config = config_of(folder / "runs")
    result = train(config, console=Console(quiet=True), observer=ProgressiveLabels(folder / "labels"))
    return result, folder / "labels"


def taught(teacher, tmp_path, model):
    """A student's config."""
    data = JoinedConfig(data=Data(), labels=str(teacher[1]))
    objective = DistillationConfig(auxiliary_weight=1.0, adapted_weight=1.0)
    return config_of(tmp_path).replace(name="student", data=data, model=model, objective=objective)


def values_of(program, state):
    return {n: np.asarray(x) for n, x in program.to_logical(state).items() if n.endswith(("/value", "/weight"))}


@pytest.mark.slow
def test_a_student_takes_a_teachers_parts_and_serves_alone(teacher, tmp_path):
    result = teacher[0]
    model = DistilledConfig(student=FrozenConfig(student=STUDENT, frozen=FROZEN), hidden=(5,), adapter_hidden=(3,))
    config = with_rates(taught(teacher, tmp_path, model))
    config = config.replace(optimizer=dataclasses.replace(config.optimizer, weight_decay=0.1))
    assert from_dict(to_dict(config), (Data,)) == config
    console = Console(record=True, width=200, quiet=False, file=open("/dev/null", "w"))  # noqa: SIM115
    options = Options(init_from=str(result.run_dir), init_only=("tables", "dense/tokens", "dense/head"))
    student = train(config, options, console=console)
    console.file.close()
    report = console.export_text()
    assert "unfit    dense/head/mlp/layers/0/kernel/value" in report and "taken" in report
    own, its = values_of(student.program, student.state), values_of(result.program, result.state)
    shared = [n for n in own if n in its and own[n].shape == its[n].shape and not n.startswith("dense/head")]
    frozen = [n for n in shared if n.startswith(("tables/ad/", "dense/tokens/dense/"))]
    assert len(frozen) == 5  # the table, and two layers' kernels and biases
    for name in shared:
        assert np.array_equal(own[name], its[name]) == (name in frozen), name

    # What serves: the plain student, by its saved name, in the very same program.
    run = load_run(student.run_dir, say=lambda line: None, classes=(Data,))
    served = values_of(run.program, run.state)
    assert set(served) == {n for n in own if "training_only" not in n}
    assert all(np.array_equal(served[n], own[n]) for n in served)
    plain = config.replace(model=STUDENT, data=Data(), objective=MultiTaskConfig())
    programs = [run.program, scoring_program(plain, Data().schema(), None)]
    texts = [lowered(p) for p in programs]
    assert texts[0] == texts[1]
    words = ('"auxiliary/', '"adapter/', "representations['adapter']")
    assert not any(word in texts[0] for word in words)
    in_training = lowered(Program.of(config, config.data.schema(), RunPlan.of(config, config.data.schema())))
    assert all(word in in_training for word in words)  # they would be seen

    # And its answers are those of the student in training.
    scored = run.evaluate(Data().build().test)
    for task, measures in student.summary["eval"].items():
        assert scored[task]["ne"] == pytest.approx(measures["ne"], rel=1e-6)

    # A plain student takes the distilled one's parameters by name.
    again = train(
        plain.replace(name="plain", optimizer=OptimizerConfig(learning_rate=1e-30, table_learning_rate=1e-30)),
        Options(init_from=str(student.run_dir)),
        console=Console(quiet=True),
    )
    for name, value in values_of(again.program, again.state).items():
        np.testing.assert_array_equal(value, own[name], err_msg=name)


def lowered(program) -> str:
    """The text of what scores, with the names of its scopes."""
    from gem_jax.run.memory import device_batch

    batch = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((x.shape[0] * program.mesh.size, *x.shape[1:]), x.dtype),
        device_batch(program.config, program.schema),
    )
    return jax.jit(program.score).lower(program.shapes(), batch).as_text(debug_info=True)


def test_errors(tmp_path):
    config = config_of(tmp_path).replace(model=FrozenConfig(student=STUDENT, frozen=("tables/user",)))
    with pytest.raises(
        UserError, match="names 'tables/user', which no parameter or table has; there are e.g. tables/ad"
    ):
        Program.of(config, Data().schema(), RunPlan.of(config, Data().schema()))
    with pytest.raises(UserError, match="table_l2=0.1 would shrink"):
        with_rates(config.replace(optimizer=OptimizerConfig(table_l2=0.1)))

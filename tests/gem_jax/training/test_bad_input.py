"""What a user can get wrong: one line that names what is wrong and what to change, exit code 2, and nothing is written."""

import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gem_jax.data.batch import Examples
from gem_jax.data.columns import MemorySource
from gem_jax.data.parquet import write_parquet
from gem_jax.train import main
from tests.gem_jax.data.random_examples import SCHEMA, random_examples

CONFIG = """
import pathlib

from gem_jax.config import Config, TrainConfig
from gem_jax.data.packing import BatchConfig
from gem_jax.data.parquet import ParquetConfig
from gem_jax.models import LogisticRegressionConfig
from gem_jax.parallel.mesh import MeshConfig
from tests.gem_jax.data.random_examples import SCHEMA

HERE = pathlib.Path(__file__).parent


def get_config():
    return Config(
        name="mine",
        data=ParquetConfig(path=str(HERE / "data"), columns=SCHEMA),
        model=LogisticRegressionConfig(),
        batch=BatchConfig(examples=16),
        mesh=MeshConfig(replica=1, shard=1),
        runs_dir=str(HERE / "runs"),
    )
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with a config and good data: 40 training and 20 test examples."""
    (tmp_path / "data").mkdir()
    (tmp_path / "config.py").write_text(CONFIG)
    write(tmp_path / "data" / "train.parquet", random_examples(40))
    write(tmp_path / "data" / "test.parquet", random_examples(20, seed=1))
    monkeypatch.delenv("GEM_TRACEBACK", raising=False)
    return tmp_path


def write(path, examples: Examples) -> None:
    write_parquet(path, MemorySource(schema=SCHEMA, examples=examples))


def refused(here, capfd, *arguments: str, config: str = "config.py") -> str:
    """The one line that `main` says; everything else that it must and must not do is checked here."""
    capfd.readouterr()
    assert main([str(here / config), *arguments]) == 2
    out, err = capfd.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1 and err.endswith("\n"), (out, err)
    assert not (here / "runs").exists()
    return err.removeprefix("error: ").rstrip("\n")


def replace_column(path, name: str, column: pa.Array) -> None:
    table = pq.read_table(path)
    pq.write_table(table.set_column(table.column_names.index(name), name, column), path)


def set_value(path, name: str, row: int, value) -> None:
    column = pq.read_table(path)[name]
    values = column.to_pylist()
    values[row] = value
    replace_column(path, name, pa.array(values, column.type))


def test_good_input_trains(here, capfd):
    assert main([str(here / "config.py")]) == 0
    assert capfd.readouterr().err == ""
    assert (here / "runs" / "mine" / "summary.json").exists()


@pytest.mark.parametrize(
    ("name", "row", "value", "message"),
    [
        ("ad", 9, 50, "row 9: 'ad' is 50, outside table 'ad' of 50 rows; ids go from 0 to 49 .* enlarge the table"),
        ("topics", 3, [1, 2, 3, 4], "row 3: 'topics' has 4 ids; raise its max_ids"),
        ("price", 5, float("nan"), "row 5: 'price' is nan; replace it by a number"),
        ("views.age_s", 12, [5, -1, 0], "row 12: 'views.age_s' has -1; an event's age is 0 to .* seconds before"),
        ("views.ad", 7, [1, 2, 3, 4, 5, 6, 7], "row 7: 'views.ad' has 7 events and 'views.age_s' .*; they must agree"),
        ("label.click", 4, 2.0, "row 4: 'label.click' is 2; it must be from 0 to 1, or null"),
        ("domain", 8, "search", "row 8: 'domain' is search; the schema has feed, reels, stories"),
        ("weight", 2, -1.0, "row 2: 'weight' is -1; it must be 0 or more"),
    ],
)
def test_a_bad_value(here, capfd, name, row, value, message):
    path = here / "data" / "train.parquet"
    set_value(path, name, row, value)
    assert re.fullmatch(f"{re.escape(str(path))}, {message}.*", refused(here, capfd))


def test_all_labels_zero(here, capfd):
    replace_column(here / "data" / "train.parquet", "label.click", pa.array(np.zeros(40, np.float32)))
    assert (
        "data/train.parquet: every 'click' label of the training part is 0; training needs labels that differ"
        in refused(here, capfd)
    )


def test_a_column_of_the_wrong_type_or_missing(here, capfd):
    path = here / "data" / "train.parquet"
    replace_column(path, "ad", pa.array([str(i) for i in range(40)]))
    assert refused(here, capfd) == (
        f"{path}: column 'ad' is string; it must be an integer; number strings by python -m gem_jax.prepare"
    )
    pq.write_table(pq.read_table(path).drop_columns("ad"), path)
    assert refused(here, capfd) == f"{path} has no column 'ad'; add it, or take it out of the schema"


def test_files_missing_empty_or_of_another_kind(here, capfd):
    path = here / "data" / "train.parquet"
    pq.write_table(pq.read_table(path).slice(0, 0), path)
    assert refused(here, capfd) == f"{path} holds no rows: it needs at least one example"
    path.write_bytes(b"")
    assert refused(here, capfd).startswith(f"{path} is not a Parquet file: ")
    path.unlink()
    assert f"{here / 'data'} has neither train.parquet nor .parquet files in train/" in refused(here, capfd)
    assert refused(here, capfd, "data.path=/nowhere") == (
        "/nowhere does not exist: set data.path to a folder with train/ and test/ of .parquet files"
    )


def test_no_config_file(here, capfd):
    assert f"config file '{here / 'absent.py'}' does not exist" in refused(here, capfd, config="absent.py")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            ("BatchConfig(examples=16)", "BatchConfig(slots=16)"),
            "TypeError: .*(argument 'slots'|argument: 'examples')",
        ),
        (("def get_config():", "def get_config()"), "SyntaxError: expected ':'"),
        (("import pathlib", "import absent_package"), "ModuleNotFoundError: No module named 'absent_package'"),
    ],
)
def test_a_config_file_that_fails(here, capfd, change, message):
    assert change[0] in CONFIG
    (here / "config.py").write_text(CONFIG.replace(*change))
    assert re.search(f"config.py' fails with {message}.*; correct it$", refused(here, capfd))


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("batch.slots=3", "unknown config field 'batch.slots'; batch has examples, tokens"),
        ("batch.examples=many", "config field 'batch.examples' cannot be 'many'; it takes int"),
        ("batch.examples=0", "batch.examples is 0; it needs at least 1"),
        (
            "batch.tokens.clicks=16",
            r"batch.tokens\['clicks'\] is 16, less than the 24 rows of one full history .*raise",
        ),
        ("batch.tokens.visits=16", "batch.tokens names source 'visits'; the data has .*clicks.*views"),
        (
            "objective.task_weights.like=2",
            "objective.task_weights names 'like', which the data .* it has click, conversion",
        ),
        ("objective.domain_weights.x=2", "objective.domain_weights names 'x', .* it has feed, reels, stories"),
        ("train.epochs=-1", "train.epochs=-1(.0)? must be positive"),
        ("train.eval_examples=0", "train.eval_examples=0 must be positive"),
        ("optimizer.warmup=2", "optimizer.warmup=2.0 is a fraction"),
        ("--resum", "unknown flag --resum; did you mean --resume\\? there are --resume, --init-from"),
        ("--resume", "there is no run '.*/runs/mine' to resume; start it without --resume"),
    ],
)
def test_a_wrong_argument(here, capfd, argument, message):
    assert re.search(message, refused(here, capfd, argument))


def test_no_arguments(capfd):
    assert main([]) == 2
    assert capfd.readouterr().err.startswith("error: name a config first, e.g. python -m gem_jax.train configs/")


def test_a_traceback_on_request(here, monkeypatch):
    monkeypatch.setenv("GEM_TRACEBACK", "1")
    with pytest.raises(ValueError, match="it takes int"):
        main([str(here / "config.py"), "batch.examples=many"])


def test_resuming_with_another_config_is_refused(here, capfd):
    assert main([str(here / "config.py")]) == 0
    before = sorted(p.relative_to(here) for p in here.rglob("*"))
    config = CONFIG.replace("LogisticRegressionConfig()", "DLRMConfig(embedding_dim=4)")
    (here / "config.py").write_text(config.replace("import LogisticRegressionConfig", "import DLRMConfig"))
    for argument, message in (
        ((), "model.* is .* in the checkpoint and .* today; resume with model"),
        (
            ("train.seed=1",),
            "train.seed is 0 in the checkpoint and 1 today; resume with train.seed=0, or start a new run",
        ),
        (("objective.task_weights.click=2",), "objective.task_weights.click is None in the checkpoint and 2.0 today"),
    ):
        capfd.readouterr()
        assert main([str(here / "config.py"), "--resume", *argument]) == 2
        out, err = capfd.readouterr()
        assert out == "" and err.count("\n") == 1 and re.search(message, err)
        (here / "config.py").write_text(CONFIG)
    assert sorted(p.relative_to(here) for p in here.rglob("*")) == before


def test_a_model_that_diverges(here, capfd):
    assert main([str(here / "config.py"), "optimizer.learning_rate=3e38", "optimizer.warmup=0"]) == 1
    err = capfd.readouterr().err
    assert re.fullmatch("diverged: the loss is (inf|nan) at step .*; lower optimizer.learning_rate or .*\n", err)


@pytest.mark.filterwarnings("ignore::gem_jax.data.source.DataWarning")
def test_a_model_whose_evaluation_is_not_finite(here, capfd):
    examples = random_examples(20, seed=1)
    examples.dense[:] = 1e18  # the most that is read; times a parameter of 1e21 it is infinite
    write(here / "data" / "test.parquet", examples)
    assert main([str(here / "config.py"), "optimizer.learning_rate=1e21", "optimizer.clip_norm=1e9"]) == 1
    err = capfd.readouterr().err
    named = (
        r"dense column 'price' is as large as 1e\+18 in example 1\d* \(also in .*\): correct or scale it, or leave .*"
    )
    assert re.fullmatch(f"diverged: .* logits of an evaluated batch are not finite; {named}\n", err), err


def test_bfloat16_on_a_cpu(here, capfd, monkeypatch):
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    line = refused(here, capfd, "precision.compute=bfloat16")
    assert "--xla_cpu_experimental_ynn_fusion_type=" in line
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_experimental_ynn_fusion_type=")
    assert (
        main([str(here / "config.py"), "precision.compute=bfloat16"]) == 0
    )  # XLA has read its flags: this model has no matmul

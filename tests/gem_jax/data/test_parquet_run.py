"""A run over Parquet files of which some rows are bad: refused before its first step, or trained without them."""

import json

import numpy as np
import pytest

from gem_jax.train import main
from tests.gem_jax.data.random_examples import random_examples
from tests.gem_jax.training.test_bad_input import here, set_value  # noqa: F401  a fixture


@pytest.mark.filterwarnings("ignore:.*rows are bad and count nowhere:gem_jax.data.source.DataWarning")
def test_a_run_without_its_bad_rows(here, capfd):  # noqa: F811
    set_value(here / "data" / "train.parquet", "ad", 9, 50)
    set_value(here / "data" / "test.parquet", "price", 3, float("nan"))
    assert main([str(here / "config.py")]) == 2
    assert "row 9: 'ad' is 50" in capfd.readouterr().err and not (here / "runs").exists()
    assert main([str(here / "config.py"), "data.on_bad_row=skip", "data.max_bad_rows=0"]) == 2
    assert "are more than data.max_bad_rows=0; among them: " in capfd.readouterr().err and not (here / "runs").exists()
    assert main([str(here / "config.py"), "data.on_bad_row=skip"]) == 0
    folder = here / "runs" / "mine"
    assert json.loads((folder / "config.json").read_text())["data"]["on_bad_row"] == "skip"
    labels = random_examples(20, seed=1).labels
    labels[3] = np.nan
    measured = json.loads((folder / "summary.json").read_text())["eval"]
    assert [measured[task]["num_examples"] for task in ("click", "conversion")] == (~np.isnan(labels)).sum(
        axis=0
    ).tolist()

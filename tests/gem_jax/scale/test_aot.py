"""The report on a step's memory and traffic: on this machine's CPU devices, and for GPUs that are not there."""

import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

from gem_jax.config import Config, load
from gem_jax.parallel.mesh import MeshConfig
from gem_jax.parallel.sharding import place_batch
from gem_jax.run.plan import RunPlan
from gem_jax.run.program import Program
from gem_jax.scale.__main__ import main, markdown, summary
from gem_jax.scale.aot import compile_step
from tests.gem_jax.run.steps import BASE_LOGITS, DATA, DLRM, SCHEMA, batch_of_step, program_on

ROOT = pathlib.Path(__file__).parents[3]
PLUGIN = ("jax_cuda13_plugin", "jax_plugins")
MISSING = [name for name in PLUGIN if importlib.util.find_spec(name) is None]


def small_config() -> Config:
    config = load(
        ROOT / "configs" / "gem_debug.py",
        ["batch.examples=8", "batch.tokens.organic=64", "batch.tokens.impressions=64"],
    )
    return config.replace(model=DLRM, data=DATA)


@pytest.fixture(scope="module")
def steps():
    """(replica, shard) -> bytes per device, for meshes of 8 CPU devices and parts of them."""
    meshes = [(1, 2), (1, 4), (1, 8), (2, 4), (2, 2), (4, 2)]
    return {mesh: summary(compile_step(on_mesh(*mesh), SCHEMA, jax.devices()[: mesh[0] * mesh[1]])) for mesh in meshes}


def on_mesh(replica: int, shard: int) -> Config:
    return small_config().replace(mesh=MeshConfig(replica=replica, shard=shard))


@pytest.mark.parametrize(("replica", "shard"), [(1, 1), (2, 4)])
def test_what_is_compiled_here_is_what_a_run_takes(replica, shard):
    """The same lowered text: from shapes on devices that need not exist, and from a run's own state and batch."""
    program = program_on(replica, shard)
    state = program.init(0, BASE_LOGITS)
    batch = place_batch(batch_of_step(DATA.build().train, program, 0)[1], program.mesh)
    signals = program._no_signals
    run = program._train_step.lower(state, batch, np.float32(0), signals).as_text()
    elsewhere = Program.of(program.config, SCHEMA, RunPlan.of(program.config, SCHEMA, program.mesh.devices.flatten()))
    assert elsewhere.lower().as_text() == run


def test_the_plans_prediction_is_near_what_the_compiler_says():
    """State exactly but for the batch; temporaries are an estimate."""
    compiled = compile_step(on_mesh(1, 1), SCHEMA, jax.devices()[:1])
    found = compiled.state_bytes + compiled.temporary_bytes
    assert 0.4 * found < compiled.predicted_bytes < 2.5 * found


def test_more_shards_hold_less_each(steps):
    two, four, eight = (steps[1, shard]["state_bytes"] for shard in (2, 4, 8))
    assert two > four > eight
    assert steps[2, 4]["state_bytes"] == four  # replicas change nothing


def test_dense_bytes_stay_flat_as_replicas_are_added(steps):
    inside = [steps[replica, 2]["dense_shard_bytes"] for replica in (1, 2, 4)]
    assert inside[0] > 0 and inside == pytest.approx([inside[0]] * 3, rel=1e-3)  # the loss may travel along
    # Between groups: 2 (M - 1) / M of a share, so it grows from 1 to 1.5 shares and never beyond 2.
    between = [steps[replica, 2]["sums_replica_bytes"] for replica in (1, 2, 4)]
    assert between[0] == 0 and between[2] == pytest.approx(1.5 * between[1], rel=0.01)


def test_lookups_stay_inside_their_group(steps):
    assert steps[1, 4]["tables_shard_bytes"] == steps[2, 4]["tables_shard_bytes"] > 0
    assert steps[1, 4]["rows_replica_bytes"] == 0 < steps[2, 4]["rows_replica_bytes"]


def test_table_and_wrong_arguments(steps, tmp_path, capsys):
    rows = [{"config": "x", "overrides": ["a.b=1"], "replica": 2, "shard": 4} | steps[2, 4]]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    assert main(["--table", str(tmp_path / "rows.json")]) == 0
    shown = capsys.readouterr().out.strip()
    assert shown == markdown(rows) and f"| x a.b=1 | 8 | 2 x 4 | {steps[2, 4]['state_bytes'] / 2**20:,.1f} |" in shown
    for arguments, message in (
        ([], "name a config"),
        (["configs/gem_debug.py", "--meshes", "2by8"], "--meshes has '2by8'; write REPLICAxSHARD"),
        (["configs/none.py", "--meshes", "1x8"], "config file 'configs/none.py' does not exist"),
    ):
        assert main(arguments) == 2
        assert message in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}")
def test_2048_gpus_that_are_not_there(tmp_path):
    """Memory and bytes inside a group are those of 16 GPUs; nothing of a table leaves its group but touched rows."""
    command = [sys.executable, "-m", "gem_jax.scale", "configs/gem_debug.py:dlrm", "--meshes", "2x8,256x8"]
    overrides = ["data.train_examples=2000", "data.test_examples=100", "batch.examples=32"]
    overrides += ["batch.tokens.organic=512", "batch.tokens.impressions=512"]
    environment = os.environ | {"JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1", "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    file = tmp_path / "rows.json"
    done = subprocess.run(
        [*command, "--json", str(file), *overrides],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    few, many = json.loads(file.read_text())
    assert (few["replica"], many["replica"]) == (2, 256)
    for name in ("state_bytes", "dense_shard_bytes", "tables_shard_bytes"):
        assert few[name] == many[name], name

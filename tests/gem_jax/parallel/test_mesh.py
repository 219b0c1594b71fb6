"""The mesh a user asks for, or a sentence with the numbers; which array lies where."""

import os
import re
import subprocess
import sys

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from gem_jax.embedding.sharded import TablesConfig
from gem_jax.models import DLRMConfig
from gem_jax.parallel.mesh import MeshConfig, local_devices, make_mesh, num_mesh_devices, single_device_mesh
from gem_jax.parallel.sharding import place_batch, spec_of, state_specs
from gem_jax.parallel.xla_flags import GPU_FLAGS, with_flags
from gem_jax.training.optimizer import OptimizerConfig
from gem_jax.training.state import abstract_state
from tests.gem_jax.models.batches import FULL


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (MeshConfig(), 8),
        (MeshConfig(shard=4), 8),
        (MeshConfig(replica=2, shard=4), 8),
        (MeshConfig(replica=1, shard=2), 2),  # some of the devices of one process, if both are said
    ],
)
def test_devices_of_a_mesh(config, expected):
    assert num_mesh_devices(config, 8) == expected


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (MeshConfig(replica=4, shard=4), "mesh.replica=4 times mesh.shard=4 needs 16 devices and the job has 8"),
        (MeshConfig(shard=3), "mesh.shard=3 does not divide the 8 devices of the job"),
        (MeshConfig(replica=16), "mesh.replica=16 does not divide the 8 devices of the job"),
    ],
)
def test_a_mesh_that_does_not_fit(config, message):
    with pytest.raises(ValueError, match=message):
        num_mesh_devices(config, 8)


def test_numbers_below_one_are_refused():
    with pytest.raises(ValueError, match="mesh.shard=0 must be at least 1"):
        MeshConfig(shard=0)


def test_shards_of_a_group_are_neighbours():
    mesh = make_mesh(2, 4)
    assert [[d.id for d in row] for row in mesh.devices] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert local_devices(mesh) == 8 and local_devices(single_device_mesh()) == 1


@pytest.mark.parametrize("optimizer", ["rowwise_adagrad", "adam", "sgd"])
@pytest.mark.parametrize("schemes", [{}, {"user": "columns", "ad": "tables"}], ids=["rows", "mixed"])
@pytest.mark.parametrize("fully_sharded", [False, True])
def test_every_array_of_a_state_has_a_place(optimizer, schemes, fully_sharded):
    setup, state = abstract_state(
        DLRMConfig(embedding_dim=8, bottom_hidden=(8,), top_hidden=(16,)),
        FULL,
        OptimizerConfig(table_optimizer=optimizer),
        mesh=make_mesh(2, 4),
        tables=TablesConfig(schemes=schemes, fully_sharded=fully_sharded),
    )
    assert jax.tree.structure(setup.specs, is_leaf=lambda x: isinstance(x, P)) == jax.tree.structure(state)
    shares = {
        jax.tree_util.keystr(path, simple=True, separator="/"): x.size / np.prod(x.sharding.shard_shape(x.shape))
        for path, x in jax.tree_util.tree_flatten_with_path(state)[0]
        if x.shape
    }
    for path, share in shares.items():
        if path.startswith("tables/"):
            whole_rows = re.search("columns/accumulator$", path) is not None
            assert share == (1 if whole_rows else 4) * (2 if fully_sharded else 1), path
        else:
            assert share == (4 if path.startswith("dense") else 1), path


def test_an_array_without_a_rule_is_an_error():
    with pytest.raises(ValueError, match="no sharding rule for 'momentum/dense'; add one to"):
        spec_of("momentum/dense", fully_sharded=False)
    with pytest.raises(ValueError, match="no sharding rule for 'other'"):
        state_specs({"other": np.zeros(3)})


def test_a_batch_is_cut_over_all_devices():
    mesh = make_mesh(2, 4)
    placed = place_batch({"x": np.arange(16)}, mesh)["x"]
    for shard in placed.addressable_shards:
        np.testing.assert_array_equal(shard.data, [2 * shard.device.id, 2 * shard.device.id + 1])


def test_flags_are_added_once_and_the_users_win():
    flag, value = next(iter(GPU_FLAGS.items()))
    added = with_flags("")
    assert added.split() == [f"--{name}={wanted}" for name, wanted in GPU_FLAGS.items()]
    assert with_flags(added) == added
    kept = with_flags(f"--{flag}=other --xla_dump_to=x").split()
    assert kept[:2] == [f"--{flag}=other", "--xla_dump_to=x"] and len(kept) == len(GPU_FLAGS) + 1
    assert value != "other"


def test_the_installed_xla_knows_the_flags():
    """An unknown flag ends the process; a flag of GPUs is parsed on any machine."""
    environment = os.environ | {"XLA_FLAGS": with_flags(""), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", "import jax; jax.devices()"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-500:]

"""The mesh a user asks for, or a sentence with the numbers; batches on it."""

import os
import subprocess
import sys

import numpy as np
import pytest

from gem_jax.errors import UserError
from gem_jax.parallel.mesh import MeshConfig, local_devices, make_mesh, num_mesh_devices
from gem_jax.parallel.sharding import place_batch
from gem_jax.parallel.xla_flags import GPU_FLAGS, with_flags


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
    with pytest.raises(UserError, match=message):
        num_mesh_devices(config, 8)


def test_numbers_below_one_are_refused():
    with pytest.raises(UserError, match="mesh.shard=0 must be at least 1"):
        MeshConfig(shard=0)


def test_shards_of_a_group_are_neighbours():
    mesh = make_mesh(2, 4)
    assert [[d.id for d in row] for row in mesh.devices] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert local_devices(mesh) == 8 and local_devices(make_mesh(1, 1)) == 1


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

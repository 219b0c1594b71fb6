"""What each of two processes does in `test_processes`; not a test itself. Arguments: the run's folder, and what to do."""

import pathlib
import sys

import jax
import numpy as np

from gem_jax.checkpoint.checkpoints import Checkpoints
from gem_jax.checkpoint.restore import restore
from gem_jax.parallel import processes
from gem_jax.parallel.mesh import make_mesh
from tests.gem_jax.checkpoint.fake import FakeProgram, saved


def main(folder: pathlib.Path, action: str) -> None:
    processes.start()
    assert jax.process_count() == 2 and jax.device_count() == 4
    program = FakeProgram(mesh=make_mesh(2, 2))
    if action == "save":
        saved(folder, program, 5, 7)
        return
    said: list[str] = []
    restored = restore(Checkpoints(folder), program, said.append)
    numbers = program.numbers(restored.manifest.step)
    for name, x in restored.state.items():
        for shard in x.addressable_shards:
            assert np.asarray(shard.data).tobytes() == np.ascontiguousarray(numbers[name][shard.index]).tobytes(), name
    print(restored.manifest.step, *said, sep="\n")


main(pathlib.Path(sys.argv[1]), sys.argv[2])

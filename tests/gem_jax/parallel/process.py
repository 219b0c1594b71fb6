"""One process of the job that test_processes.py starts: python -m tests.gem_jax.parallel.process REPLICA SHARD FILE."""

import sys

import jax
import numpy as np

from gem_jax.parallel import processes
from tests.gem_jax.run.steps import train_on


def main(replica: int, shard: int, file: str) -> None:
    processes.start()
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    assert jax.process_count() == 2 and jax.local_device_count() == 4
    check_exchanges(jax.process_index())
    outcome = vars(train_on(replica, shard))
    arrays = {name: x for name, x in outcome.items() if not isinstance(x, dict)}
    arrays |= {f"{group}/{k}": x for group, d in outcome.items() if isinstance(d, dict) for k, x in d.items()}
    np.savez(f"{file}-{jax.process_index()}.npz", **arrays)


def check_exchanges(index: int) -> None:
    """What processes tell each other beside the step."""
    np.testing.assert_array_equal(processes.gather(np.array([index, 7])), [[0, 7], [1, 7]])
    big = 2**40
    rows = processes.gather_rows(np.full((1 + index, 2), big + index))
    np.testing.assert_array_equal(rows, [[big, big], [big + 1, big + 1], [big + 1, big + 1]])
    np.testing.assert_array_equal(processes.gather_rows(np.full(2 - 2 * index, 3, np.float32)), [3, 3])
    np.testing.assert_array_equal(processes.total(np.array([0.1, big + index])), [0.2, 2 * big + 1])
    assert processes.any_process(index == 1) and not processes.any_process(False)
    assert processes.first_process_says(f"from process {index}") == "from process 0"
    assert processes.is_first() == (index == 0)

    class Columns:
        num_examples = 5

    own = [("batch", Columns())] * (1 + 2 * index)
    steps = list(processes.side_by_side(iter(own), lambda: ("empty", Columns())))
    assert [batch for batch, _, _ in steps] == (["batch", "empty", "empty"] if index == 0 else ["batch"] * 3)
    assert [examples for _, _, examples in steps] == [10, 5, 5]


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])

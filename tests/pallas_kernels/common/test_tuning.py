"""Tables of tile sizes, and their search with made-up times."""

import dataclasses
import math

import pytest

from pallas_kernels.common import tuning
from pallas_kernels.jagged_attention.tuning import TABLES, tilings


@dataclasses.dataclass(frozen=True)
class Tiling:
    stages: int = 4
    keys: int = 64


@pytest.mark.parametrize(("saving", "expected"), [(0.99, 4), (0.9, 3)])
def test_search_keeps_only_clear_gains(saving, expected):
    def times(candidates):
        return [math.inf if x.keys == 128 else saving if x.stages == 3 else 1.0 for x in candidates]

    found = tuning.fastest(Tiling(), dict(stages=(2, 3, 4), keys=(64, 128)), times)
    assert found == Tiling(stages=expected)


def test_a_device_without_a_file_gets_the_default_and_it_is_said_once():
    tuning._load.cache_clear()
    with pytest.warns(UserWarning, match="No tile sizes were tuned for nvidia_gh200_480gb; using those of nvidia_h200"):
        found = tilings("NVIDIA GH200 480GB", 64)
    assert found == tilings("NVIDIA H200", 64)
    tilings("NVIDIA GH200 480GB", 128)  # a second warning would be an error
    assert TABLES.default == tuning.file_name("NVIDIA H200")

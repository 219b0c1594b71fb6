"""The ruler for GEM on long histories: both sources to 4,096 events, log-normal lengths of mean 1,200. Do not change it.

python -m gem_jax.bench step configs/bench/gem_long.py

Frozen: the features and tables of `bench/gem_base.py`, 4 layers of width 256 in 2 heads of 128 in bfloat16 (the size of heads
that the Hopper kernels are fastest at), 131,072 packed rows a source. Lengths are 20 equally likely ones, the quantiles .025,
.075, ... of exp(N(6.71, 1)), cut at 4,096: mean 1,203, median 822.
A batch takes examples in order until a source's rows are full, about 100.
"""

import dataclasses
import pathlib

from gem_jax.config import Config, load
from gem_jax.data.packing import BatchConfig
from gem_jax.models.gem import Level

MAX_LEN = 4_096
LENGTHS = (
    116, 195, 260, 322, 386, 451, 521, 597, 679, 771, 874, 991, 1_128, 1_292, 1_492, 1_747, 2_089, 2_592, 3_462, 4_096,
)  # fmt: skip
ROWS = 131_072


def get_config() -> Config:
    base = load(pathlib.Path(__file__).with_name("gem_base.py"))
    schema = base.data.schema()
    sequences = tuple(dataclasses.replace(s, max_len=MAX_LEN) for s in schema.sequences)
    names = [s.name for s in sequences]
    return base.replace(
        name="bench_gem_long",
        data=dataclasses.replace(
            base.data, columns=schema.replace(sequences=sequences), lengths=dict.fromkeys(names, LENGTHS)
        ),
        model=dataclasses.replace(base.model, num_heads=2, levels=(Level(), Level(pool=4), Level(recent=256))),
        batch=BatchConfig(examples=128, tokens=dict.fromkeys(names, ROWS)),
    )

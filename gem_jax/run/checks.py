"""What is checked of a run beside its steps: before the first one, and of what an evaluation found."""

import os

import jax
import numpy as np

from gem_jax.config import Config, ConfigError
from gem_jax.data.implausible import implausible
from gem_jax.data.source import PARTS, DataError, Source, Splits
from gem_jax.evaluation.errors import DivergedError

CHUNK = 4096
"""Examples read at once in search of an implausible one."""

MOST_EXAMPLES = 2**62
"""That a run may train on: positions in the data are 64-bit integers."""


def check_platform(config: Config) -> None:
    """XLA's fused matmuls (YNNPACK) of bfloat16 end the process on a CPU, without a word: seen with jax 0.11.2."""
    unfused = "--xla_cpu_experimental_ynn_fusion_type="
    if config.precision.compute != "bfloat16" or jax.default_backend() != "cpu":
        return
    if unfused not in os.environ.get("XLA_FLAGS", "").split():
        raise ConfigError(
            "precision.compute=bfloat16 would crash XLA on a CPU; leave it float32, or set XLA_FLAGS to "
            f"'{unfused}' before Python starts, which turns off the fused matmuls that crash"
        )


def total_examples(config: Config, source: Source) -> int:
    """Examples that the run trains on, repetitions counted.

    Raises:
      ConfigError: they are more than can be counted.
    """
    total = config.train.epochs * len(source)
    if total > MOST_EXAMPLES:
        raise ConfigError(f"train.epochs={config.train.epochs} passes over {len(source)} examples never end; lower it")
    return max(round(total), 1)


def check_parts(splits: Splits, num_examples: int) -> None:
    """Reads the first `num_examples` of every part: what is wrong with the test examples should show before hours of training.

    Raises:
      UserError: a part has no examples, or its first ones cannot be read.
    """
    for name in PARTS:
        source = getattr(splits, name)
        if source is None:
            continue
        if len(source) == 0:
            raise DataError(f"the {name} part of the data holds no examples; give it at least one")
        source.read(np.arange(min(num_examples, len(source))))


def explained(error: DivergedError, source: Source, limit: int | None) -> DivergedError:
    """The error of an evaluation, with the input that explains it if there is one among the first `limit` examples."""
    end = len(source) if limit is None else min(limit, len(source))
    for start in range(0, end, CHUNK):
        examples = source.read(np.arange(start, min(start + CHUNK, end)))
        culprit = implausible(source.schema, examples, examples.example_id)
        if culprit is not None:
            return DivergedError(error.what, culprit)
    return error

"""What is checked of a run before its first step."""

import os

import jax

from gem_jax.config import Config, ConfigError


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

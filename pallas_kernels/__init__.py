"""Accelerator kernels for recommendation models, one folder an operation; needs jax only."""

from pallas_kernels.jagged_attention import (
    Mask,
    RelativeBias,
    gdpa,
    jagged_attention,
    make_work_list,
    seed_attention,
)

__all__ = ["Mask", "RelativeBias", "gdpa", "jagged_attention", "make_work_list", "seed_attention"]

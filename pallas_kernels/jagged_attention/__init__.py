"""Attention over packed sequences of uneven length (HSTU's SiLU attention, softmax, GDPA, PMA)."""

from pallas_kernels.jagged_attention.api import gdpa, jagged_attention, seed_attention
from pallas_kernels.jagged_attention.bias import RelativeBias
from pallas_kernels.jagged_attention.mask import Mask
from pallas_kernels.jagged_attention.plan import Plan, make_plan

__all__ = [
    "Mask",
    "Plan",
    "RelativeBias",
    "gdpa",
    "jagged_attention",
    "make_plan",
    "seed_attention",
]

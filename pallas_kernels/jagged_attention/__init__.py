"""Attention over packed sequences of uneven length (HSTU's SiLU attention, softmax, GDPA, PMA)."""

from pallas_kernels.jagged_attention.api import gdpa, jagged_attention, seed_attention, seed_attention_pair
from pallas_kernels.jagged_attention.bias import RelativeBias
from pallas_kernels.jagged_attention.gated import gated_attention
from pallas_kernels.jagged_attention.mask import Mask
from pallas_kernels.jagged_attention.worklist import WorkList, make_work_list

__all__ = [
    "Mask",
    "WorkList",
    "RelativeBias",
    "gated_attention",
    "gdpa",
    "jagged_attention",
    "make_work_list",
    "seed_attention",
    "seed_attention_pair",
]

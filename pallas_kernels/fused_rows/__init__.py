"""What a sequence layer does between products and attention, a row at a time: norms, and keys mixed from an example's tokens."""

from pallas_kernels.fused_rows.api import mixed_keys, row_norm, sum_norms

__all__ = ["mixed_keys", "row_norm", "sum_norms"]

"""Embedding tables: pooled lookups, and updates of the looked-up rows in place."""

from pallas_kernels.embedding.api import check_inside, count_outside, is_fused, lookup, update
from pallas_kernels.embedding.rules import Rule, Step

__all__ = ["Rule", "Step", "check_inside", "count_outside", "is_fused", "lookup", "update"]

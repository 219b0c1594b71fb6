"""Which key a query sees. One rule, used by every backend.

Positions count from the first token of a sequence. The last `num_targets` tokens of a sequence are
targets (candidates to score); the tokens before them are the history, `num_history` of them.
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class Mask:
    """A static attention mask; hashable, so it may be a jit-static argument.

    Attributes:
      causal: query i sees keys j <= i.
      window: query i sees only keys with i - j < window (causal) or |i - j| < window (not causal).
      block: queries and keys see each other only inside the same block of this many tokens, counted
        from the start of the sequence (GEM uses 64).
      prefix: the first `prefix` tokens of the history (contextual features) see the whole history
        and are seen by every token. This is HSTU's `contextual_seq_len` (arXiv 2402.17152, official
        code), except that a window never hides the prefix here.

    Targets see what a token standing right after the history would see, and themselves, never each
    other; no history token, prefix included, sees a target. Every token sees itself.
    """

    causal: bool = True
    window: int | None = None
    block: int | None = None
    prefix: int = 0

    def __post_init__(self):
        for name in ("window", "block"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"Mask.{name} must be at least 1 or None, got {value}.")
        if self.prefix < 0:
            raise ValueError(f"Mask.prefix must be at least 0, got {self.prefix}.")


def key_bounds(mask: Mask, query, num_history, has_targets: bool = True):
    """The interval [low, high) of keys that `query` sees, besides itself and the prefix.

    Both bounds never decrease with `query`, except that prefix queries see the whole history.

    Args:
      query: int position(s) of queries; any shape that broadcasts with `num_history`.
      num_history: int history length(s).
      has_targets: False promises that every query is a history token (saves GPU instructions).

    Returns:
      low, high: int arrays; the interval may be empty (high <= low).
    """
    place = query  # a target stands right after the history
    if has_targets:
        place = jnp.minimum(query, num_history)
    low, high = place * 0, num_history + place * 0
    if mask.causal:
        high = jnp.minimum(high, place + 1) if has_targets else place + 1
    if mask.window is not None:
        low = jnp.maximum(low, place - (mask.window - 1))
        if not mask.causal:
            high = jnp.minimum(high, place + mask.window)
    if mask.block is not None:
        first = block_start(mask.block, place)
        low = jnp.maximum(low, first)
        high = jnp.minimum(high, first + mask.block)
    if mask.prefix:
        in_prefix = query < jnp.minimum(mask.prefix, num_history)
        low = jnp.where(in_prefix, 0, low)
        high = jnp.where(in_prefix, num_history, high)
    return low, high


def block_start(block: int, place):
    """The first position of the block of `block` tokens that holds `place`."""
    if block & (block - 1) == 0:
        return place & -block  # a division per score would cost more than the score
    return place // block * block


def visible(mask: Mask, query, key, num_history, has_targets: bool = True, edges: str = "both"):
    """bool, jax or NumPy as its arguments are: does `query` see `key`? Both are positions inside one sequence (not checked here).

    edges: "low" ("high") promises that no key lies beyond the other end of a query's interval; a comparison per
      score shows.
    """
    low, high = key_bounds(mask, query, num_history, has_targets)
    if edges == "low":
        seen = key >= low
    else:
        seen = key < high
        if edges == "both" and (mask.window is not None or mask.block is not None):  # else low is 0
            seen &= key >= low
    if has_targets:
        seen |= query == key
    if mask.prefix:
        seen |= key < jnp.minimum(mask.prefix, num_history)
    return seen

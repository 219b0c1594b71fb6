"""Random numbers by counter: a draw is a pure function of (seed, purpose, counter), so each example stands alone."""

import zlib

import numpy as np

_GOLDEN = 0x9E3779B97F4A7C15
_MULTIPLIERS = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))
_SHIFTS = (np.uint64(30), np.uint64(27), np.uint64(31))


def stream(seed: int, purpose: str) -> np.uint64:
    """The key of an independent stream of draws."""
    return np.uint64((seed * _GOLDEN + zlib.crc32(purpose.encode()) * 0xD1B54A32D192ED03) % 2**64)


def bits(key: np.uint64, counter: np.ndarray) -> np.ndarray:
    """64 random bits per counter: the finaliser of splitmix64 (Steele et al., OOPSLA 2014).

    Args:
      key: from `stream`.
      counter: integers >= 0, any shape; see `pair` for two counters.

    Returns:
      uint64, same shape.
    """
    x = counter.astype(np.uint64)
    x ^= key
    x *= np.uint64(_GOLDEN)
    x ^= x >> _SHIFTS[0]
    x *= _MULTIPLIERS[0]
    x ^= x >> _SHIFTS[1]
    x *= _MULTIPLIERS[1]
    x ^= x >> _SHIFTS[2]
    return x


def pair(high: np.ndarray, low: np.ndarray) -> np.ndarray:
    """Two counters below 2^32 as one uint64."""
    return (high.astype(np.uint64) << np.uint64(32)) | low.astype(np.uint64)


def uniform(key: np.uint64, counter: np.ndarray) -> np.ndarray:
    """float64 in [0, 1), one per counter."""
    return (bits(key, counter) >> np.uint64(11)) * 2.0**-53


def normal(key: np.uint64, counter: np.ndarray) -> np.ndarray:
    """Standard normal float64, one per counter (Box-Muller over two halves of the stream)."""
    counter = counter.astype(np.uint64) << np.uint64(1)
    radius = np.sqrt(-2.0 * np.log1p(-uniform(key, counter)))
    return radius * np.cos(2.0 * np.pi * uniform(key, counter + np.uint64(1)))


def fields(random_bits: np.ndarray) -> tuple[np.ndarray, ...]:
    """Four independent draws from each 64 random bits, uint16, each of the shape of `random_bits`; no copy."""
    quarters = random_bits[..., None].view(np.uint16)
    return tuple(quarters[..., k] for k in range(4))


def drawing_table(weights: np.ndarray) -> np.ndarray:
    """Turns weights [..., k] into a table [..., 256] that maps a uniform byte to an outcome with those chances.

    A draw is then one gather; chances are rounded to 1/256.
    """
    cumulative = np.cumsum(weights, axis=-1) / np.sum(weights, axis=-1, keepdims=True)
    bytes_ = (np.arange(256) + 0.5) / 256
    return (bytes_[:, None] > cumulative[..., None, :-1]).sum(axis=-1).astype(np.int32)


def log_uniform(uniform: np.ndarray, size: int) -> np.ndarray:
    """Ranks in [0, size) with P(k) = log_{size+1}((k+2)/(k+1)), which falls like 1/k: Zipf's law with exponent 1."""
    return np.minimum((size + 1.0) ** uniform, size).astype(np.int64) - 1

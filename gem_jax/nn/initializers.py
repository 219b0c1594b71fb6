"""What parameters start from: a distribution, drawn on the host from counters.

An initializer is a parameter's metadata (`nn.parameters.parameter`). Number i of a parameter is a pure function of (key, i), so
each device's share of a bucket is drawn alone, on any mesh the same, and nothing is compiled for it.
"""

import dataclasses
import hashlib
import math
from typing import Literal

import numpy as np
from jaxtyping import Float32

BLOCK = 2**14
"""Numbers that share one place of the counter; a part of a block costs the whole."""

TRUNCATION = 2.0
"""Truncated normals lie within this many standard deviations of the normal that is cut."""

TRUNCATED_STD = 0.87962566103423978
"""Standard deviation of a standard normal cut at +-TRUNCATION."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Initializer:
    """A distribution; hashable, since metadata is compared.

    Attributes:
      distribution: "constant" (at `mean`), "normal", "truncated_normal" or "uniform".
      mean: of all numbers; one for each place of the last axis where it is a tuple.
      std: standard deviation; 0 for a constant.
    """

    distribution: Literal["constant", "normal", "truncated_normal", "uniform"]
    mean: float | tuple[float, ...] = 0.0
    std: float = 0.0

    def draw(self, key: int, start: int, stop: int) -> Float32[np.ndarray, " n"]:
        """Numbers `start` to `stop` of the flattened parameter.

        Args:
          key: 128 bits, the parameter's own (`key_of`).
          start: the first.
          stop: after the last.
        """
        mean = np.asarray(self.mean, np.float32)
        if mean.ndim:
            mean = mean[np.arange(start, stop) % len(mean)]
        if self.distribution == "constant":
            return np.broadcast_to(mean, (stop - start,))
        first = start // BLOCK
        blocks = [self._block(key, block) for block in range(first, -(-stop // BLOCK))]
        numbers = np.array(blocks, np.float32).reshape(-1)[start - first * BLOCK : stop - first * BLOCK]
        return numbers * np.float32(self.std) + mean

    def _block(self, key: int, block: int) -> Float32[np.ndarray, " b"]:
        """A block's numbers, with mean 0 and standard deviation 1."""
        # The low words of the counter count inside a block, the third word counts blocks: no two blocks share a place.
        random = np.random.Generator(np.random.Philox(key=key, counter=[0, 0, block, 0]))
        if self.distribution == "uniform":
            return (2 * random.random(BLOCK, np.float32) - 1) * np.float32(math.sqrt(3))
        numbers = random.standard_normal(BLOCK, np.float32)
        if self.distribution == "truncated_normal":
            while len(outside := np.flatnonzero(np.abs(numbers) > TRUNCATION)):
                numbers[outside] = random.standard_normal(len(outside), np.float32)
            numbers /= np.float32(TRUNCATED_STD)
        return numbers


def key_of(seed: int, name: str) -> int:
    """128 bits for a parameter: by its name rather than by its place, so that other parameters do not change it."""
    return int.from_bytes(hashlib.blake2b(f"{seed} {name}".encode(), digest_size=16).digest(), "little")


def constant(value: float | tuple[float, ...]) -> Initializer:
    """The same number everywhere, or one for each place of the last axis."""
    return Initializer(distribution="constant", mean=value)


ZEROS = constant(0.0)
ONES = constant(1.0)


def normal(std: float) -> Initializer:
    """Normal with this standard deviation."""
    return Initializer(distribution="normal", std=std)


def lecun_normal(fan_in: int) -> Initializer:
    """Truncated normal with variance 1 / fan_in, which keeps the variance of a linear map's input."""
    return Initializer(distribution="truncated_normal", std=fan_in**-0.5)


def he_normal(fan_in: int) -> Initializer:
    """Truncated normal with variance 2 / fan_in, which keeps the variance through relus."""
    return Initializer(distribution="truncated_normal", std=(2 / fan_in) ** 0.5)


def xavier_uniform(fan_in: int, fan_out: int) -> Initializer:
    """Uniform with variance 2 / (fan_in + fan_out)."""
    return uniform((6 / (fan_in + fan_out)) ** 0.5)


def uniform(limit: float) -> Initializer:
    """Uniform from -limit to limit."""
    return Initializer(distribution="uniform", std=limit / math.sqrt(3))

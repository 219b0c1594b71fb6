"""How sure a measured number is."""

import math
import statistics


def wilson(rate: float, num_examples: int) -> tuple[float, float]:
    """The 95 % confidence interval of a rate seen in `num_examples` draws (Wilson 1927)."""
    z2 = statistics.NormalDist().inv_cdf(0.975) ** 2
    centre = (rate + z2 / (2 * num_examples)) / (1 + z2 / num_examples)
    half = math.sqrt(z2 * (rate * (1 - rate) / num_examples + z2 / (4 * num_examples**2))) / (1 + z2 / num_examples)
    return max(0.0, centre - half), min(1.0, centre + half)

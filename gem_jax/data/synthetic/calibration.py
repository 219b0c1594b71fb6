"""Whether the filter's probabilities are those of what happens, on many impressions, and how fast lives are made.

python -m gem_jax.data.synthetic.calibration [--impressions 10000000] [--seed 0]
"""

import argparse
import time

import numpy as np

from gem_jax.data.synthetic import clock
from gem_jax.data.synthetic.inventory import Inventory
from gem_jax.data.synthetic.laws import Laws
from gem_jax.data.synthetic.people import People
from gem_jax.data.synthetic.simulate import Lives, simulate

USERS = 4_096
"""Of a block, spread over the tiers as in the stream."""
EDGES = np.array([0.0030, 0.0052, 0.0078, 0.0110, 0.0152, 0.0210, 0.0300, 0.0450, 0.0880])
"""Of the groups by the filter's probability: about its deciles."""


def main(argv: list[str] | None = None) -> None:
    """Prints a row a group: mean probabilities of filter and oracle, and z of clicks and of the oracle against the filter."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--impressions", type=int, default=10_000_000)
    parser.add_argument("--seed", type=int, default=0, help="of the world")
    arguments = parser.parse_args(argv)
    sums, made, seconds = calibration(arguments.impressions, arguments.seed)
    print("group  impressions  filter   oracle   clicks   z oracle  z clicks")
    for k, (n, p, oracle, clicks, z_oracle, z_clicks) in enumerate(sums):
        shares = "  ".join(f"{x / n:.5f}" for x in (p, oracle, clicks))
        print(f"{k:>5}  {int(n):>11}  {shares}  {z_oracle:>8.2f}  {z_clicks:>8.2f}")
    print(f"{made} impressions, {made / seconds:.0f} a second of one core")


def calibration(impressions: int, seed: int) -> tuple[np.ndarray, int, float]:
    """Blocks of users until there are that many impressions.

    Returns:
      float64 [groups, 6]: impressions, sums of the filter's probability, of the oracle's, of clicks; z of the oracle less the
      filter, users being independent; z of clicks less the filter, whose terms are uncorrelated.
      How many impressions there were.
      CPU seconds that their simulation took.
    """
    world = Laws(seed, crosses=64)
    ads = Inventory(seed, 480, (2 * clock.LIFE_SLABS + 1) * clock.SLAB_S, world)
    tiers = clock.tier(np.arange(USERS))
    groups = len(EDGES) + 1
    sums, squares = np.zeros((groups, 4)), np.zeros((groups, 2))
    made, seconds, block = 0, 0.0, 0
    while made < impressions:
        for tier in range(len(clock.IMPRESSIONS)):
            users = block * USERS + np.flatnonzero(tiers == tier)
            rng = np.random.default_rng((seed, 10, block, tier))
            began = time.process_time()
            start_s = users % clock.LIFE_SLABS * clock.SLAB_S
            lives = simulate(rng, world, ads, People(seed, users), start_s, tier, 1)
            seconds += time.process_time() - began
            made += lives.impressions["click"].size
            _add(lives, sums, squares)
        block += 1
    z = np.stack([sums[:, 2] - sums[:, 1], sums[:, 3] - sums[:, 1]], axis=1) / np.sqrt(squares)
    return np.concatenate([sums, z], axis=1), made, seconds


def _add(lives: Lives, sums: np.ndarray, squares: np.ndarray) -> None:
    p, oracle = (lives.impressions[name].astype(np.float64) for name in ("click", "oracle"))
    clicked = lives.impressions["due"] >= 0
    group = np.searchsorted(EDGES, p)
    for k in range(len(sums)):
        own = group == k
        sums[k] += own.sum(), p[own].sum(), oracle[own].sum(), clicked[own].sum()
        squares[k] += (((oracle - p) * own).sum(axis=1) ** 2).sum(), (p * (1 - p))[own].sum()


if __name__ == "__main__":
    main()

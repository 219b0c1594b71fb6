"""Features of examples for the ladder: what is known of an example at each rung, from the example alone and the laws.

Shape letters: n examples, E events of their histories.
"""

import numpy as np

from gem_jax.data.batch import Examples, Histories
from gem_jax.data.synthetic import laws
from gem_jax.data.synthetic.laws import DAY_S, Laws

NEWEST = 64
"""Events of a short history, of each source."""
DECAYS_DAYS = (0.05, 0.5, 2.0, 6.0)
LAST = 5
"""Newest events on the candidate's topic whose order counts."""

type Rungs = dict[str, list[str]]
"""Name of a rung -> features it may use."""


class _Events:
    """Events of one source of n examples, flat, and sums over them."""

    def __init__(self, history: Histories, ids: dict[str, np.ndarray]):
        self.n = len(history.lengths)
        self.row = np.repeat(np.arange(self.n), history.lengths)
        ends = np.cumsum(history.lengths)
        self.ago = np.repeat(ends, history.lengths) - 1 - np.arange(len(self.row))  # 0: the newest
        self.age = (history.age_s / DAY_S).astype(np.float32)
        self.ids = history.ids
        self.own = {name: ids[name][self.row, 0] for name in ("category", "advertiser", "style")}

    def sum(self, weight: np.ndarray) -> np.ndarray:
        return np.bincount(self.row, weight, self.n).astype(np.float32)

    def newest(self, mask: np.ndarray, number: int, value: np.ndarray, missing: float) -> np.ndarray:
        """Value of the `number`-th newest event of those in `mask`, [n]."""
        at = np.flatnonzero(mask)[::-1]
        row = self.row[at]
        turn = np.arange(len(at)) - np.searchsorted(-row, -row)
        out = np.full(self.n, missing, np.float32)
        out[row[turn == number]] = value[at[turn == number]]
        return out


def features(examples: Examples, world: Laws) -> tuple[dict[str, np.ndarray], Rungs]:
    """Columns [n] of these examples, with `truth` (the click's) and `user`, and which rung may use which.

    Args:
      examples: with whole histories.
      world: the laws they follow.
    """
    organic = _Events(examples.sequences["organic"], examples.ids)
    shown = _Events(examples.sequences["impressions"], examples.ids)
    groups = {
        "static": _static(examples, world),
        "pools": _pools(organic, shown, NEWEST),
        "joint": _joint(organic, shown, NEWEST),
        "time": _time(organic, shown),
        "order": _order(organic, shown, world),
        "length": _joint(organic, shown, 10**6) | _pools(organic, shown, 10**6) | _whole(organic),
        "cross": _cross_source(shown, examples),
    }
    columns = {f"{group} {key}": value for group, found in groups.items() for key, value in found.items()}
    keys = {group: [f"{group} {key}" for key in found] for group, found in groups.items()}
    return columns | {"truth": examples.true_probability[:, 0], "user": examples.user}, _rungs(keys)


def _rungs(keys: dict[str, list[str]]) -> Rungs:
    context = ["static domain", "static price"]
    rungs = {
        "features one by one": ["static one", "static price"],
        "+ products of two": ["static two", "static price"],
        "+ products of three to six (depth)": ["static shared", "static price"],
        "+ domains that differ: no history": ["static whole", *context],
    }
    have = ["static whole", *context]
    for group, name in (
        ("pools", f"+ mean of the newest {NEWEST} of each source"),
        ("joint", "+ events encoded whole, matched to the candidate"),
        ("time", "+ time gaps"),
        ("order", "+ order"),
        ("length", "+ length: the whole past"),
        ("cross", "+ products across sources"),
    ):
        have = have + keys[group]
        rungs[name] = have
    top = have
    history = [key for key in top if not key.startswith("static")]
    rungs["all without depth (products of two at most)"] = ["static two own", *context, *history]
    rungs["all without domains (one law for all, but for the base rate)"] = ["static shared", "static price", *history]
    return rungs


def _static(examples: Examples, world: Laws) -> dict[str, np.ndarray]:
    ids = {name: examples.ids[name][:, 0] for name in laws.CROSS_FEATURES}
    surface = ids["surface"]
    rest = world.base[surface] + world.drift(examples.vectors["image"], examples.time_s)
    shared = np.broadcast_to(world.shared_weight * world.cross_scale, world.weight.shape).astype(np.float32)
    return {
        "one": rest + crosses_up_to(world, ids, 1, shared),
        "two": rest + crosses_up_to(world, ids, 2, shared),
        "two own": rest + crosses_up_to(world, ids, 2, world.weight),
        "shared": rest + crosses_up_to(world, ids, len(ids), shared),
        "whole": rest + world.crosses(ids),
        "domain": surface.astype(np.float32),
        "price": laws.PRICES[ids["price"]],
    }


def crosses_up_to(world: Laws, ids: dict[str, np.ndarray], order: int, weight: np.ndarray) -> np.ndarray:
    """X of (7) with the terms of the products that have at most `order` factors, by the elementary symmetric polynomials."""
    terms = [np.ones((len(ids["surface"]), weight.shape[1]), np.float32)]
    terms += [np.zeros_like(terms[0]) for _ in range(order)]
    for f, name in enumerate(laws.CROSS_FEATURES):
        slope = world.slopes[f][ids[name]]
        for k in range(order, 0, -1):
            terms[k] += slope * terms[k - 1]
    return world.limited((sum(terms) * weight[ids["surface"]]).sum(axis=1))


def _pools(organic: _Events, shown: _Events, newest: int) -> dict[str, np.ndarray]:
    """Means of each attribute by itself, and how often the candidate's own values are among them."""
    recent, seen = organic.ago < newest, shown.ago < newest
    count, times = np.maximum(organic.sum(recent), 1), np.maximum(shown.sum(seen), 1)
    on_topic = organic.ids["topic"] == organic.own["category"]
    found = {"organic": count, "impressions": times, "topic": organic.sum(recent & on_topic) / count}
    for action in range(len(laws.ORGANIC_ACTIONS)):
        found[f"action {action}"] = organic.sum(recent & (organic.ids["action"] == action)) / count
    found["response"] = organic.sum(recent & (organic.ids["response"] == 1)) / count
    found["style"] = organic.sum(recent & (organic.ids["style"] == organic.own["style"])) / count
    found["clicked"] = shown.sum(seen & (shown.ids["action"] > 0)) / times
    found["price"] = shown.sum(seen * laws.PRICES[shown.ids["price"]]) / times
    for name in ("category", "advertiser"):
        found[name] = shown.sum(seen & (shown.ids[name] == shown.own[name])) / times
    return found


def _joint(organic: _Events, shown: _Events, newest: int) -> dict[str, np.ndarray]:
    """Sums over events that are encoded whole, by how they match the candidate."""
    recent, seen = organic.ago < newest, shown.ago < newest
    on_topic = recent & (organic.ids["topic"] == organic.own["category"])
    of_style = recent & (organic.ids["style"] == organic.own["style"])
    found = {f"topic {k}": organic.sum(on_topic & (organic.ids["action"] == k)) for k in range(3)}
    found["liked"] = organic.sum(of_style * (2.0 * organic.ids["response"] - 1))
    clicked = seen & (shown.ids["action"] > 0)
    found["clicked"] = shown.sum(clicked & (shown.ids["category"] == shown.own["category"]))
    return found


def _time(organic: _Events, shown: _Events) -> dict[str, np.ndarray]:
    on_topic = organic.ids["topic"] == organic.own["category"]
    same, own_ad = (shown.ids[name] == shown.own[name] for name in ("category", "advertiser"))
    clicked = shown.ids["action"] > 0
    found = {}
    for days in DECAYS_DAYS:
        kept, kept_shown = (np.exp(-e.age / days) * (e.ago < NEWEST) for e in (organic, shown))
        for k in range(3):
            found[f"topic {k} {days}"] = organic.sum(kept * (on_topic & (organic.ids["action"] == k)))
        found[f"all {days}"] = organic.sum(kept)
        found[f"advertiser {days}"] = shown.sum(kept_shown * own_ad)
        found[f"clicked {days}"] = shown.sum(kept_shown * (clicked & same))
        found[f"not clicked {days}"] = shown.sum(kept_shown * (~clicked & same))
    for k in (0, 4):
        found[f"age {k}"] = organic.newest(organic.ago >= 0, k, np.log(organic.age + 1e-5), 5.0)
    return found


def _order(organic: _Events, shown: _Events, world: Laws) -> dict[str, np.ndarray]:
    recent = organic.ago < NEWEST
    on_topic = np.flatnonzero(recent & (organic.ids["topic"] == organic.own["category"]))
    row, age, action = organic.row[on_topic], organic.age[on_topic], organic.ids["action"][on_topic]
    follows = np.zeros(len(row), bool)
    follows[1:] = (row[1:] == row[:-1]) & (age[:-1] - age[1:] < laws.PROGRESS_WITHIN_S / DAY_S)
    before = np.roll(action, 1)
    found = {}
    for name, first, second in (("searches", laws.VIEW, laws.SEARCH), ("carts", laws.SEARCH, laws.CART)):
        step = follows & (before == first) & (action == second)
        for days in (0.5, 1.5, 3.0):
            found[f"{name} {days}"] = np.bincount(row, step * np.exp(-age / days), organic.n).astype(np.float32)
        mask = np.zeros(len(organic.row), bool)
        mask[on_topic[step]] = True
        found[f"{name} age"] = organic.newest(mask, 0, np.log(organic.age + 1e-4), 5.0)
    mask = np.zeros(len(organic.row), bool)
    mask[on_topic] = True
    for k in range(LAST):
        found[f"action {k}"] = organic.newest(mask, k, organic.ids["action"], -1.0)
        found[f"age {k}"] = organic.newest(mask, k, np.log(organic.age + 1e-4), 5.0)
    converted = (shown.ids["action"] == 2) & (shown.ago < NEWEST)
    follows_it = world.successor[shown.ids["category"]] == shown.own["category"]
    same = shown.ids["category"] == shown.own["category"]
    for name, mask in (("followed", converted), ("next", converted & follows_it), ("satiated", converted & same)):
        found[f"{name} age"] = shown.newest(mask, 0, np.log(shown.age + 1e-3), 6.0)
    return found


def _whole(organic: _Events) -> dict[str, np.ndarray]:
    """Revealed liking of the candidate's style (3), near enough: without its limits on the way."""
    of_style = organic.ids["style"] == organic.own["style"]
    evidence = organic.sum(of_style * (2.0 * organic.ids["response"] - 1)) * laws.STYLE_EVIDENCE
    return {"style": np.tanh(np.clip(evidence, -laws.STYLE_LIMIT, laws.STYLE_LIMIT) / 2)}


def _cross_source(shown: _Events, examples: Examples) -> dict[str, np.ndarray]:
    """Distance of the candidate's price from those clicked (4)."""
    kept = np.exp(-shown.age / laws.TIER_DAYS) * (shown.ids["action"] > 0)
    tier = shown.sum(kept * laws.PRICES[shown.ids["price"]]) / (laws.TIER_PRIOR + shown.sum(kept))
    price = laws.PRICES[examples.ids["price"][:, 0]]
    return {"mismatch": np.minimum((price - tier) ** 2, 4.0), "tier": tier}

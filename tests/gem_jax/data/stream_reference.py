"""The stream's probabilities from what an example shows, by the equations of its README and a dense float64 chain.

Nothing of the stream's own filter or simulation is used: only its constants, one world's parameters and the table of ads.

Shape letters: C categories, S stages.
"""

import dataclasses

import numpy as np

from gem_jax.data.batch import Examples
from gem_jax.data.synthetic import laws
from gem_jax.data.synthetic.laws import CATEGORIES, DAY_S, STAGES

SESSION_GAP_S = 1800


@dataclasses.dataclass
class Past:
    """Events of one example's whole past and itself, in order of time; `kind` is "organic" or "impression"."""

    time_s: np.ndarray
    kind: list[str]
    event: list[dict[str, int]]


def past(examples: Examples, row: int) -> Past:
    """Of the example in `row`, which shows its whole past; the last event is the example itself, its action unknown (-1)."""
    events = []
    for name, kind in (("organic", "organic"), ("impressions", "impression")):
        history = examples.sequences[name]
        end = int(history.lengths[: row + 1].sum())
        for at in range(end - int(history.lengths[row]), end):
            ids = {key: int(column[at]) for key, column in history.ids.items()}
            events.append((int(examples.time_s[row]) - int(history.age_s[at]), kind, ids))
    own = {name: int(examples.ids[name][row, 0]) for name in ("ad", "category", "advertiser", "surface", "price")}
    events.append((int(examples.time_s[row]), "impression", own | {"action": -1}))
    events.sort(key=lambda e: e[0])
    times, kinds, ids = zip(*events, strict=True)
    return Past(np.array(times), list(kinds), list(ids))


class Reference:
    """The chain of one user, step by step.

    Args:
      world: the laws of the stream.
      ads: its ads.
      user: ids of the user's features.
      interests: the user's interests.
      joined_s: when the user's life began.
    """

    def __init__(self, world, ads, user: dict[str, int], interests: list[int], joined_s: int):
        self.world, self.ads, self.user, self.joined_s = world, ads, user, joined_s
        self.taste = np.full(CATEGORIES, (1 - laws.TASTE) / CATEGORIES)
        self.taste[interests] += laws.TASTE / len(interests)
        self.background = (1 - laws.BACKGROUND) * self.taste + laws.BACKGROUND / CATEGORIES
        self.belief, self.idle = np.zeros((CATEGORIES, STAGES)), 1.0
        self.style = np.zeros(laws.STYLES)
        self.last: dict[int, tuple[int, int]] = {}
        self.shown: list[tuple[int, int]] = []
        self.clicked: list[tuple[int, float]] = []
        self.conversions: list[tuple[int, int]] = []
        self.heard: set[tuple[int, int]] = set()

    def probabilities(self, story: Past, reports: dict[int, int]) -> tuple[float, float]:
        """Of a click on the last event and of a conversion after it.

        Args:
          story: the past.
          reports: time of an impression -> when its conversion was reported.
        """
        before = self.joined_s
        for k, (now, kind, event) in enumerate(zip(story.time_s.tolist(), story.kind, story.event, strict=True)):
            self._pass_time(now, (now - before) / DAY_S, opens=k == 0 or now - before > SESSION_GAP_S)
            before = now
            if kind == "organic":
                self._organic(now, event)
                continue
            plain, stages, mismatch = self._click(now, event)
            here = self.belief[event["category"]]
            if event["action"] < 0:
                click = (1 - here.sum()) * plain + here @ stages
                return click, self._convert(here, mismatch, event["ad"])
            self._seen(now, event, plain, stages)
            if now in reports:
                self.conversions.append((reports[now], event["category"]))
        raise AssertionError("the past ends with the example itself")

    def _pass_time(self, now: int, days: float, opens: bool) -> None:
        kept = self.belief * np.exp(-days / laws.STAGE_DAYS)
        self.idle += (self.belief - kept).sum()
        self.belief = kept
        if not opens:
            return
        for report in sorted(self.conversions):
            if report[0] <= now and report not in self.heard:
                self.heard.add(report)
                self.idle += self.belief[report[1]].sum()
                self.belief[report[1]] = 0
        begins = 1 - np.exp(-laws.BIRTH_PER_DAY * (days + laws.BIRTH_AT_ONCE_DAYS))
        self.belief[:, 0] += self.idle * begins * self._what_begins(now)
        self.idle *= 1 - begins

    def _what_begins(self, now: int) -> np.ndarray:
        day = now // DAY_S
        wave = np.sin(2 * np.pi * (day / self.world.trend_days + self.world.trend_phase))
        rho = self.taste * np.exp(laws.TREND * wave)
        rho /= rho.sum()
        for number, (when, category) in enumerate(sorted(self.heard, reverse=True)):
            if number == 0:
                weight = laws.SUCCESSION * np.exp(-(now - when) / DAY_S / laws.SUCCESSION_DAYS)
                rho *= 1 - weight
                rho[self.world.successor[category]] += weight
        for category in {c for _, c in self.heard}:
            when = max(t for t, c in self.heard if c == category)
            rho[category] *= 1 - np.exp(-(now - when) / DAY_S / laws.SATIATION_DAYS)
        return rho / rho.sum()

    def _organic(self, now: int, event: dict[str, int]) -> None:
        topic, action = event["topic"], event["action"]
        aside = self.background[topic] * laws.ACTIONS_IDLE[action]
        likelihood = np.full((CATEGORIES, STAGES), (1 - laws.ON_TOPIC) * aside)
        likelihood[topic] += laws.ON_TOPIC * laws.ACTIONS[:, action]
        self._bayes(likelihood, aside)
        then, before = self.last.get(topic, (0, -1))
        self.last[topic] = (now, action)
        step = {(laws.VIEW, laws.SEARCH): 0, (laws.SEARCH, laws.CART): 1}.get((before, action))
        if step is not None and now - then < laws.PROGRESS_WITHIN_S:
            moved = laws.PROGRESS[step] * self.belief[topic, step]
            self.belief[topic, step] -= moved
            self.belief[topic, step + 1] += moved
        style = event["style"]
        change = laws.STYLE_EVIDENCE if event["response"] else -laws.STYLE_EVIDENCE
        self.style[style] = np.clip(self.style[style] + change, -laws.STYLE_LIMIT, laws.STYLE_LIMIT)

    def _bayes(self, likelihood: np.ndarray, idle: float) -> None:
        self.belief *= likelihood
        self.idle *= idle
        total = self.belief.sum() + self.idle
        self.belief /= total
        self.idle /= total

    def _click(self, now: int, event: dict[str, int]) -> tuple[float, np.ndarray, float]:
        world, ads, surface, ad = self.world, self.ads, event["surface"], event["ad"]
        price = float(laws.PRICES[event["price"]])
        faded = [np.exp(-(now - t) / DAY_S / laws.TIER_DAYS) for t, _ in self.clicked]
        tier = sum(w * p for w, (_, p) in zip(faded, self.clicked, strict=True)) / (laws.TIER_PRIOR + sum(faded))
        mismatch = min((price - tier) ** 2, 4.0)
        seen = sum(
            np.exp(-(now - t) / DAY_S / laws.FATIGUE_DAYS) for t, other in self.shown if other == event["advertiser"]
        )
        angle = 2 * np.pi * now / DAY_S / laws.DRIFT_DAYS
        direction = ads.image[ad].astype(np.float64) @ world.drift_directions
        logit = (
            float(world.base[surface])
            + self._cross(now, event)
            + laws.DRIFT * (np.cos(angle) * direction[0] + np.sin(angle) * direction[1])
            - float(world.fatigue[surface]) * (1 - 2.0**-seen)
            + laws.STYLE_WEIGHT * np.tanh(self.style[ads.style[ad]] / 2)
        )
        bonus = laws.PRICE_MATCH * (1 - mismatch) * np.array([0.0, 0.5, 1.0])
        return _sigmoid(logit), _sigmoid(logit + world.gamma[surface].astype(np.float64) + bonus), mismatch

    def _cross(self, now: int, event: dict[str, int]) -> float:
        ad = event["ad"]
        of_ad = {name: int(getattr(self.ads, name)[ad]) for name in ("format", "goal", "style")}
        ids = self.user | event | of_ad | {"hour": now % DAY_S // 3600}
        product = np.ones(self.world.weight.shape[1])
        for f, name in enumerate(laws.CROSS_FEATURES):
            product *= 1 + self.world.slopes[f][ids[name]].astype(np.float64)
        total = product @ self.world.weight[event["surface"]].astype(np.float64) - self.world.cross_mean
        return float(np.clip(total, -laws.CROSS_LIMIT, laws.CROSS_LIMIT))

    def _seen(self, now: int, event: dict[str, int], plain: float, stages: np.ndarray) -> None:
        clicked = event["action"] > 0
        idle = plain if clicked else 1 - plain
        likelihood = np.full((CATEGORIES, STAGES), idle)
        likelihood[event["category"]] = stages if clicked else 1 - stages
        self._bayes(likelihood, idle)
        self.shown.append((now, event["advertiser"]))
        if clicked:
            self.clicked.append((now, float(laws.PRICES[event["price"]])))

    def _convert(self, here: np.ndarray, mismatch: float, ad: int) -> float:
        return _sigmoid(
            laws.CONVERT_BASE
            + laws.CONVERT_STAGE_3 * here[2]
            + laws.CONVERT_STAGE_2 * here[1]
            + laws.CONVERT_PRICE * mismatch
            + float(laws.CONVERT_GOAL[self.ads.goal[ad]])
        )


def _sigmoid(x):
    return 1 / (1 + np.exp(-x))

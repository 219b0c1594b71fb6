"""Lives of users, event by event, vectorised over the users of one tier.

The truth (which intent a user has) and the belief (what the history says of it) go side by side: the truth draws what
happens, the belief gives the probabilities. All that does not depend on what happened before is drawn ahead, for all events.

Shape letters: n users, E events of a life, I impressions and O organic events among them, S stages, C categories, k some users.
"""

import dataclasses

import numpy as np

from gem_jax.data.synthetic import clock, laws
from gem_jax.data.synthetic.belief import Belief
from gem_jax.data.synthetic.hashing import log_uniform
from gem_jax.data.synthetic.inventory import Inventory
from gem_jax.data.synthetic.laws import CATEGORIES, DAY_S, Laws, sigmoid
from gem_jax.data.synthetic.people import People
from gem_jax.data.synthetic.reports import draw_reports

NEVER = np.iinfo(np.int32).max
PENDING = 16
"""Conversions of a user that wait for their report at a time, at most."""
IDLE = -1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lives:
    """What n users of one tier lived through, in order of time.

    Attributes:
      before: int32 [I], organic events before each impression.
      impressions: column -> [n, I]: `time_s` (int32, since the life's beginning), `ad`, `surface`; `due` (int32): -1 not clicked,
        `NEVER` clicked only, else when its conversion is reported; the probabilities (float32) of a click given the history
        (`click`), of a click given the intent (`oracle`), of a conversion given a click (`convert`).
      organic: column -> [n, O]: `time_s` (int32); `topic`, `action`, `style`, `response`, `surface` (uint8).
    """

    before: np.ndarray
    impressions: dict[str, np.ndarray]
    organic: dict[str, np.ndarray]


def simulate(
    rng: np.random.Generator, world: Laws, ads: Inventory, users: People, began_s: np.ndarray, tier: int, intensity: int
) -> Lives:
    """The whole lives of users.

    Args:
      rng: all draws are from it.
      world: the laws.
      ads: the ads.
      users: n users of one tier.
      began_s: int64 [n], when each life begins.
      tier: of their activity.
      intensity: multiplies organic events.
    """
    impressions, organic = int(clock.IMPRESSIONS[tier]), int(clock.ORGANIC[tier])
    kinds = clock.event_kinds(rng, impressions, organic * intensity)
    per_slab = impressions + organic * intensity
    begins = clock.SESSIONS_AN_EVENT * (impressions + organic) / per_slab
    time = clock.life_times(rng, len(began_s), per_slab, begins)
    life = _Life(rng, world, ads, users, began_s, time, kinds, laws.ON_TOPIC / intensity)
    for event, is_impression in enumerate(kinds):
        life.pass_time(event)
        if is_impression:
            life.impression()
        else:
            life.organic_event()
    return Lives(
        before=np.cumsum(~kinds)[kinds].astype(np.int32),
        impressions={name: np.ascontiguousarray(a.T) for name, a in life.shown.items()},
        organic={name: np.ascontiguousarray(a.T) for name, a in life.done.items()},
    )


class _Life:
    """The state of n users while their lives go on; `shown` and `done` are what is kept of it, [I, n] and [O, n] a column."""

    def __init__(self, rng, world: Laws, ads: Inventory, users: People, began_s, time, kinds, on_topic: float):
        self.rng, self.world, self.ads = rng, world, ads
        self.n, self.began_s = len(began_s), began_s
        self.rows = np.arange(self.n)
        self.time, self.share_on_topic = time, np.float32(on_topic)
        self.impressions_so_far = self.organic_so_far = 0
        self._set_up_people(users)
        self._set_up_states()
        self._draw_gaps()
        self._draw_organic(int((~kinds).sum()))
        self._draw_impressions(self.time[kinds])
        self.done["time_s"] = self.time[~kinds]

    # --- what is drawn ahead --------------------------------------------------------------------------------------------------

    def _set_up_people(self, users: People) -> None:
        self.taste = users.taste()
        self.background = np.float32(1 - laws.BACKGROUND) * self.taste + np.float32(laws.BACKGROUND / CATEGORIES)
        self.likes = users.likes()
        self.interests, self.num_interests = users.interests, (users.interests >= 0).sum(axis=1)
        self.product = self.world.products({name: getattr(users, name) for name in laws.CROSS_FEATURES[:4]})
        self.first_day = int(self.began_s.min()) // DAY_S
        days = (int(self.began_s.max()) + clock.LIFE_SLABS * clock.SLAB_S) // DAY_S + 1 - self.first_day
        self.trend = self.world.trend(self.first_day + np.arange(days))

    def _set_up_states(self) -> None:
        n = self.n
        self.belief = Belief(n)
        self.intent, self.stage = np.full(n, IDLE), np.zeros(n, np.int64)
        self.converted, self.converted_s = np.full(n, IDLE), np.zeros(n, np.int64)
        self.satiated_s = np.full((n, CATEGORIES), -10_000 * DAY_S, np.float32)
        self.due, self.due_category = np.full((n, PENDING), NEVER, np.int32), np.zeros((n, PENDING), np.int64)
        self.last_action = np.full(n * CATEGORIES, -1, np.int8)
        self.last_action_s = np.zeros(n * CATEGORIES, np.int32)
        self.last_topic = np.full(n, IDLE)
        self.evidence = np.zeros(n * laws.STYLES, np.float32)
        self.seen = np.zeros(n * laws.ADVERTISERS, np.float32)
        self.seen_s = np.zeros(n * laws.ADVERTISERS, np.int32)
        self.tier_sum, self.tier_weight = np.zeros(n, np.float32), np.zeros(n, np.float32)

    def _draw_gaps(self) -> None:
        gap = np.diff(self.time, axis=0, prepend=np.int32(0))
        self.gap_days = (gap / np.float32(DAY_S)).astype(np.float32)
        self.opens = gap > clock.SESSION_GAP_S
        self.opens[0] = True
        self.dies = self._uniform(self.time.shape)

    def _uniform(self, shape: tuple[int, ...]) -> np.ndarray:
        return self.rng.random(shape, np.float32)

    def _of_interests(self, shape: tuple[int, int]) -> np.ndarray:
        """Categories drawn from the users' interests, int64 [shape]."""
        place = (self._uniform(shape) * self.num_interests).astype(np.int64)
        return self.interests[self.rows, place].astype(np.int64)

    def _of_all(self, shape: tuple[int, int]) -> np.ndarray:
        return (self._uniform(shape) * CATEGORIES).astype(np.int64)

    def _draw_organic(self, count: int) -> None:
        shape = (count, self.n)
        interest = np.float32((1 - laws.BACKGROUND) * laws.TASTE)
        self.aside = np.where(self._uniform(shape) < interest, self._of_interests(shape), self._of_all(shape))
        self.on_topic = self._uniform(shape) < self.share_on_topic
        self.which_action, self.goes_on = self._uniform(shape), self._uniform(shape)
        weights = 1.0 / np.arange(1, laws.STYLES + 1)
        style = np.searchsorted(np.cumsum(weights / weights.sum())[:-1].astype(np.float32), self._uniform(shape))
        likes = self.likes[self.rows, style] == (self._uniform(shape) < laws.AGREES)
        self.done = {"topic": np.empty(shape, np.uint8), "action": np.empty(shape, np.uint8)}
        self.done |= {"style": style.astype(np.uint8), "response": likes.astype(np.uint8)}
        self.done["surface"] = self._surface(shape)
        self.action_limits = np.cumsum([laws.ACTIONS_IDLE, *laws.ACTIONS], axis=1)[:, :2].astype(np.float32)

    def _surface(self, shape: tuple[int, int]) -> np.ndarray:
        limits = np.cumsum(laws.SURFACE_SHARE)[:-1].astype(np.float32)
        return np.searchsorted(limits, self._uniform(shape), side="right").astype(np.uint8)

    def _draw_impressions(self, time: np.ndarray) -> None:
        shape = time.shape
        how = self._uniform(shape)
        self.delivers_last = how < laws.DELIVER_LAST
        delivers_interest = how < laws.DELIVER_LAST + laws.DELIVER_INTEREST
        self.otherwise = np.where(delivers_interest, self._of_interests(shape), self._of_all(shape))
        self.slot_rank = log_uniform(self._uniform(shape), self.ads.ranks) * CATEGORIES
        self.clicks = self._uniform(shape)
        gap = np.diff(time, axis=0, prepend=np.int32(0)) / np.float32(DAY_S)
        self.tier_fades = np.exp(-gap / np.float32(laws.TIER_DAYS)).astype(np.float32)
        self.shown = {"time_s": time, "surface": self._surface(shape)}
        self.shown |= {"ad": np.empty(shape, np.int32), "due": np.empty(shape, np.int32)}
        self.shown |= {name: np.empty(shape, np.float32) for name in ("click", "oracle", "convert")}
        hour = (time + self.began_s % DAY_S) // 3600 % 24
        self.place = self.shown["surface"] * np.int64(24) + hour

    # --- time passes ----------------------------------------------------------------------------------------------------------

    def pass_time(self, event: int) -> None:
        """(1): intents fade; where a session begins, reported conversions end theirs and new ones begin."""
        self.now = self.time[event]
        gap = self.gap_days[event]
        survives = np.exp(-gap / laws.STAGE_DAYS.astype(np.float32)[:, None])
        self.belief.fade(survives)
        self.intent[self.dies[event] >= survives[self.stage, self.rows]] = IDLE
        rows = np.flatnonzero(self.opens[event])
        if len(rows):
            self._open_sessions(rows, gap[rows])

    def _open_sessions(self, rows: np.ndarray, gap_days: np.ndarray) -> None:
        self.belief.fold(rows)
        self._hear_reports(rows)
        categories = self._what_begins(rows)
        days = gap_days + np.float32(laws.BIRTH_AT_ONCE_DAYS)
        chance = 1 - np.exp(-np.float32(laws.BIRTH_PER_DAY) * days)
        self.belief.begin(rows, chance, categories)
        begins = (self.intent[rows] == IDLE) & (self._uniform(rows.shape) < chance)
        drawn = (np.cumsum(categories, axis=1) < self._uniform(rows.shape)[:, None]).sum(axis=1)
        self.intent[rows[begins]] = np.minimum(drawn, CATEGORIES - 1)[begins]
        self.stage[rows[begins]] = 0

    def _hear_reports(self, rows: np.ndarray) -> None:
        """Conversions that were reported since the last session end their intents."""
        k, place = np.nonzero(self.due[rows] <= self.now[rows][:, None])
        if not len(k):
            return
        user = rows[k]
        order = np.lexsort((self.due[user, place], user))  # of several the last counts
        user, place = user[order], place[order]
        category, due = self.due_category[user, place], self.due[user, place]
        self.belief.end(user, category)
        self.intent[user[self.intent[user] == category]] = IDLE
        self.converted[user], self.converted_s[user] = category, due
        self.satiated_s[user, category] = due
        self.due[user, place] = NEVER

    def _what_begins(self, rows: np.ndarray) -> np.ndarray:
        """rho of (1), float32 [k, C]."""
        now = self.now[rows]
        day = (self.began_s[rows] + now) // DAY_S - self.first_day
        rho = self.taste[rows] * self.trend[day]
        rho /= rho.sum(axis=1, keepdims=True)
        after = np.flatnonzero(self.converted[rows] != IDLE)
        who = rows[after]
        days = ((now[after] - self.converted_s[who]) / DAY_S).astype(np.float32)
        weight = np.float32(laws.SUCCESSION) * np.exp(-days / np.float32(laws.SUCCESSION_DAYS))
        rho[after] *= (1 - weight)[:, None]
        rho[after, self.world.successor[self.converted[who]]] += weight
        since = (now[after, None] - self.satiated_s[who]) / np.float32(DAY_S)
        rho[after] *= 1 - np.exp(-since / np.float32(laws.SATIATION_DAYS))
        rho[after] /= rho[after].sum(axis=1, keepdims=True)
        return rho

    # --- what happens ---------------------------------------------------------------------------------------------------------

    def organic_event(self) -> None:
        """(2) and (3): a topic, an action, and a response to a style."""
        i = self.organic_so_far
        self.organic_so_far += 1
        on_topic = self.on_topic[i] & (self.intent != IDLE)
        topic = np.where(on_topic, self.intent, self.aside[i])
        limits = self.action_limits[np.where(on_topic, self.stage + 1, 0)]
        action = (self.which_action[i][:, None] >= limits).sum(axis=1)
        self.done["topic"][i], self.done["action"][i] = topic, action

        aside = (1 - self.share_on_topic) * self.background[self.rows, topic] * _ACTIONS_IDLE[action]
        ratio = 1 + self.share_on_topic * _ACTIONS[:, action] / aside
        self.belief.observe(topic, ratio, others=float(1 - self.share_on_topic))
        moves = self._moves(topic, action)
        self.belief.progress(topic, moves)
        stage = np.minimum(self.stage, 1)
        goes_on = (self.intent == topic) & (self.stage < 2) & moves[stage, self.rows]
        self.stage += goes_on & (self.goes_on[i] < laws.PROGRESS[stage])

        self.last_topic = topic
        cell = self.rows * laws.STYLES + self.done["style"][i]
        step = (self.done["response"][i] * np.float32(2) - 1) * np.float32(laws.STYLE_EVIDENCE)
        self.evidence[cell] = np.clip(self.evidence[cell] + step, -laws.STYLE_LIMIT, laws.STYLE_LIMIT)

    def _moves(self, topic: np.ndarray, action: np.ndarray) -> np.ndarray:
        """Whether an event is the next step on its topic in time, bool [S - 1, n]; remembers it."""
        cell = self.rows * CATEGORIES + topic
        before = self.last_action[cell]
        in_time = self.now - self.last_action_s[cell] < laws.PROGRESS_WITHIN_S
        self.last_action[cell], self.last_action_s[cell] = action, self.now
        searches = (before == laws.VIEW) & (action == laws.SEARCH) & in_time
        return np.stack([searches, (before == laws.SEARCH) & (action == laws.CART) & in_time])

    def impression(self) -> None:
        """(4) to (7): an ad is delivered, and clicked or not."""
        i = self.impressions_so_far
        self.impressions_so_far += 1
        last = self.delivers_last[i] & (self.last_topic != IDLE)
        category = np.where(last, self.last_topic, self.otherwise[i])
        ad = self.ads.running(category + self.slot_rank[i], self.began_s + self.now)
        surface = self.shown["surface"][i]
        self.tier_sum *= self.tier_fades[i]
        self.tier_weight *= self.tier_fades[i]
        price = laws.PRICES[self.ads.price[ad]]
        mismatch = np.minimum((price - self.tier_sum / (laws.TIER_PRIOR + self.tier_weight)) ** 2, np.float32(4))
        plain = self._plain_logit(i, ad, surface)
        p_plain = sigmoid(plain)
        bonus = np.float32(laws.PRICE_MATCH) * (1 - mismatch) * laws.PRICE_STAGE
        p_stage = sigmoid(plain + self.world.gamma.T[:, surface] + bonus)

        belief = self.belief.of(category)
        p = p_plain * (1 - belief.sum(axis=0)) + (belief * p_stage).sum(axis=0)
        oracle = np.where(self.intent == category, p_stage[self.stage, self.rows], p_plain)
        clicked = self.clicks[i] < oracle
        convert = sigmoid(laws.conversion_logit(belief, mismatch, self.ads.goal[ad]))
        self.belief.observe(category, np.where(clicked, p_stage / p_plain, (1 - p_stage) / (1 - p_plain)))
        self.tier_sum += clicked * price
        self.tier_weight += clicked

        self.shown["due"][i] = -1
        rows = np.flatnonzero(clicked)
        if len(rows):
            self.shown["due"][i, rows] = self._convert(rows, ad[rows], category[rows], convert[rows])
        self.shown["ad"][i] = ad
        self.shown["click"][i], self.shown["oracle"][i], self.shown["convert"][i] = p, oracle, convert

    def _plain_logit(self, i: int, ad: np.ndarray, surface: np.ndarray) -> np.ndarray:
        """Logarithmic odds of a click without an intent for the ad's category (6)."""
        world, ads = self.world, self.ads
        advertiser = ads.advertiser[ad]
        product = self.product * world.place[self.place[i]]
        product *= world.of_advertiser[advertiser]
        product *= world.creative[ads.creative[ad]]
        product *= world.of_style[ads.style[ad]]
        cross = world.limited(product.sum(axis=1))
        cell = self.rows * laws.ADVERTISERS + advertiser
        days = (self.now - self.seen_s[cell]) / np.float32(DAY_S)
        seen = self.seen[cell] * np.exp(-days / np.float32(laws.FATIGUE_DAYS))
        self.seen[cell], self.seen_s[cell] = seen + 1, self.now
        fatigue = world.fatigue[surface] * (1 - np.exp2(-seen))
        style = np.float32(laws.STYLE_WEIGHT) * np.tanh(self.evidence[self.rows * laws.STYLES + ads.style[ad]] / 2)
        direction = ads.direction[ad]
        drift = laws.drift(direction[:, 0], direction[:, 1], self.began_s + self.now)
        return world.base[surface] + cross + drift - fatigue + style

    def _convert(self, rows: np.ndarray, ad: np.ndarray, category: np.ndarray, convert: np.ndarray) -> np.ndarray:
        """(9): when the conversions of clicks by users `rows` are reported, int32 [k]."""
        delay_s = draw_reports(self.rng, convert, self.ads.goal[ad], self.ads.signal[ad])
        due = np.full(len(rows), NEVER, np.int32)
        reported = np.flatnonzero(delay_s >= 0)
        who = rows[reported]
        due[reported] = self.now[who] + delay_s[reported]
        place = self.due[who].argmax(axis=1)  # a free one
        self.due[who, place], self.due_category[who, place] = due[reported], category[reported]
        return due


_ACTIONS = laws.ACTIONS.astype(np.float32)
_ACTIONS_IDLE = laws.ACTIONS_IDLE.astype(np.float32)

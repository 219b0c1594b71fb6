"""What holds in the stream: constants, and the parameters of one world, drawn from its seed.

The README beside this file has the equations; numbers in brackets are theirs.

Shape letters: n impressions, C categories, S stages, D domains, R products.
"""

import numpy as np

CATEGORIES = 24
STAGES = 3
STYLES = 48
SURFACES = ("feed", "stories", "reels", "search", "messaging", "audience_network")
"""The domains."""
SURFACE_SHARE = np.array([0.38, 0.24, 0.16, 0.10, 0.08, 0.04])
ADVERTISERS_PER_CATEGORY = 4
ADVERTISERS = CATEGORIES * ADVERTISERS_PER_CATEGORY
AGES, COUNTRIES, LANGUAGES = 6, 8, 6
DEVICES = ("android", "ios", "desktop")
FORMATS = ("image", "video", "carousel", "collection")
GOALS = ("awareness", "traffic", "leads", "purchases")
PRICES = np.linspace(-2.0, 2.0, 9).astype(np.float32)
"""Price levels, in standard deviations of the market."""
SIGNALS = ("none", "pixel", "api", "app", "offline")
ORGANIC_ACTIONS = ("view", "search", "cart")
VIEW, SEARCH, CART = range(3)
RESPONSES = ("dislike", "like")
IMAGE_DIM = 8
DAY_S = 86_400

# (1) hidden intents
STAGE_DAYS = np.array([0.4, 3.0, 1.5])
"""How long an intent of each stage lasts (mean)."""
BIRTH_PER_DAY, BIRTH_AT_ONCE_DAYS = 0.6, 0.03
SUCCESSION, SUCCESSION_DAYS = 0.8, 7.0
"""Weight of what follows the last conversion, and how fast it wanes."""
SATIATION_DAYS = 10.0
TREND = 0.8
TASTE = 0.8
"""Share of a user's declared interests in what begins; the rest is any category."""

# (2) organic events
ON_TOPIC = 0.75
"""Share of a user's organic events that are about the intent, over the stream's `organic_intensity`."""
BACKGROUND = 0.15
"""Share of the other events that are about any category, not the user's interests."""
ACTIONS_IDLE = np.array([0.60, 0.28, 0.12])
ACTIONS = np.array([[0.56, 0.32, 0.12], [0.46, 0.34, 0.20], [0.42, 0.30, 0.28]])
PROGRESS = np.array([0.8, 0.8])
PROGRESS_WITHIN_S = DAY_S
"""A search moves an intent on only as the next event on its topic after a view, a cart only after a search, within this time."""

# (3) styles
AGREES = 0.62
"""A response agrees with the user's sign for the style this often."""
STYLE_EVIDENCE = float(np.log(AGREES / (1 - AGREES)))
STYLE_LIMIT = 6.0

# (4) the price that a user clicks
TIER_DAYS, TIER_PRIOR = 14.0, 0.5

# (5) delivery
DELIVER_LAST, DELIVER_INTEREST = 0.35, 0.33
"""Shares of ads of the last organic topic's category and of an interest's; the rest is of any category."""

# (6) click
FATIGUE_DAYS = 2.0
STYLE_WEIGHT = 1.7
PRICE_MATCH = 2.3
PRICE_STAGE = np.array([0.0, 0.5, 1.0], np.float32)[:, None]

# (7) crosses
CROSS_FEATURES = (
    "age", "country", "language", "device", "hour", "surface", "category", "advertiser", "format", "goal", "style", "price",
)  # fmt: skip
CROSS_ROWS = (
    AGES, COUNTRIES, LANGUAGES, len(DEVICES), 24, len(SURFACES), CATEGORIES, ADVERTISERS, len(FORMATS), len(GOALS), STYLES,
    len(PRICES),
)  # fmt: skip
CROSS_ORDERS = (0.15, 0.30, 0.20, 0.15, 0.10, 0.10)
CROSS_SLOPE, CROSS_SIZE, CROSS_LIMIT = 0.9, 1.0, 2.5
DOMAIN_ANGLE = 0.5
"""How far the domains' weights are turned from the shared ones, in radians."""

# (8) drift
DRIFT, DRIFT_DAYS = 0.45, 60.0

# (9) conversions
CONVERT_BASE, CONVERT_STAGE_2, CONVERT_STAGE_3, CONVERT_PRICE = -2.6, 1.2, 3.0, -0.4
CONVERT_GOAL = np.array([-0.8, -0.3, 0.3, 0.6], np.float32)


def sigmoid(x: np.ndarray) -> np.ndarray:
    """The logistic function."""
    return 1.0 / (1.0 + np.exp(-x))


class Laws:
    """Parameters of one world, and the parts of the click's logarithmic odds that need no history.

    Args:
      seed: of the world.
      crosses: R, the number of products (7).
    """

    def __init__(self, seed: int, crosses: int):
        rng = np.random.default_rng((seed, 7))
        self.base = np.array([-3.35, -3.65, -4.05, -4.35, -3.95, -4.75], np.float32)
        self.shared_gamma = np.array([0.2, 1.6, 3.4])
        own = self.shared_gamma * (1 + 0.45 * rng.standard_normal((len(SURFACES), STAGES)))
        self.gamma = np.clip(own, -0.5, 4.5).astype(np.float32)  # [D, S]
        self.fatigue = (1.6 * np.exp(0.4 * rng.standard_normal(len(SURFACES)))).astype(np.float32)
        cycle = rng.permutation(CATEGORIES)
        self.successor = np.empty(CATEGORIES, np.int64)
        self.successor[cycle] = np.roll(cycle, -1)
        self.trend_days = 40.0 + 50.0 * rng.random(CATEGORIES)
        self.trend_phase = rng.random(CATEGORIES)
        directions = rng.standard_normal((IMAGE_DIM, 2))
        self.drift_directions = (directions / np.linalg.norm(directions, axis=0)).astype(np.float32)
        self._draw_crosses(np.random.default_rng((seed, 8)), crosses)

    def _draw_crosses(self, rng: np.random.Generator, crosses: int) -> None:
        order = rng.choice(len(CROSS_ORDERS), size=crosses, p=CROSS_ORDERS) + 1
        rank = np.argsort(rng.random((len(CROSS_FEATURES), crosses)), axis=0)
        taking_part = rank < order
        self.slopes = [
            (CROSS_SLOPE * taking_part[f] * np.sqrt(3) * rng.uniform(-1, 1, (rows, crosses))).astype(np.float32)
            for f, rows in enumerate(CROSS_ROWS)
        ]  # [rows of a feature, R], 0 where a product leaves the feature out
        self.shared_weight = np.arange(1, crosses + 1) ** -0.6 * rng.choice([-1.0, 1.0], crosses)
        own = self.shared_weight * rng.standard_normal((len(SURFACES), crosses))
        turned = np.cos(DOMAIN_ANGLE) * self.shared_weight + np.sin(DOMAIN_ANGLE) * own
        sample = {name: rng.integers(0, rows, 4096) for name, rows in zip(CROSS_FEATURES, CROSS_ROWS, strict=True)}
        total = (self.products(sample) * turned[sample["surface"]]).sum(axis=1)
        self.cross_scale = CROSS_SIZE / total.std()
        self.cross_mean = float(total.mean() * self.cross_scale)
        self.weight = (turned * self.cross_scale).astype(np.float32)  # [D, R]
        self._tabulate()

    def _tabulate(self) -> None:
        """Products of features that go together, so that an impression's is that of a few rows."""
        goal, form, price = (a.ravel() for a in np.indices((len(GOALS), len(FORMATS), len(PRICES))))
        self.creative = self.products({"goal": goal, "format": form, "price": price})
        advertiser = np.arange(ADVERTISERS)
        category = advertiser // ADVERTISERS_PER_CATEGORY
        self.of_advertiser = self.products({"category": category, "advertiser": advertiser})
        self.of_style = self.products({"style": np.arange(STYLES)})
        surface, hour = (a.ravel() for a in np.indices((len(SURFACES), 24)))
        self.place = self.products({"surface": surface, "hour": hour}) * self.weight[surface]

    def products(self, features: dict[str, np.ndarray]) -> np.ndarray:
        """Products over some of the cross features (7): `prod_f (1 + slope_f)`, float32 [n, R].

        Args:
          features: name of a cross feature -> ids [n].
        """
        out = None
        for name, ids in features.items():
            factor = 1.0 + self.slopes[CROSS_FEATURES.index(name)][ids]
            out = factor if out is None else out * factor
        assert out is not None
        return out

    def crosses(self, features: dict[str, np.ndarray]) -> np.ndarray:
        """X_d(x) of (7), float32 [n]; `features` are all cross features."""
        total = (self.products(features) * self.weight[features["surface"]]).sum(axis=1)
        return self.limited(total)

    def limited(self, total: np.ndarray) -> np.ndarray:
        """X from the weighted sum of products."""
        return np.clip(total - np.float32(self.cross_mean), -CROSS_LIMIT, CROSS_LIMIT)

    def drift(self, image: np.ndarray, time_s: np.ndarray) -> np.ndarray:
        """(8): what an ad's image is worth at a time, float32 [n]; images [n, IMAGE_DIM]."""
        direction = image @ self.drift_directions
        return drift(direction[:, 0], direction[:, 1], time_s)

    def trend(self, day: np.ndarray) -> np.ndarray:
        """How much more often than usual intents of each category begin on days, float32 [days, C]."""
        wave = np.sin(2 * np.pi * (day[:, None] / self.trend_days + self.trend_phase))
        return np.exp(TREND * wave).astype(np.float32)


def drift(first: np.ndarray, second: np.ndarray, time_s: np.ndarray) -> np.ndarray:
    """(8) of ads with components `first` and `second` along the two directions, float32 [n]."""
    angle = (2 * np.pi / (DRIFT_DAYS * DAY_S) * time_s).astype(np.float32)
    return np.float32(DRIFT) * (np.cos(angle) * first + np.sin(angle) * second)


def conversion_logit(belief: np.ndarray, mismatch: np.ndarray, goal: np.ndarray) -> np.ndarray:
    """(9): logarithmic odds of a conversion after a click.

    Args:
      belief: [S, n], probabilities of an intent of each stage for the ad's category.
      mismatch: [n], squared distance of the ad's price from the user's.
      goal: int [n].
    """
    return (
        CONVERT_BASE
        + CONVERT_STAGE_3 * belief[2]
        + CONVERT_STAGE_2 * belief[1]
        + CONVERT_PRICE * mismatch
        + CONVERT_GOAL[goal]
    )

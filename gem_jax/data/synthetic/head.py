"""What an example shows of the tape: the reading head.

Shape letters: n examples, E events of their histories.
"""

import numpy as np

from gem_jax.data.batch import Examples, Histories
from gem_jax.data.columns import ragged_ranges
from gem_jax.data.schema import Schema
from gem_jax.data.synthetic import laws
from gem_jax.data.synthetic.inventory import Inventory
from gem_jax.data.synthetic.laws import DAY_S
from gem_jax.data.synthetic.people import People
from gem_jax.data.synthetic.reports import Reports
from gem_jax.data.synthetic.simulate import NEVER
from gem_jax.data.synthetic.tape import Place, Tape

ACTIONS = ("seen", "clicked", "converted")
"""What an impression in a history led to, as far as it is known at the example's time."""


class Head:
    """Reads examples off the tape.

    Args:
      seed: of the stream.
      schema: of the examples.
      tape: where lives lie.
      ads: the ads.
      read_days: labels are what is reported this many days after the impression.
    """

    def __init__(self, seed: int, schema: Schema, tape: Tape, ads: Inventory, read_days: float):
        self._seed, self._tape, self._ads = seed, tape, ads
        self._read_s = read_days * DAY_S
        self._reports, self._final = Reports(read_days), Reports(np.inf)
        self._max_len = {s.name: s.max_len for s in schema.sequences}

    def show(self, example_id: np.ndarray, place: Place) -> Examples:
        """The examples at n places; ids int64 [n]."""
        shown = {name: column[place.impression] for name, column in self._tape.impressions.items()}
        time_s = place.began_s + shown["time_s"]
        true, training, labels = self._outcomes(shown)
        return Examples(
            ids=self._ids(place.user, shown, time_s),
            dense=self._dense(shown, time_s),
            vectors={"image": self._ads.image[shown["ad"]]},
            sequences={"organic": self._organic(place, shown), "impressions": self._impressions(place, shown)},
            labels=labels,
            domain=shown["surface"].astype(np.int32),
            weight=np.ones(len(example_id), np.float32),
            user=place.user,
            example_id=example_id,
            time_s=time_s,
            true_probability=true,
            training=training,
        )

    def _outcomes(self, shown: dict[str, np.ndarray]) -> tuple[np.ndarray, dict[str, np.ndarray], np.ndarray]:
        """True probabilities [n, 2], training columns [n, 1] each, labels [n, 2]."""
        goal, signal = self._ads.goal[shown["ad"]], self._ads.signal[shown["ad"]]
        silent = signal == laws.SIGNALS.index("none")

        def observed(values: np.ndarray) -> np.ndarray:
            return np.where(silent, np.nan, values).astype(np.float32)

        due = shown["due"]
        converted = (due >= 0) & (due < NEVER)
        in_time = converted & (due - shown["time_s"] <= self._read_s)
        convert = self._reports.probability(shown["convert"], goal, signal)
        final = self._final.probability(shown["convert"], goal, signal)
        with np.errstate(invalid="ignore"):  # 0 / 0 where nothing is ever reported
            maturity = observed(convert / final)
        return (
            np.stack([shown["click"], observed(shown["click"] * convert)], axis=1),
            {"maturity": maturity[:, None], "conversion_final": observed(converted)[:, None]},
            np.stack([(due >= 0).astype(np.float32), observed(in_time)], axis=1),
        )

    def _ids(self, user: np.ndarray, shown: dict[str, np.ndarray], time_s: np.ndarray) -> dict[str, np.ndarray]:
        users, ad = People(self._seed, user), shown["ad"]
        ids = {"user": user, "hour": time_s % DAY_S // 3600, "ad": ad, "surface": shown["surface"]}
        ids |= {name: getattr(users, name) for name in ("age", "country", "language", "device", "interests")}
        of_ad = ("category", "advertiser", "style", "price", "goal", "format", "signal")
        ids |= {name: getattr(self._ads, name)[ad] for name in of_ad}
        return {name: (a if a.ndim == 2 else a[:, None]).astype(np.int32) for name, a in ids.items()}

    def _dense(self, shown: dict[str, np.ndarray], time_s: np.ndarray) -> np.ndarray:
        ad_age_s = time_s - self._ads.launched_s[shown["ad"]]
        ages = [np.log1p(age_s / DAY_S) - 2.0 for age_s in (shown["time_s"], ad_age_s)]
        return np.stack([*ages, laws.PRICES[self._ads.price[shown["ad"]]]], axis=1).astype(np.float32)

    def _organic(self, place: Place, shown: dict[str, np.ndarray]) -> Histories:
        end = place.organic + shown["before"]
        lengths = np.minimum(shown["before"], self._max_len["organic"])
        at, now = ragged_ranges(end - lengths, lengths), np.repeat(shown["time_s"], lengths)
        columns = self._tape.organic
        names = ("topic", "action", "style", "response", "surface")
        return Histories(
            ids={name: columns[name][at].astype(np.int32) for name in names},
            age_s=now - columns["time_s"][at],
            lengths=lengths.astype(np.int32),
        )

    def _impressions(self, place: Place, shown: dict[str, np.ndarray]) -> Histories:
        lengths = np.minimum(place.turn, self._max_len["impressions"])
        at, now = ragged_ranges(place.impression - lengths, lengths), np.repeat(shown["time_s"], lengths)
        columns, ads = self._tape.impressions, self._ads
        ad, due = columns["ad"][at], columns["due"][at]
        ids = {"ad": ad, "surface": columns["surface"][at]}
        ids["action"] = (due >= 0).astype(np.int32) + ((due >= 0) & (due <= now))
        ids |= {name: getattr(ads, name)[ad] for name in ("category", "advertiser", "format", "price")}
        return Histories(
            ids={name: a.astype(np.int32) for name, a in ids.items()},
            age_s=now - columns["time_s"][at],
            lengths=lengths.astype(np.int32),
        )

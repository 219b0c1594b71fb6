"""A small random log with everything that is awkward in it, and a slow, plain recomputation of what it is prepared as."""

import collections
import math
from typing import Any

import numpy as np
import pyarrow as pa

Rows = list[dict[str, Any]]

USERS = ["ann", "bob", "cy", "dee", "eve"]
DOMAINS = ["feed", "reels", "a.b"]


def random_log(n: int = 400, seed: int = 0) -> Rows:
    """Rows in no order of time, many at one time; users and values may be null, labels unobserved, late values unseen before."""
    rng = np.random.default_rng(seed)
    rows = []
    for k in range(n):
        time = int(rng.integers(0, 120)) * 50
        late = time > 5000
        rows.append(
            {
                "ts": 1_700_000_000 + time,
                "uid": None if rng.random() < 0.05 else str(rng.choice(USERS)),
                "ad_id": None
                if rng.random() < 0.05
                else int(rng.geometric(0.15)) + (1000 if late and k % 3 == 0 else 0),
                "brand": f"b{rng.geometric(0.4)}",
                "price": None if rng.random() < 0.1 else float(np.exp(rng.normal(2, 2))),
                "temperature": float(rng.normal(10, 5)),
                "channel": str(rng.choice(DOMAINS)),
                "click": int(rng.random() < 0.4),
                "buy": None if rng.random() < 0.3 else int(rng.random() < 0.3),
            }
        )
    return rows


def random_views(n: int = 150, seed: int = 1) -> Rows:
    """Another source of events of the same users and more; its `ad_id` is the log's."""
    rng = np.random.default_rng(seed)
    return [
        {
            "ts": 1_700_000_000 + int(rng.integers(0, 120)) * 50,
            "uid": None if rng.random() < 0.05 else str(rng.choice([*USERS, "zoe"])),
            "ad_id": int(rng.geometric(0.15)),
            "page": f"p{rng.geometric(0.5)}",
        }
        for _ in range(n)
    ]


def table(rows: Rows) -> pa.Table:
    """The rows as a table."""
    return pa.Table.from_pylist(rows)


class Reference:
    """What a log is prepared as, row by row in Python: ids, scaled numbers, parts and histories."""

    def __init__(self, rows: Rows, views: Rows, *, min_count: int, max_len: int, shares: tuple[float, float]):
        self.rows, self.views, self.max_len = rows, views, max_len
        times = sorted(row["ts"] for row in rows)
        valid_share, test_share = shares
        self.valid_from = _cut(times, 1 - valid_share - test_share)
        self.test_from = _cut(times, 1 - test_share)
        train = [row for row in rows if row["ts"] < self.valid_from]
        train_views = [row for row in views if row["ts"] < self.valid_from]
        self.ids = {
            "ad_id": _vocabulary([r["ad_id"] for r in [*train, *train_views]], min_count),
            "brand": _vocabulary([r["brand"] for r in train], min_count),
            "channel": _vocabulary([r["channel"] for r in train], min_count),
            "page": _vocabulary([r["page"] for r in train_views], min_count),
        }
        self.scaling = {
            name: _moments([r[name] for r in train], log) for name, log in (("price", True), ("temperature", False))
        }

    def part(self, row: dict[str, Any]) -> str:
        return "train" if row["ts"] < self.valid_from else "valid" if row["ts"] < self.test_from else "test"

    def id_of(self, column: str, value: Any) -> int:
        return -1 if value is None else self.ids[column].get(value, 0)

    def dense(self, row: dict[str, Any]) -> dict[str, float]:
        found = {}
        for name, log in (("price", True), ("temperature", False)):
            mean, std = self.scaling[name]
            found[name] = 0.0 if row[name] is None else (_logged(row[name], log) - mean) / std
        return found | {"price_missing": float(row["price"] is None)}

    def past(self, row: dict[str, Any]) -> list[tuple[int, ...]]:
        """(age, ad, brand, click, buy) of the newest earlier rows, oldest first."""
        events = [
            (r["ts"], self.id_of("ad_id", r["ad_id"]), self.id_of("brand", r["brand"]), r["click"], _outcome(r["buy"]))
            for r in self.rows
        ]
        return self._newest(row, self.rows, events)

    def viewed(self, row: dict[str, Any]) -> list[tuple[int, ...]]:
        """(age, ad, page) of the newest earlier views, oldest first."""
        events = [(r["ts"], self.id_of("ad_id", r["ad_id"]), self.id_of("page", r["page"])) for r in self.views]
        return self._newest(row, self.views, events)

    def _newest(self, row: dict[str, Any], rows: Rows, events: list[tuple[int, ...]]) -> list[tuple[int, ...]]:
        if row["uid"] is None:
            return []
        own = [e for r, e in zip(rows, events, strict=True) if r["uid"] == row["uid"] and r["ts"] < row["ts"]]
        return [(row["ts"] - event[0], *event[1:]) for event in sorted(own)[-self.max_len :]]


def _outcome(label: int | None) -> int:
    return -1 if label is None else label


def _cut(times: list[int], share: float) -> int:
    """The time from which on the rows whose number comes nearest to the share left over are."""
    wanted = share * len(times)
    return min(sorted(set(times)), key=lambda t: abs(sum(u < t for u in times) - wanted))


def _vocabulary(values: list[Any], min_count: int) -> dict[Any, int]:
    counts = collections.Counter(v for v in values if v is not None)
    ordered = sorted((v for v, c in counts.items() if c >= min_count), key=lambda v: (-counts[v], v))
    return {value: place + 1 for place, value in enumerate(ordered)}


def _logged(value: float, log: bool) -> float:
    return math.copysign(math.log1p(abs(value)), value) if log else value


def _moments(values: list[float | None], log: bool) -> tuple[float, float]:
    known = [_logged(v, log) for v in values if v is not None]
    mean = sum(known) / len(known)
    return mean, math.sqrt(sum((v - mean) ** 2 for v in known) / len(known))

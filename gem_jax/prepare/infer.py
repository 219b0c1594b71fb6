"""A guess of what each column of a log is, from its first rows, with the reason in words.

It is a guess by rules that can be read here, meant to be looked at: `features.json` is there to be edited.
"""

import dataclasses
import re
from collections.abc import Iterable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from gem_jax.data.schema import RESERVED, Role
from gem_jax.prepare.features import Feature, free_name
from gem_jax.prepare.types import family, is_list
from gem_jax.prepare.values import whole_numbers

FEW = 50
"""Distinct integers up to which they are taken for categories whatever they look like."""
REPEATS = 3
"""Rows per distinct value from which on integers that look like nothing else are taken for categories."""
HASHED = 2**31
"""Integers beyond this are hashes: no count or price of anything goes there."""
ALL_DIFFERENT = 0.9
"""Share of rows with a text of their own from which on it is taken for free text or an id of the row."""
FALLING = 1.0
"""Skewness from which on integers are taken for counts: ids are spread, or named as ids."""
SKEWED = 2.0
"""Skewness from which on a logarithm is taken."""
MOST_IDS = 32
"""Ids that a list keeps at most unless the user says more."""

_ID_WORDS = {
    "id",
    "ids",
    "uid",
    "code",
    "codes",
    "hash",
    "key",
    "type",
    "category",
    "cat",
    "zip",
    "zipcode",
    "sku",
    "class",
}
_OUTCOME_WORDS = {
    "click", "clicked", "buy", "bought", "purchase", "purchased", "conversion", "converted", "install", "installed", "order",
    "ordered", "label", "target", "outcome", "response", "dwell", "watched", "liked",
}  # fmt: skip
_ROLE_WORDS: tuple[tuple[Role, set[str]], ...] = (
    ("user", {"user", "users", "uid", "member", "viewer", "age", "gender", "sex", "occupation", "income"}),
    ("format", {"format", "creative", "size"}),
    ("goal", {"goal", "objective", "bid"}),
    ("surface", {"surface", "placement", "position", "channel", "slot", "page"}),
    (
        "ad",
        {
            "ad", "ads", "item", "items", "campaign", "advertiser", "product", "movie", "brand", "category", "cat",
            "genre", "genres", "price", "sku", "shop", "seller", "artist", "title", "article", "video",
        },
    ),
)  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Hints:
    """What the user says of a log's columns.

    Attributes:
      user: column of the user's id.
      item: column of what is shown, if any.
      domain: column of the domain, if any.
      not_features: columns that are labels, times or ids of examples.
      reserved: names that features must not take, such as those of sequences.
    """

    user: str
    item: str | None = None
    domain: str | None = None
    not_features: tuple[str, ...] = ()
    reserved: tuple[str, ...] = ()


def infer(sample: pa.Table, longest: dict[str, int], hints: Hints) -> tuple[Feature, ...]:
    """The features of a log.

    Args:
      sample: its first rows.
      longest: list column -> the most values that a row of the whole log has.
      hints: what the user says.
    """
    names = _Names((*RESERVED, "user", "age_s", *hints.reserved))
    features = []
    for column in sample.column_names:
        if column in hints.not_features:
            continue
        values = sample[column].combine_chunks()
        feature = _guess(column, values, longest.get(column, 0), hints)
        if feature.kind != "ignore":
            name = names.free(column)
            feature = dataclasses.replace(feature, name=name, table=name, look=_look(feature))
        features.append(feature)
    return _with_events(features, sample, hints)


def infer_events(sample: pa.Table, source: str, log: Iterable[Feature], hints: Hints) -> tuple[Feature, ...]:
    """The attributes of another source of events; a column that the log has as a categorical too shares its vocabulary."""
    shared = {f.column: f.table for f in log if f.kind == "categorical"}
    names = _Names(("age_s",))
    features = []
    for column in sample.column_names:
        if column in hints.not_features or column == hints.user:
            continue
        guess = _guess(column, sample[column].combine_chunks(), 0, hints)
        name = names.free(column)
        if guess.kind == "categorical" and not is_list(sample.schema.field(column).type):
            table = shared.get(column) or f"{source}_{name}"
            features.append(dataclasses.replace(guess, name=name, table=table, role="event"))
        else:
            why = guess.why if guess.kind == "ignore" else f"events have single ids only; {guess.why}"
            features.append(Feature(column=column, kind="ignore", why=why, look=guess.look))
    return tuple(features)


def _look(feature: Feature) -> str:
    """Why the guess may be wrong: what is known only after the row was shown tells the label."""
    outcome = (
        "what came of the row? then ignore it, or make it a label" if _words(feature.column) & _OUTCOME_WORDS else ""
    )
    return "; ".join(filter(None, (outcome, feature.look)))


class _Names:
    """Names for the schema, none twice."""

    def __init__(self, taken: Iterable[str]):
        self._taken = set(taken)

    def free(self, column: str) -> str:
        name = free_name(column, self._taken)
        while f"{name}_missing" in self._taken:
            name = free_name(f"{name}_", self._taken)
        self._taken |= {name, f"{name}_missing"}
        return name


def _with_events(features: list[Feature], sample: pa.Table, hints: Hints) -> tuple[Feature, ...]:
    """Marks what of a past row is an attribute of its event: what was shown, else the categorical of the most values."""
    single = [f for f in features if f.kind == "categorical" and not is_list(sample.schema.field(f.column).type)]
    shown = {f.column for f in single if f.role == "ad"}
    if not shown and single:
        shown = {max(single, key=lambda f: _count_distinct(sample[f.column].combine_chunks())).column}
    return tuple(dataclasses.replace(f, event=f.column in shown) for f in features)


def _guess(column: str, values: pa.Array, longest: int, hints: Hints) -> Feature:
    values = whole_numbers(values)
    kind = family(values.type)
    role = _role(column, hints)
    if column == hints.user:
        why = "the user: histories and grouped metrics use it; 'categorical' gives frequent users an embedding"
        return Feature(column=column, kind="ignore", why=why)
    if re.fullmatch(r"__index_level_\d+__", column):
        return Feature(column=column, kind="ignore", why="an index of pandas")
    known = values.drop_null()
    if not len(known):
        return Feature(column=column, kind="ignore", why=f"no value in {len(values):,} rows")
    if kind == "list":
        return _guess_list(column, values, longest, role)
    if kind in ("time", "other"):
        look = {
            "time": "give what it says as a number, e.g. an age or an hour",
            "other": "nested values and bytes are not read",
        }
        return Feature(column=column, kind="ignore", why=str(values.type), look=look[kind])
    distinct = _count_distinct(known)
    seen = f"{distinct:,} distinct {_NOUNS[kind]} in {len(known):,} rows"
    if distinct == 1 and len(known) == len(values) and column not in (hints.item, hints.domain):
        return Feature(column=column, kind="ignore", why=f"always {known[0]}")
    if column in (hints.item, hints.domain):
        return Feature(column=column, kind="categorical", role=role, why=f"{seen}, {_said(column, hints)}")
    if kind == "number":
        return _dense(column, known, role, f"{seen}")
    if kind in ("integer", "unsigned"):
        return _guess_integers(column, known, distinct, role, seen)
    if kind == "string" and len(known) >= 100 and distinct > ALL_DIFFERENT * len(known):
        return Feature(
            column=column,
            kind="ignore",
            why=seen,
            look="an id of the row, or free text? categorical if ids repeat later",
        )
    return Feature(column=column, kind="categorical", role=role, why=seen)


_NOUNS = {"boolean": "booleans", "integer": "integers", "unsigned": "integers", "number": "reals", "string": "strings"}


def _said(column: str, hints: Hints) -> str:
    return "the item" if column == hints.item else "the domain"


def _guess_integers(column: str, known: pa.Array, distinct: int, role: Role, seen: str) -> Feature:
    def categorical(why: str, look: str = "") -> Feature:
        return Feature(column=column, kind="categorical", role=role, why=f"{seen}{why}", look=look)

    low, high = (pc.min_max(known)[key].as_py() for key in ("min", "max"))
    if max(abs(low), abs(high)) > HASHED:
        return categorical(", too large for counts: hashes")
    if _words(column) & _ID_WORDS or column.lower().endswith("id"):
        return categorical(", named as an id")
    if distinct <= FEW:
        look = "few integers: a count or a rank? dense if so" if distinct > 10 else ""
        return categorical("", look)
    if _skewness(_reals(known)) > FALLING:
        return _dense(
            column, known, role, f"{seen}, fewer and fewer large ones: a count", look="an id? categorical if so"
        )
    if len(known) >= REPEATS * distinct:
        return categorical("", look="a count or a price? dense if so")
    return _dense(column, known, role, f"{seen}, {low:,} to {high:,}", look="an id? categorical if so")


def _dense(column: str, known: pa.Array, role: Role, why: str, look: str = "") -> Feature:
    skewness = _skewness(_reals(known))
    log = abs(skewness) > SKEWED
    why += f", skewness {skewness:.1f}: logarithm" if log else ""
    return Feature(column=column, kind="dense", role=role, log=log, why=why, look=look)


def _guess_list(column: str, values: pa.Array, longest: int, role: Role) -> Feature:
    lengths = {n for n in pc.list_value_length(values).drop_null().unique().to_pylist()}  # pyright: ignore[reportAttributeAccessIssue]
    inner = values.flatten()
    kind = family(inner.type)
    if is_list(inner.type) or kind in ("time", "other", "empty"):
        return Feature(
            column=column, kind="ignore", why=str(values.type), look="lists of ids or of numbers are read, others not"
        )
    if kind == "number" and len(lengths) == 1 and whole_numbers(inner) is inner:
        (dim,) = lengths
        return Feature(column=column, kind="vector", role=role, dim=dim, why=f"always {dim} reals")
    if kind == "number":
        return Feature(
            column=column, kind="ignore", why=f"{values.type} of differing lengths", look="vectors have one length"
        )
    distinct = _count_distinct(inner)
    why = f"lists of up to {longest:,} of {distinct:,} distinct {_NOUNS[kind]}"
    look = f"longer lists keep their first {MOST_IDS}" if longest > MOST_IDS else ""
    if len(lengths) == 1 and max(lengths) > 1 and kind == "integer":
        look = f"always {max(lengths)} integers: a vector? then write reals"
    max_ids = min(max(longest, 1), MOST_IDS)
    return Feature(column=column, kind="categorical", role=role, max_ids=max_ids, why=why, look=look)


def _role(column: str, hints: Hints) -> Role:
    if column == hints.item:
        return "ad"
    if column == hints.domain:
        return "surface"
    words = _words(column)
    return next((role for role, known in _ROLE_WORDS if words & known), "context")


def _words(column: str) -> set[str]:
    """`adCampaign_id` -> ad, campaign, id."""
    return {word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+", column)}


def _count_distinct(values: pa.Array) -> int:
    return int(pc.count_distinct(values).as_py())


def _reals(values: pa.Array) -> np.ndarray:
    return values.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)


def _skewness(values: np.ndarray) -> float:
    """The third standardised moment; 0 where all values are the same."""
    values = values[np.isfinite(values)]
    spread = values.std() if len(values) else 0.0
    return float((((values - values.mean()) / spread) ** 3).mean()) if spread > 0 else 0.0

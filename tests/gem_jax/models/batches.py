"""A small schema with every kind of feature, and random batches of it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from gem_jax.data.batch import Batch, Events
from gem_jax.data.schema import Categorical, Dense, Schema, Sequence, Table, Task, Vector
from gem_jax.embedding.tables import Embedded

FULL = Schema(
    tables=(Table(name="user", rows=40), Table(name="ad", rows=30), Table(name="topic", rows=7)),
    categoricals=(
        Categorical(name="user", table="user", role="user"),
        Categorical(name="ad", table="ad", role="ad"),
        Categorical(name="interests", table="topic", role="user", max_ids=3),
        Categorical(name="topic", table="topic", role="ad"),
    ),
    dense=(Dense(name="bid", role="ad"), Dense(name="age", role="user")),
    vectors=(Vector(name="image", dim=5, role="ad"),),
    sequences=(
        Sequence(
            name="impressions",
            attributes=(
                Categorical(name="ad", table="ad", role="event"),
                Categorical(name="topic", table="topic", role="event"),
            ),
            max_len=11,
        ),
        Sequence(name="organic", attributes=(Categorical(name="topic", table="topic", role="event"),), max_len=20),
    ),
    tasks=(Task(name="click"), Task(name="conversion")),
    domains=("feed", "stories", "messaging"),
)

BARE = Schema(  # no dense features, vectors or histories; one domain, one task
    tables=(Table(name="user", rows=40), Table(name="ad", rows=30)),
    categoricals=(
        Categorical(name="user", table="user", role="user"),
        Categorical(name="ad", table="ad", role="ad"),
    ),
    tasks=(Task(name="click"),),
    domains=("all",),
)


def packed_offsets(lengths: np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(-(-lengths // 8) * 8)]).astype(np.int32)


def random_batch(schema: Schema, num_slots: int, *, filled: int | None = None, seed: int = 0) -> Batch:
    """`filled` random examples (all slots if None), then empty slots; histories of uneven length, some empty."""
    rng = np.random.default_rng(seed)
    filled = num_slots if filled is None else filled
    is_filled = np.arange(num_slots) < filled

    def draw_ids(feature, shape):
        ids = rng.integers(-1, schema.table(feature.table).rows, shape)
        return ids.astype(np.int32)

    sequences = {}
    for sequence in schema.sequences:
        lengths = rng.integers(0, sequence.max_len + 1, num_slots)
        lengths[:2] = (0, sequence.max_len)
        lengths = np.where(is_filled, lengths, 0).astype(np.int32)
        offsets = packed_offsets(lengths)
        num_rows = num_slots * (-(-sequence.max_len // 8) * 8)
        is_event = np.zeros(num_rows, bool)
        age_s = np.zeros(num_rows, np.int32)
        for start, length in zip(offsets[:-1], lengths, strict=True):
            is_event[start : start + length] = True
            age_s[start : start + length] = np.sort(rng.integers(0, 10**6, length))[::-1]
        ids = {a.name: np.where(is_event, draw_ids(a, num_rows), -1).astype(np.int32) for a in sequence.attributes}
        sequences[sequence.name] = Events(ids=ids, age_s=age_s, offsets=offsets, lengths=lengths)

    labels = rng.integers(0, 2, (num_slots, len(schema.tasks))).astype(np.float32)
    return Batch(
        ids={
            f.name: np.where(is_filled[:, None], draw_ids(f, (num_slots, f.max_ids)), -1).astype(np.int32)
            for f in schema.categoricals
        },
        dense=(rng.normal(size=(num_slots, len(schema.dense))) * is_filled[:, None]).astype(np.float32),
        vectors={
            v.name: (rng.normal(size=(num_slots, v.dim)) * is_filled[:, None]).astype(np.float32)
            for v in schema.vectors
        },
        sequences=sequences,
        labels=np.where(is_filled[:, None], labels, np.nan).astype(np.float32),
        domain=(rng.integers(0, len(schema.domains), num_slots) * is_filled).astype(np.int32),
        weight=is_filled.astype(np.float32),
    )


def embed(schema: Schema, batch: Batch, dim: int, *, seed: int = 0) -> tuple[dict[str, jax.Array], Embedded]:
    """Random tables, and what the model is given of them for a batch."""
    num_rows = sum(t.rows for t in schema.tables)
    rows = 0.5 * jax.random.normal(jax.random.key(seed), (num_rows, dim))
    ends = np.cumsum([t.rows for t in schema.tables])
    tables = dict(zip([t.name for t in schema.tables], jnp.split(rows, ends[:-1]), strict=True))
    return tables, lookup(schema, tables, batch)


def lookup(schema: Schema, tables: dict[str, jax.Array], batch: Batch) -> Embedded:
    """The batch's ids as vectors: 0 where absent, the mean over the ids present of a feature with several."""
    features = {}
    for feature in schema.categoricals:
        ids = batch.ids[feature.name]
        present = jnp.maximum((ids >= 0).sum(axis=1, keepdims=True), 1)
        features[feature.name] = _rows(tables[feature.table], ids).sum(axis=1) / present
    events = {
        s.name: {a.name: _rows(tables[a.table], batch.sequences[s.name].ids[a.name]) for a in s.attributes}
        for s in schema.sequences
    }
    return Embedded(features=features, events=events)


def _rows(table, ids):
    return jnp.where((ids >= 0)[..., None], table[jnp.maximum(ids, 0)], 0)


def poison_padding(batch: Batch, embedded):
    """The same batch with NaN in the embedded padding rows and wild ages there."""
    events, sequences = {}, {}
    for name, source in batch.sequences.items():
        is_event = np.zeros(len(source.age_s), bool)
        for start, length in zip(source.offsets[:-1], source.lengths, strict=True):
            is_event[start : start + length] = True
        events[name] = {a: jnp.where(is_event[:, None], x, jnp.nan) for a, x in embedded.events[name].items()}
        age_s = np.where(is_event, source.age_s, 10**9).astype(np.int32)
        sequences[name] = dataclasses.replace(source, age_s=age_s)
    return dataclasses.replace(batch, sequences=sequences), dataclasses.replace(embedded, events=events)

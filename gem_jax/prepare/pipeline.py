"""From a raw log to a folder that trains with one more command, in three passes: look, learn, write.

What is held in memory: a batch of rows; one entry per distinct value of every vocabulary; and, of every row of the log and of every
event of the other sources, its time, user and event ids, to sort them: 16 bytes and 4 per attribute, twice while they are sorted.
So 100 million rows with 4 attributes take about 10 GB. CSV is read once more before, to settle what its columns are.
"""

import dataclasses
import itertools
import pathlib
from typing import Any

import numpy as np
from rich.console import Console

from gem_jax.data.event_log import EventLog
from gem_jax.data.schema import Schema
from gem_jax.data.source import PARTS, DataError
from gem_jax.errors import UserError
from gem_jax.files import write_json
from gem_jax.prepare.config import EVENTS, EXAMPLES, PARTS_FILE, PreparedConfig
from gem_jax.prepare.encoder import EXAMPLE_ID, Encoder
from gem_jax.prepare.features import Features, free_name, read_features
from gem_jax.prepare.infer import Hints, infer, infer_events
from gem_jax.prepare.learn import Learned, Learner, check_features
from gem_jax.prepare.log import Log, open_log
from gem_jax.prepare.preparation import Preparation, newest
from gem_jax.prepare.records import event_order, example_dtype, file_digest, find_histories, log_of, save_records
from gem_jax.prepare.show import show_features, show_parts
from gem_jax.prepare.spec import DOMAIN, FILE, OTHER, PAST, Columns, Spec, label_table
from gem_jax.prepare.survey import Cut, Survey, survey
from gem_jax.prepare.values import Clock, Column

FEATURES_FILE = "features.json"

_WRITTEN = (f"{EXAMPLES}/*.npy", f"{EVENTS}/*.npy", "vocabularies/[0-9]*.parquet", "last_events/*.npy")
"""Files that a preparation writes: no others are taken away from a folder that is prepared again."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prepared:
    """A prepared folder.

    Attributes:
      folder: where it is.
      features: what every column became.
      rows: part -> examples.
    """

    folder: pathlib.Path
    features: Features
    rows: dict[str, int]

    def __repr__(self) -> str:
        return f"Prepared(folder={str(self.folder)!r}, rows={self.rows}, features={len(self.features.log)})"

    @property
    def config(self) -> PreparedConfig:
        """The `data` section of a run that trains on it."""
        return PreparedConfig(path=str(self.folder))


def prepare(
    log: Any,
    *,
    label: str | tuple[str, ...] | list[str],
    time: str,
    user: str,
    out: str | pathlib.Path,
    item: str | None = None,
    domain: str | None = None,
    events: dict[str, Any] | None = None,
    min_count: int = 5,
    test_share: float = 0.1,
    valid_share: float = 0.1,
    max_len: int = 100,
    schema: str | pathlib.Path | None = None,
    console: Console | None = None,
) -> Prepared:
    """Prepares a log for training, and for scoring more of its rows later.

    Rows are split by time: the last `test_share` is for test, what comes before it for validation, the rest trains. Vocabularies
    and scalings are learned from the training rows alone. A row's history is what its user did strictly before: earlier rows of
    the log, with what was shown and the labels, and the events of the other sources.

    Leakage: a past row shows its labels from its own time on. A label that becomes known only later, such as a conversion days
    after its click, is thus seen by rows in between, which serving could not know: results on such a log flatter the model.

    Args:
      log: a CSV or Parquet file, a folder of either, or a table of pyarrow, Polars or pandas.
      label: columns of 0, 1 and null (unobserved); a task each.
      time: column of times: timestamps, dates, integers since 1970 in s, ms, us or ns, or seconds on the log's own clock.
      user: column of the user's id: integers or strings.
      out: folder to make.
      item: column of what was shown, e.g. the ad: the candidate to score and the main attribute of past rows.
      domain: column of the delivery channel; each channel gets a head of its own where the model has them.
      events: name -> log of another source of events, with the same time and user columns.
      min_count: training rows that a value needs for an id of its own.
      test_share: of the rows.
      valid_share: of the rows; 0 makes no validation part.
      max_len: newest events of a history.
      schema: a features.json, edited, in place of the guess.
      console: where what was found is shown; standard output unless given, `Console(quiet=True)` for nothing.

    Raises:
      DataError: the log, a column or the features.json is not as it must be; one sentence says what, where, and what to change.
    """
    console = console or Console()
    labels = (label,) if isinstance(label, str) else tuple(label)
    columns = Columns(label=labels, time=time, user=user, item=item, domain=domain)
    _check_options(columns, events or {}, min_count, test_share, valid_share, max_len)
    folder = _folder(pathlib.Path(out))

    logs = {PAST: open_log(log)} | {name: open_log(raw) for name, raw in (events or {}).items()}
    found = survey(logs[PAST], columns)
    samples = {PAST: found.sample} | {name: _event_sample(logs[name], columns, found.clock) for name in events or {}}
    cut = Cut.of(found.ticks, valid_share=valid_share, test_share=test_share, log=logs[PAST])
    guess = _guess(found, samples, columns)
    where = str(schema) if schema is not None else f"{folder}/{FEATURES_FILE}"
    features = guess if schema is None else _edited(pathlib.Path(schema), guess)
    check_features(features, logs, columns, where)
    show_features(features, columns, console)
    _write_features(folder / FEATURES_FILE, features, given=schema is not None)

    learner = Learner(features, samples, columns)
    for name, one in logs.items():
        learner.read(name, one, found.clock, cut.valid_from)
    learned = learner.learned(min_count, logs[PAST])
    spec = _spec(columns, found.clock, features, learned, cut, min_count=min_count, max_len=max_len)

    _begin(folder)
    num_events = _write(folder, spec, learned, logs, found.ticks, cut)
    left_out = {name: log.count_rows() - num_events[name] for name, log in logs.items()}
    show_parts(folder, spec, cut.counts, left_out, console)
    return Prepared(folder=folder, features=features, rows={part: n for part, n in cut.counts.items() if n})


def _check_options(
    columns: Columns, events: dict[str, Any], min_count: int, test_share: float, valid_share: float, max_len: int
) -> None:
    if not columns.label:
        raise DataError("name at least one label: --label <column>")
    named = [*columns.label, columns.time, columns.user]
    for name in named:
        if named.count(name) > 1:
            raise DataError(f"column '{name}' is named twice among label, time and user; each is a column of its own")
    if not 0 < test_share < 1 or not 0 <= valid_share < 1 or test_share + valid_share >= 1:
        raise DataError(
            f"test_share {test_share:g} and valid_share {valid_share:g} must leave rows to train on: "
            "above 0 (valid_share: 0 or more), together below 1"
        )
    if min_count < 1 or max_len < 1:
        raise DataError(f"min_count {min_count} and max_len {max_len} must be 1 or more")
    for name in events:
        if name == PAST or not name.isidentifier():
            raise DataError(
                f"events cannot be called '{name}'; use letters, digits and _, and not '{PAST}', the log's own rows"
            )


def _folder(out: pathlib.Path) -> pathlib.Path:
    """The folder to make; one that holds other things is refused."""
    if out.is_file():
        raise DataError(f"{out} is a file; name a folder to make with --out")
    if out.is_dir() and any(out.iterdir()) and not any((out / name).exists() for name in (FEATURES_FILE, FILE)):
        raise DataError(f"{out} holds other files; name a new folder with --out")
    return out


def _event_sample(log: Log, columns: Columns, clock: Clock) -> Any:
    """The first rows of a source of events.

    Raises:
      DataError: it lacks the time or the user, is empty, or counts its times in another unit.
    """
    for name in (columns.time, columns.user):
        if name not in log.schema.names:
            raise DataError(f"{log.name} has no column '{name}'; events need the time and user columns of the log")
    sample = next(log.batches(log.schema.names), None)
    if sample is None:
        raise DataError(f"{log.name} holds no rows: leave this source out, or give events")
    times = Column(values=sample[columns.time].combine_chunks(), name=columns.time, log=log.name)
    own = Clock.of(times.values.type, int(clock.ticks(times).max()))
    if own != clock:
        raise DataError(
            f"{log.name}: '{columns.time}' counts {own.unit}, and the log's {clock.unit}; give both in one unit"
        )
    return sample


def _guess(found: Survey, samples: dict[str, Any], columns: Columns) -> Features:
    tasks = _tasks(columns)
    reserved = (*samples, *tasks, *(label_table(task) for task in tasks))
    hints = Hints(
        user=columns.user,
        item=columns.item,
        domain=columns.domain,
        not_features=(*columns.label, columns.time, EXAMPLE_ID),
        reserved=reserved,
    )
    log = infer(found.sample, found.longest, hints)
    events = {
        name: infer_events(sample, name, log, dataclasses.replace(hints, not_features=(columns.time, columns.user)))
        for name, sample in samples.items()
        if name != PAST
    }
    return Features(log=log, events=events)


def _edited(file: pathlib.Path, guess: Features) -> Features:
    """The features of a file; every column that the guess has must be in it, so that none is forgotten."""
    features = read_features(file)
    pairs = [(features.log, guess.log, "")]
    pairs += [
        (features.events[name], guess.events[name], f", events '{name}'")
        for name in guess.events
        if name in features.events
    ]
    for given, wanted, where in pairs:
        known = {feature.column for feature in given}
        for feature in wanted:
            if feature.column not in known:
                raise DataError(
                    f"{file}{where} lacks column '{feature.column}' of the log; add it, perhaps of kind 'ignore'"
                )
    return features


def _write_features(file: pathlib.Path, features: Features, *, given: bool) -> None:
    """Writes features.json; one that says something else is the user's work, and is not overwritten by a guess."""
    if file.exists() and not given and read_features(file).decisions != features.decisions:
        raise DataError(f"{file} says something else than the guess; pass --schema {file} to use it, or remove it")
    write_json(file, features.to_json())


def _tasks(columns: Columns) -> tuple[str, ...]:
    tasks: list[str] = []
    for name in columns.label:
        tasks.append(free_name(name, tasks))
    return tuple(tasks)


def _spec(
    columns: Columns, clock: Clock, features: Features, learned: Learned, cut: Cut, *, min_count: int, max_len: int
) -> Spec:
    vocabularies = learned.vocabularies
    domains = ["all"] if columns.domain is None else [OTHER]
    for value in [] if columns.domain is None else vocabularies[DOMAIN].values.to_pylist():
        domains.append(free_name(str(value), domains))
    return Spec(
        columns=columns,
        clock=clock,
        max_len=max_len,
        max_kept=max_len,
        complete_from=cut.test_from,
        min_count=min_count,
        features=features,
        rows={name: vocabulary.rows for name, vocabulary in vocabularies.items()},
        families={name: vocabulary.family for name, vocabulary in vocabularies.items()},
        scalings=learned.scalings,
        missing=learned.missing,
        tasks=_tasks(columns),
        domains=tuple(domains),
    )


def _begin(folder: pathlib.Path) -> None:
    """Takes away what an earlier preparation left, its preparation.json first: a folder without one is not taken for whole."""
    try:
        (folder / FILE).unlink(missing_ok=True)
        for old in itertools.chain(*(folder.glob(pattern) for pattern in _WRITTEN)):
            old.unlink()
        for name in (EXAMPLES, EVENTS):
            (folder / name).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"'{folder}' cannot be written ({error.strerror}); name a place that can") from error


def _write(
    folder: pathlib.Path, spec: Spec, learned: Learned, logs: dict[str, Log], ticks: np.ndarray, cut: Cut
) -> dict[str, int]:
    """The third pass: examples, events, and what scoring needs; how many events each source has."""
    encoder = Encoder(spec, learned.vocabularies)
    events = {name: np.concatenate(list(encoder.events(name, log))) for name, log in logs.items() if name != PAST}
    parts, past = _write_examples(folder, encoder, logs[PAST], ticks, cut)
    events = {PAST: past} | events
    events = {name: records[event_order(records)] for name, records in events.items()}
    for name, records in events.items():
        save_records(folder / EVENTS / f"{name}.npy", records)
    sources: dict[str, EventLog] = {name: log_of(records, spec.clock.ticks_per_s) for name, records in events.items()}
    for records in parts.values():
        find_histories(records, sources, spec.max_len)
        records.flush()
    event_files = [folder / EVENTS / f"{name}.npy" for name in spec.sources]
    identity = {
        part: {"rows": len(records), "digest": file_digest([folder / EXAMPLES / f"{part}.npy", *event_files])}
        for part, records in parts.items()
    }
    write_json(folder / PARTS_FILE, identity)
    last = {name: newest(records, spec.max_kept, spec.complete_from) for name, records in events.items()}
    Preparation(spec=spec, vocabularies=learned.vocabularies, last_events=last).save(folder)
    return {name: len(records) for name, records in events.items()}


def _write_examples(
    folder: pathlib.Path, encoder: Encoder, log: Log, ticks: np.ndarray, cut: Cut
) -> tuple[dict[str, np.memmap], np.ndarray]:
    """The records of every part, in order of time, without histories; and the events that they are to later rows."""
    place = np.empty(len(ticks), np.int64)
    place[np.argsort(ticks, kind="stable")] = np.arange(len(ticks))
    parts, starts = _make_files(folder, encoder.schema, cut.counts)
    past = []
    row = 0
    for records in encoder.examples(log, with_labels=True):
        if row + len(records) > len(ticks):
            raise DataError(f"{log.name} changed while it was being read; leave it as it is until the end")
        places = place[row : row + len(records)]
        for part, mapped in parts.items():
            here = (places >= starts[part]) & (places < starts[part] + len(mapped))
            mapped[places[here] - starts[part]] = records[here]
        past.append(encoder.past_events(records))
        row += len(records)
    if row != len(ticks):
        raise DataError(f"{log.name} changed while it was being read; leave it as it is until the end")
    return parts, np.concatenate(past)


def _make_files(
    folder: pathlib.Path, schema: Schema, counts: dict[str, int]
) -> tuple[dict[str, np.memmap], dict[str, int]]:
    """An empty file of records per part that has rows, and the place of its first row among all, in order of time."""
    dtype = example_dtype(schema)
    starts = dict(zip(PARTS, np.cumsum([0, *counts.values()])[:-1].tolist(), strict=True))
    files = {
        part: np.lib.format.open_memmap(folder / EXAMPLES / f"{part}.npy", mode="w+", dtype=dtype, shape=(count,))
        for part, count in counts.items()
        if count
    }
    return files, starts

"""From a raw log to a folder that trains with one more command, and to raw rows scored with no code.

    prepared = prepare("log.parquet", label="click", time="ts", user="uid", item="ad_id", out="prepared")
    python -m gem_jax.train configs/prepared.py data.path=prepared
    Preparation.load("prepared").source("new_rows.parquet")          the same numbers as in training, for `predict`

The prepared folder:

    features.json       what each column becomes, with reasons; edit it and pass it as --schema   `features`, `infer`
    preparation.json    what raw rows become examples by                                          `spec`
    vocabularies/       values in the order of their ids, as Parquet                              `vocabulary`
    last_events/        the newest events of every user, to score what comes later                `preparation`
    examples/           train, valid, test in order of time: rows of fixed size, memory-mapped    `records`, `config`
    events/             one log per source, by user and time; an example has a range of its rows  `gem_jax.data.event_log`
    parts.json          how many rows the parts have, and digests

Three passes over the log: `survey` looks at it, `learn` counts values and sums moments over the training rows, `pipeline` writes.
"""

from gem_jax.prepare.config import PreparedConfig as PreparedConfig
from gem_jax.prepare.pipeline import Prepared as Prepared
from gem_jax.prepare.pipeline import prepare as prepare
from gem_jax.prepare.preparation import Preparation as Preparation

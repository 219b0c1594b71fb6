"""The formulas of model FLOPs against a count of the traced products, on batches without padding."""

import dataclasses

import jax
import numpy as np
import pytest

from gem_jax.bench import model_flops
from gem_jax.config import Config
from gem_jax.data.batch import Events
from gem_jax.data.packing import BatchConfig
from gem_jax.data.synthetic import SyntheticConfig
from gem_jax.models import WukongConfig
from gem_jax.models.gem import GemConfig, Level
from gem_jax.models.hstu import HSTUConfig
from gem_jax.models.outputs import table_width
from gem_jax.run.memory import device_batch, embedded_shapes
from gem_jax.run.plan import RunPlan
from gem_jax.run.program import Program
from gem_jax.training import flops
from gem_jax.training.step import forward

EXAMPLES, EVENTS = 4, 16
MODEL = GemConfig(
    embedding_dim=8,
    num_layers=3,
    fmb_tokens=3,
    lcb_tokens=5,
    rank=4,
    fmb_hidden=(16, 12),
    levels=(Level(), Level()),  # of one length, since XLA's attention pads them to one
    num_seeds=3,
    num_recent=1,
    head_hidden=10,
    dense_hidden=(6,),
)


def program_of(model) -> Program:
    rows = EXAMPLES * EVENTS
    config = Config(
        name="tiny",
        data=SyntheticConfig(train_examples=100, test_examples=10, organic_max_len=EVENTS, impressions_max_len=EVENTS),
        model=model,
        batch=BatchConfig(examples=EXAMPLES, tokens={"organic": rows, "impressions": rows}),
    )
    schema = dataclasses.replace(
        config.data.schema(), domains=("one",)
    )  # the program computes all, the model needs one
    return Program.of(config, schema, RunPlan.of(config, schema, jax.devices()[:1]))


def full_batch(program: Program):
    """Every history at its longest, a multiple of 8: no packed row is padding."""
    batch = device_batch(program.config, program.schema)
    lengths = np.full(EXAMPLES, EVENTS, np.int32)
    events = {
        name: Events(
            ids=e.ids, age_s=e.age_s, offsets=EVENTS * np.arange(EXAMPLES + 1, dtype=np.int32), lengths=lengths
        )
        for name, e in batch.sequences.items()
    }
    return dataclasses.replace(batch, sequences=events, weight=np.ones(EXAMPLES, np.float32))


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"cross_layer": False},
        {"interleave": False},
        {"levels": ()},
        {"domain_gates": False},
        {"num_layers": 1, "num_summary": 2},
    ],
)
def test_gem_by_formula_and_by_count(change, monkeypatch):
    """XLA's attention computes the whole square, so here the formula counts it too."""
    monkeypatch.setattr(model_flops, "causal_pairs", lambda lengths, window: int((lengths**2).sum()))
    program = program_of(dataclasses.replace(MODEL, **change))
    batch = full_batch(program)
    embedded = embedded_shapes(batch, program.schema, table_width(program.config.model, program.schema))
    dense = program.parts.buckets.abstract()
    counted = flops.count(lambda d, e, b: forward(program.parts, d, e, b, None).logits, dense, embedded, batch)
    formula = model_flops.forward_flops(program, batch)
    one_hot = 2 * EXAMPLES * len(program.schema.tasks) if program.config.model.domain_gates else 0
    assert sum(formula.values()) == counted["matmul"] - one_hot


def test_hstu_by_formula_and_by_count(monkeypatch):
    """Rows of a history and its candidate, as in `test_gem_by_formula_and_by_count` but for the blocks' padding rows, which the
    program computes: the candidate of a history of 32 events takes a group of 8."""
    program = program_of(HSTUConfig(embedding_dim=8, width=16, num_layers=2, head_dim=4, relative_bias=False))
    batch = full_batch(program)
    embedded = embedded_shapes(batch, program.schema, table_width(program.config.model, program.schema))
    dense = program.parts.buckets.abstract()
    counted = flops.count(lambda d, e, b: forward(program.parts, d, e, b, None).logits, dense, embedded, batch)
    monkeypatch.setattr(model_flops, "causal_pairs", lambda lengths, window: 0)
    formula = model_flops.forward_flops(program, batch)
    rows = EXAMPLES * (2 * EVENTS + 8)  # of a block
    assert formula["uvqk"] == 2 * 2 * EXAMPLES * (2 * EVENTS + 1) * 16 * 4 * 8
    padding = 1 - (2 * EVENTS + 1) * EXAMPLES / rows
    attention = counted["matmul"] - sum(formula.values()) - padding * rows * 2 * 2 * (16 * 32 + 24 * 16)
    # XLA's attention computes the whole square of padded rows: two products of rows^2 by head dim and head, in two layers.
    assert attention % (2 * 2 * 2 * 8 * EXAMPLES) == 0 and attention >= 2 * 2 * 2 * 8 * EXAMPLES * (2 * EVENTS + 1) ** 2
    monkeypatch.undo()
    with_attention = model_flops.forward_flops(program, batch)
    assert with_attention["attention"] == 2 * 2 * 2 * 8 * EXAMPLES * (2 * EVENTS + 1) * (2 * EVENTS + 2) // 2


def test_empty_slots_and_short_histories_count_for_nothing():
    program = program_of(MODEL)
    batch = full_batch(program)
    whole = sum(model_flops.forward_flops(program, batch).values())
    half = np.array([1, 1, 0, 0], np.float32)
    events = {
        name: dataclasses.replace(e, lengths=(EVENTS * half).astype(np.int32)) for name, e in batch.sequences.items()
    }
    shorter = dataclasses.replace(batch, weight=half, sequences=events)
    assert sum(model_flops.forward_flops(program, shorter).values()) == pytest.approx(whole / 2)


def test_causal_pairs():
    lengths = np.array([0, 1, 3, 7])
    for window in (None, 1, 2, 5):
        pairs = sum(1 for n in lengths for i in range(n) for j in range(i + 1) if window is None or i - j < window)
        assert model_flops.causal_pairs(lengths, window) == pairs


def test_no_formula_is_said_rather_than_guessed():
    program = program_of(WukongConfig(embedding_dim=8))
    assert model_flops.forward_flops(program, full_batch(program)) is None


def test_levels_shorten():
    lengths = np.array([0, 3, 9, 20])
    np.testing.assert_array_equal(model_flops._shortened(Level(recent=8, pool=3), lengths), [0, 1, 3, 3])

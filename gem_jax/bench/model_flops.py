"""Model FLOPs of a step: what the mathematics needs, by a formula for each part of a model.

Real events count, not packed rows; a causal pair counts once; a training step is three times the forward pass. What a backend
pads, masks away or computes again is no work of the model. Only products count (one of [M, K] by [K, N] is 2 M N K).

Shape letters: B examples, n tokens, D width, M modules, m tokens of X_sum, K head dim, J keys, L states.
"""

import math
import re
from collections.abc import Callable

import numpy as np

from gem_jax.data.batch import Batch
from gem_jax.models.gem import GemConfig, Level
from gem_jax.models.hstu import HSTUConfig
from gem_jax.run.program import Program

TRAINING = 3
"""A step's FLOPs over the forward pass's: the backward pass has two products for each one."""


def forward_flops(program: Program, batch: Batch) -> dict[str, float] | None:
    """FLOPs of a forward pass over a batch, by part of the model; None where no formula of the model is written.

    Args:
      program: of the run.
      batch: of all devices, on the host; empty slots count for nothing.
    """
    formula = FORMULAS.get(type(program.config.model))
    return None if formula is None else formula(program, batch)


def causal_pairs(lengths: np.ndarray, window: int | None) -> int:
    """(row, row that it attends to) of all histories together."""
    seen = lengths if window is None else np.minimum(lengths, window)
    return int((seen * (seen + 1) // 2 + (lengths - seen) * seen).sum())


def _gem(program: Program, batch: Batch) -> dict[str, float]:
    config = program.config.model
    assert isinstance(config, GemConfig)
    width, summary = config.embedding_dim, config.num_summary
    num_tokens, queries = config.fmb_tokens + config.lcb_tokens, summary + config.num_seeds
    examples = float((batch.weight > 0).sum())
    lengths = {s.name: batch.sequences[s.name].lengths.astype(np.int64) for s in program.schema.sequences}
    levels = [_shortened(level, of_source) for of_source in lengths.values() for level in config.levels]
    rows = float(sum(level.sum() for level in levels))
    num_modules = max(len(levels), 1)
    head_dim, head_rows = width // config.num_heads, examples * width

    # How many vectors each weight multiplies: a weight of M modules is M weights, each for its own module's rows.
    uses: dict[str, float | Callable[[re.Match], float]] = {
        r"tokens/.*kernel|heads/.*(kernel|readout)|layers/\d+/fmb/mlp/.*kernel": examples,
        r"compress/weight|layers/\d+/lcb/weight|(layers/\d+/cross|last)/features/compress/weight": head_rows,
        r"layers/\d+/fmb/y": 2 * head_rows,  # X^T Y, and X by that
        r"pyramid/encoders/([^/]+)/.*kernel": lambda match: float(lengths[match[1]].sum()),
        r"(layers/\d+/cross|last)/features/gate/.*kernel": examples * summary,
        r"(layers/\d+/cross|last)/histories/kv/weight": rows / num_modules,
        r"(layers/\d+/cross|last)/histories/(query|out)/weight": examples * queries,
        r"(layers/\d+/cross|last)/histories/gate/weight": examples * (queries + config.num_recent),
        r"layers/\d+/sequences/(uvqk|out)/weight": rows / num_modules,
        r"layers/\d+/sequences/w[12]": examples * head_dim,
        r"layers/\d+/residual/query/kernel": examples * num_tokens,
        r"layers/(\d+)/residual/key/kernel": lambda match: examples * num_tokens * int(match[1]),
    }
    found = _weights(program, uses)
    depth = config.num_layers
    with_states = range(2, depth + 1) if config.cross_layer else ()
    found["cross_layer"] = sum(4.0 * examples * num_tokens * (states - 1) * width for states in with_states)
    if levels:
        pairs = sum(causal_pairs(level, config.window) for level in levels)
        found["attention"] = 4.0 * depth * width * pairs
        exchanges = depth if config.interleave else 0
        found["gdpa"] = 4.0 * exchanges * width * 2 * summary * rows
        found["seed_attention"] = 4.0 * (exchanges + 1) * width * queries * rows
    return found


def _hstu(program: Program, batch: Batch) -> dict[str, float]:
    config = program.config.model
    assert isinstance(config, HSTUConfig)
    examples = float((batch.weight > 0).sum())
    lengths = {s.name: batch.sequences[s.name].lengths.astype(np.int64) for s in program.schema.sequences}
    # The candidate is one more row of each history, which sees all of it and itself.
    rows = sum(lengths.values()) + (batch.weight > 0)
    uses: dict[str, float | Callable[[re.Match], float]] = {
        r"(tokens|candidate|item|head)/.*kernel": examples,
        r"history/encoders/([^/]+)/.*kernel": lambda match: float(lengths[match[1]].sum()),
        r"blocks/\d+/(uvqk|out)/kernel": float(rows.sum()),
    }
    found = _weights(program, uses)
    inner = config.num_heads * config.head_dim
    found["attention"] = 4.0 * config.num_layers * inner * causal_pairs(rows, None)
    return found


FORMULAS: dict[type, Callable[[Program, Batch], dict[str, float]]] = {GemConfig: _gem, HSTUConfig: _hstu}
"""Config of a model -> its formula."""


def _shortened(level: Level, lengths: np.ndarray) -> np.ndarray:
    """The lengths of a level's histories."""
    kept = lengths if level.recent is None else np.minimum(lengths, level.recent)
    return -(-kept // level.pool)


def _weights(program: Program, uses: dict[str, float | Callable[[re.Match], float]]) -> dict[str, float]:
    """FLOPs of the products with weights, by the first part of the weights' names.

    Raises:
      AssertionError: a matrix has no formula.
    """
    found: dict[str, float] = {}
    buckets = program.parts.buckets
    for member in buckets.members:
        if not buckets.buckets[member.bucket].decay:  # biases, norms, gates, seeds: no products
            continue
        matches = [(re.fullmatch(pattern, member.path), count) for pattern, count in uses.items()]
        fitting = [(match, count) for match, count in matches if match is not None]
        assert len(fitting) == 1, f"no formula, or several, for the products with '{member.path}'"
        match, count = fitting[0]
        vectors = count(match) if callable(count) else count
        part = re.sub(r"^(layers|blocks)/\d+/|/?(kernel|weight)$", "", member.path).split("/")[0]
        found[part] = found.get(part, 0.0) + 2.0 * math.prod(member.shape) * vectors
    return found

"""One pass over a source without training: every metric, over all processes."""

from typing import Any

import jax
import numpy as np

from gem_jax.data.batch import HostColumns
from gem_jax.data.loader import Loader
from gem_jax.data.packing import BatchConfig
from gem_jax.data.source import FirstExamples, Source
from gem_jax.parallel import processes
from gem_jax.parallel.mesh import local_devices
from gem_jax.parallel.sharding import local_rows, place_batch
from gem_jax.evaluation.metrics import Evaluator, Scores
from gem_jax.training.state import Setup, TrainState
from gem_jax.training.step import EvalStep
from gem_jax.training.window import DIVERGED_ADVICE, DivergedError


def evaluate(
    setup: Setup, eval_step: EvalStep, state: TrainState, source: Source, batch: BatchConfig, limit: int | None = None
) -> dict[str, Any]:
    """Metrics of one pass over the first `limit` examples of `source`, as `Evaluator.result` gives them; the same in every process.

    Raises:
      DivergedError: a logit is not finite.
    """
    evaluator = Evaluator(setup.schema)
    if limit is not None:
        source = FirstExamples(source, limit)
    loader = Loader(
        source,
        batch,
        seed=None,
        num_epochs=1,
        shard_index=jax.process_index(),
        shard_count=jax.process_count(),
        num_devices=local_devices(setup.mesh),
    )
    pending = None
    for device_batch, host, _ in processes.side_by_side(iter(loader), loader.empty_batch):
        logits = eval_step(state, place_batch(device_batch, setup.mesh))
        if pending is not None:
            _score(evaluator, *pending)
        pending = (logits, host)
    if pending is not None:
        _score(evaluator, *pending)
    if jax.process_count() > 1:
        own, evaluator = evaluator.scores(), Evaluator(setup.schema)
        evaluator.add(Scores(**{name: processes.gather_rows(column) for name, column in vars(own).items()}))
    return evaluator.result()


def _score(evaluator: Evaluator, outputs: jax.Array, host: HostColumns) -> None:
    logits = local_rows(outputs)
    broken = ~np.isfinite(logits) & (host.weight > 0)[:, None] & ~np.isnan(host.labels)
    if broken.any():
        raise DivergedError(f"{broken.sum()} logits of an evaluated batch are not finite; {DIVERGED_ADVICE}")
    evaluator.update(logits, host)

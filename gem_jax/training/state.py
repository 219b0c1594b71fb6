"""Everything that a run must keep from step to step."""

import dataclasses
from typing import Any

import jax


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainState:
    """A model in training, as it lies on the mesh; `Program.to_logical` gives it by name, as checkpoints hold it.

    The same tree also holds the arrays' shapes (`Program.shapes`) or their axes on the mesh (`Program.specs`).

    Attributes:
      step: int32 [], optimizer steps taken.
      dense: bucket -> float32 [P], the model's parameters (`buckets.Vectors`).
      dense_opt: their optimizer's state.
      tables: the embedding tables with their optimizer's state (`embedding.sharded.TableState`).
      base_logits: float32 [N], constants added to the model's logits, of the schema's tasks in order.
      key: seeds dropout.
    """

    step: Any
    dense: dict[str, Any]
    dense_opt: Any
    tables: Any
    base_logits: Any
    key: Any

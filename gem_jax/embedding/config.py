"""How a run's embedding tables are cut: what its config says of them."""

import dataclasses
from typing import Literal

from gem_jax.errors import UserError
from gem_jax.precision.policy import Dtype

Scheme = Literal["rows", "columns", "tables"]
"""How a table is cut over the shards: round robin by row, by column, or not at all (whole, on one shard)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TablesConfig:
    """How embedding tables are cut over the mesh; the planner chooses what is not said here.

    Raises:
      UserError: a number is out of its range, or two settings exclude each other.
    """

    schemes: dict[str, Scheme] = dataclasses.field(default_factory=dict)
    """Table -> rows (round robin over the shards), columns, or tables (whole, on one shard); the planner chooses for the others."""
    sync: Literal["gradients", "weights"] = "gradients"
    """What replica groups exchange: gradients of touched rows (exact), or averages of weights and state (the 2D paper's way)."""
    sync_every: int = 1
    """Steps between two averages, where sync is weights."""
    fully_sharded: bool = False
    """Cut each shard's rows over the replicas too, and gather them for the step."""
    capacity: float = 1.25
    """Places for ids between two devices, times an even share of the distinct ids there can be; more of them take a slower way."""
    dtype: Dtype = "float32"
    """Of the weights; slots stay float32. bfloat16 takes half the memory, and an update rounds up or down at random, so that many
    small steps add up; values leave it for the model and the checkpoint as float32."""
    memory_gib: float | None = None
    """Memory of a device that the planner may count on; None for what the device reports, without bound where it does not."""

    def __post_init__(self):
        if self.sync_every < 1:
            raise UserError(f"tables.sync_every={self.sync_every} must be at least 1")
        if self.sync_every > 1 and (self.sync != "weights" or self.fully_sharded):
            raise UserError(
                f"tables.sync_every={self.sync_every} needs tables.sync=weights and tables.fully_sharded=False; gradients, and "
                "rows cut over the replicas, are exchanged every step"
            )
        if self.dtype == "bfloat16" and self.sync == "weights":
            raise UserError(
                "tables.dtype=bfloat16 needs tables.sync=gradients: averages of weights would be rounded to the nearest and lose "
                "what the replicas learned"
            )
        if self.capacity <= 0:
            raise UserError(f"tables.capacity={self.capacity} must be positive")

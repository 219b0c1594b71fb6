"""When a run is saved, and how many saves are kept."""

import dataclasses

from gem_jax.errors import UserError

FIRST_MINUTES = 2.0
"""The first save comes no later than this: a run that dies young should leave something."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """The config's `checkpoint` group. A run is also saved at its end and on interruption."""

    minutes: float = 10.0
    """Save each time this many more minutes have passed; the first save comes after at most two."""
    examples: int | None = None
    """Save also each time this many more examples were trained on; None for by time alone."""
    keep: int = 2
    """Newest checkpoints kept; with two, a damaged one leaves the one before it."""

    def __post_init__(self):
        for name in ("minutes", "examples", "keep"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise UserError(f"checkpoint.{name}={value} must be positive")

"""When the next save is due."""

from gem_jax.checkpoint.config import FIRST_MINUTES, CheckpointConfig


class Cadence:
    """Due by time and by examples, whichever comes first. Reads no clock: processes must agree, so one of them asks for all.

    Args:
      config: how often.
      now_s: seconds on any clock that only runs forward.
      examples: trained on so far.

    Example:
      cadence = Cadence(config.checkpoint, now_s=time.monotonic(), examples=0)
      if cadence.is_due(time.monotonic(), examples):
          ...
          cadence.saved(time.monotonic(), examples)
    """

    def __init__(self, config: CheckpointConfig, now_s: float, examples: int):
        self._config = config
        self._due_s = now_s + 60 * min(config.minutes, FIRST_MINUTES)
        self._examples = examples

    def is_due(self, now_s: float, examples: int) -> bool:
        """Whether to save now. By examples: each time a multiple of the configured number was passed."""
        every = self._config.examples
        return now_s >= self._due_s or (every is not None and examples // every > self._examples // every)

    def saved(self, now_s: float, examples: int) -> None:
        """Says that a save was started."""
        self._due_s = now_s + 60 * self._config.minutes
        self._examples = examples

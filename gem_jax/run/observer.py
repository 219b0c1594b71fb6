"""Who looks on while a run trains."""

from typing import Any

from gem_jax.data.batch import HostColumns
from gem_jax.data.source import Splits
from gem_jax.run.program import Program
from gem_jax.training.progress import Progress


class Observer:
    """Sees what each step returned and changes nothing of the run; this one looks away. Every method is called by all processes.

    Attributes:
      representations: names of the model's representations that the steps shall return for it, as they were before the update.
    """

    representations: tuple[str, ...] = ()

    def begin(self, program: Program, splits: Splits, progress: Progress) -> None:
        """The run begins, or goes on from a checkpoint."""

    def step(self, outputs: dict[str, Any], host: HostColumns) -> None:
        """A step was dispatched; `outputs` as of `Program.train_step`. Who reads them at once waits for the device."""

    def flush(self) -> None:
        """A checkpoint is about to be written: a run that goes on from it repeats nothing of what came before."""

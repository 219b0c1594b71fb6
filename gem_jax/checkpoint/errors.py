"""What is wrong with a checkpoint: something to tell the user, or damage that the one before may make good."""

from gem_jax.errors import UserError


class CheckpointError(UserError):
    """A checkpoint or a run folder cannot be used; the message is one sentence saying why and what to change."""


class Damage(Exception):
    """What is on disk is not what was saved. Never leaves this package: the checkpoint is named and the one before it taken."""


def reason(error: Exception) -> str:
    """An exception as part of a sentence: its kind and the start of its first line."""
    lines = str(error).strip().splitlines()
    text = lines[0] if lines else ""
    text = text if len(text) <= 120 else text[:117] + "..."
    return f"{type(error).__name__}: {text}" if text else type(error).__name__

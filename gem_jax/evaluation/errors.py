"""What ends a run because its numbers have become useless."""

ADVICE = "lower optimizer.learning_rate or optimizer.table_learning_rate, or clip harder (optimizer.clip_norm)"


class DivergedError(RuntimeError):
    """The loss or an evaluated logit is no longer finite; the message ends with what to change.

    Args:
      what: what is not finite and where, without a full stop.
    """

    def __init__(self, what: str):
        super().__init__(f"{what}; {ADVICE}")

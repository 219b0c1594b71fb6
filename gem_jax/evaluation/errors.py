"""What ends a run because its numbers have become useless."""

ADVICE = "lower optimizer.learning_rate or optimizer.table_learning_rate, or clip harder (optimizer.clip_norm)"


class DivergedError(RuntimeError):
    """The loss or an evaluated logit is no longer finite; the message ends with what to change.

    Args:
      what: what is not finite and where, without a full stop.
      culprit: the input that explains it, e.g. "dense column 'price' is as large as 1e+38 in example 7"; None where none does.
    """

    def __init__(self, what: str, culprit: str | None = None):
        advice = ADVICE
        if culprit is not None:
            advice = f"{culprit}: correct or scale it, or leave the example out; going on would meet it again"
        super().__init__(f"{what}; {advice}")
        self.what = what

"""How long a run trains, in which order, and when it is evaluated."""

import dataclasses

from gem_jax.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The config's `train` group."""

    epochs: int | float = 1.0
    """Passes over the training examples; a fraction is allowed."""
    eval_every: int | None = None
    """Evaluate each time this many more examples were trained on; None evaluates only at the end."""
    eval_examples: int | None = None
    """Evaluate on at most this many examples; None takes the whole split."""
    keep_best: str | None = None
    """Keep the parameters of the best evaluation by this scalar, e.g. valid/ne/click, in <run>/best, and test those at the end;
    None tests the last ones."""
    patience: int | None = None
    """Stop once this many evaluations in a row have not improved keep_best; None trains to the end."""
    seed: int = 0
    """Seeds parameters, dropout and the order of examples."""
    shuffle: bool = True
    """Shuffle the training examples; off keeps the stream's order in time."""

    def __post_init__(self):
        for name in ("epochs", "eval_every", "eval_examples", "patience"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise UserError(f"train.{name}={value} must be positive")
        if not 0 <= self.seed < 2**32:  # JAX would take its last 32 bits, which are another seed's
            raise UserError(f"train.seed={self.seed} must lie in [0, 2^32)")
        if self.keep_best is not None and self.eval_every is None:
            raise UserError(
                "train.keep_best compares evaluations on the way; set train.eval_every to a number of examples, or leave it out"
            )
        if self.patience is not None and self.keep_best is None:
            raise UserError(
                "train.patience needs to know what should improve; set train.keep_best, e.g. valid/ne/click"
            )

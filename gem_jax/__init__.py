"""Train an ads foundation model in JAX. A script or notebook starts with these imports:

    from gem_jax.config import load                       a config file as a tree of dataclasses, with overrides
    from gem_jax.train import train                       trains it and evaluates it; a run folder and a Result
    from gem_jax import load_run                          a run folder as a Run, which predicts and evaluates new examples
    from gem_jax.run.program import Program               a run's functions: train_step, eval_step, score, its state by name

`notebooks/quickstart.ipynb` uses them. Nothing is imported before it is asked for, so that every part can be used alone.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gem_jax.scoring.run import load_run as load_run

__all__ = ["load_run"]


def __getattr__(name: str) -> Any:
    if name != "load_run":
        raise AttributeError(f"module 'gem_jax' has no attribute '{name}'")
    from gem_jax.scoring.run import load_run

    return load_run

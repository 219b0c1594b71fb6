"""Train an ads foundation model in JAX. A script or notebook starts with three imports:

    from gem_jax.config import load                       a config file as a tree of dataclasses, with overrides
    from gem_jax.train import train                       trains it and evaluates it; a run folder and a Result
    from gem_jax.run.program import Program               a run's functions: train_step, eval_step, score, its state by name

`notebooks/quickstart.ipynb` uses all three. Nothing is imported here, so that every part can be used alone.
"""

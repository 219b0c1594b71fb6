"""A synthetic stream of ads impressions, consistent from example to example, whose true probabilities are known.

The README beside this file has its equations, its ladder of information and its speed.
"""

from gem_jax.data.synthetic.source import SyntheticConfig, SyntheticSource

__all__ = ["SyntheticConfig", "SyntheticSource"]

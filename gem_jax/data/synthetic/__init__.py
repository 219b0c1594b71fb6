"""A synthetic stream of ads impressions, consistent from example to example, whose true probabilities are known.

Example i is a pure function of (seed, i), read in O(1). `schedule` says who sees impression i and which impressions the
same user saw before; `population` who the users and ads are, what users do organically and which ad is served; `truth`
how likely a click and a conversion are; `source` puts it together as examples.

What a history shows is what happened: the impressions before it, with their clicks, in the order of the stream. Labels:

- click: a Bernoulli draw from its true probability.
- conversion: 1 if the impression was clicked and a conversion followed within `truth.ATTRIBUTION_DAYS` of it *and* the
  advertiser's measurement signal reported it, else 0; NaN (label and true probability) if the advertiser sends no
  signal. The label is the final one, known once the window is over; in a later history the impression reads "clicked"
  until the delay has passed and "converted" from then on.

How much is there to learn (clicks, default world, 300 000 training and 50 000 test examples; `pytest -m slow -s
tests/gem_jax/data/test_synthetic_learning.py`), NE = log loss over the entropy of the test examples' base rate, and the
share of the distance from 1 to the Bayes-optimal NE that a model closes:

- logistic regression on single features: NE 0.931, 30 %
- boosted trees without histories: NE 0.900, 44 %
- boosted trees with hand-made counts over the histories: NE 0.813, 82 %
- the truth: NE 0.772, 100 %
"""

from gem_jax.data.synthetic.source import SyntheticConfig, SyntheticSource

__all__ = ["SyntheticConfig", "SyntheticSource"]

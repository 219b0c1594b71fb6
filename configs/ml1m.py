"""GEM on MovieLens-1M: is a rating 4 or more, given the user's earlier ratings? The last tenth of each history is the test.

python -m gem_jax.train configs/ml1m.py data.path=<folder of MovieLens-1M>

Means of seeds 0, 1, 2 on the test part, and how far NE lies above GEM's in each seed:
  GEM                   NE .7418  AUC .8215  gAUC .6889
  without histories     NE .7802  AUC .8005  gAUC .7153   NE +.0370 to +.0391
  logistic regression   NE .8096  AUC .7878  gAUC .7058   NE +.0665 to +.0684
Histories tell how generous a user is, which the AUC over all users rewards; within a user (gAUC) the model without them orders
better.
One H200, jax 0.11.2, commit 9f1b338: python -m gem_jax.compare configs/ml1m.py configs/ml1m.py:no_sequences
configs/ml1m.py:logistic_regression --seeds 0,1,2 data.path=...
"""

import dataclasses

from gem_jax.config import Config
from gem_jax.data.movielens import MovieLensConfig
from gem_jax.data.packing import BatchConfig
from gem_jax.models import DINConfig, HSTUConfig, LogisticRegressionConfig, SASRecConfig
from gem_jax.models.gem import GemConfig, Level
from gem_jax.training.optimizer import OptimizerConfig

MODEL = GemConfig(embedding_dim=32, levels=(Level(), Level(recent=16)), domain_gates=False, dropout=0.1)


def get_config() -> Config:
    return Config(
        name="ml1m",
        data=MovieLensConfig(path="", max_len=64),
        model=MODEL,
        batch=BatchConfig(examples=512, tokens={"past": 512 * 56}),
        optimizer=OptimizerConfig(learning_rate=2e-3, table_learning_rate=0.05, weight_decay=1e-2),
    )


def no_sequences() -> Config:
    """No histories, on the same examples in the same order."""
    return get_config().replace(name="ml1m_no_sequences", model=dataclasses.replace(MODEL, levels=()))


def din() -> Config:
    """DIN."""
    return get_config().replace(name="ml1m_din", model=DINConfig(dropout=0.1))


def hstu() -> Config:
    """HSTU as a ranker; a rating is an attribute of its event."""
    return get_config().replace(name="ml1m_hstu", model=HSTUConfig(dropout=0.1))


def sasrec() -> Config:
    """SASRec as a ranker."""
    return get_config().replace(name="ml1m_sasrec", model=SASRecConfig(dropout=0.1))


def logistic_regression() -> Config:
    """Logistic regression, on the same examples in the same order."""
    return get_config().replace(name="ml1m_logistic_regression", model=LogisticRegressionConfig())

"""DCN-V2 on a sample of Criteo's display ads (80,000 rows, 3.2 % clicks).

python -m gem_jax.train configs/criteo_sample.py data.path=<criteo_80k.parquet>

Test AUC .7350, .7317, .7339 (seeds 0, 1, 2); gradient-boosted trees reach about .727 on a random split.
Two CPU cores, jax 0.11.2, commit 7c0bccb: python -m gem_jax.compare configs/criteo_sample.py --seeds 0,1,2 data.path=...
"""

from gem_jax.config import Config, TrainConfig
from gem_jax.data.criteo import CriteoConfig
from gem_jax.data.packing import BatchConfig
from gem_jax.models import DCNv2Config, DeepFMConfig, FinalMLPConfig
from gem_jax.training.optimizer import OptimizerConfig


def get_config() -> Config:
    return Config(
        name="criteo_sample",
        data=CriteoConfig(path=""),
        model=DCNv2Config(embedding_dim=4, dropout=0.3),
        batch=BatchConfig(examples=256),
        optimizer=OptimizerConfig(learning_rate=1e-3, table_learning_rate=0.01, weight_decay=1e-1, table_l2=1e-4),
        train=TrainConfig(epochs=2.0),
    )


def deepfm() -> Config:
    """DeepFM."""
    return get_config().replace(name="criteo_deepfm", model=DeepFMConfig(embedding_dim=5, dropout=0.3))


def finalmlp() -> Config:
    """FinalMLP; no feature of this data is a user's or an ad's, so both gates are learned vectors."""
    return get_config().replace(name="criteo_finalmlp", model=FinalMLPConfig(embedding_dim=4, dropout=0.3))

"""Wukong on Frappe (BARS Frappe_x1): will this user open this app in this context?

python -m gem_jax.train configs/frappe.py data.path=<frappe_x1.npz or the BARS folder>
"""

from gem_jax.config import Config, TrainConfig
from gem_jax.data.frappe import FrappeConfig
from gem_jax.data.packing import BatchConfig
from gem_jax.models import WukongConfig
from gem_jax.training.optimizer import OptimizerConfig


def get_config() -> Config:
    return Config(
        name="frappe",
        data=FrappeConfig(path=""),
        model=WukongConfig(
            embedding_dim=64,
            fmb_tokens=(8, 8),
            lcb_tokens=(8, 8),
            rank=8,
            fmb_hidden=(128,),
            head_hidden=(256, 128),
            dropout=0.2,
        ),
        batch=BatchConfig(examples=4096),
        optimizer=OptimizerConfig(learning_rate=1e-3, table_learning_rate=0.1, table_l2=0.1, weight_decay=1e-2),
        train=TrainConfig(epochs=15.0),
    )

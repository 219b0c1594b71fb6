"""Wukong on Frappe (BARS Frappe_x1): will this user open this app in this context?

python -m gem_jax.train configs/frappe.py data.path=<frappe_x1.npz or the BARS folder>

Test AUC .9844, .9846, .9851 (seeds 0, 1, 2), train negatives re-drawn; the bar is .984. Wukong's paper has .9868, BARS' best .9861.
Two CPU cores, jax 0.11.2, commit 7c0bccb: python -m gem_jax.compare configs/frappe.py --seeds 0,1,2 data.path=...
"""

import dataclasses

from gem_jax.config import Config, TrainConfig
from gem_jax.data.frappe import FrappeConfig
from gem_jax.data.packing import BatchConfig
from gem_jax.models import DCNv2Config, DeepFMConfig, FinalMLPConfig, ModelConfig, WukongConfig
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


# --- rulers: sizes as BARS has them, LayerNorm where it has batch norm -----------------------------------------------------------


def _ruler(name: str, model: ModelConfig) -> Config:
    config = get_config()
    # Wukong normalises what comes out of the tables and these models do not: its L2 would hold their rows too small.
    optimizer = dataclasses.replace(config.optimizer, table_l2=0.02)
    return config.replace(name=f"frappe_{name}", model=model, optimizer=optimizer)


def dcnv2() -> Config:
    """DCN-V2 with four experts of low rank in each of four cross layers."""
    model = DCNv2Config(
        embedding_dim=16, num_cross_layers=4, rank=32, num_experts=4, hidden=(400, 400, 400), norm=True, dropout=0.2
    )
    return _ruler("dcnv2", model)


def deepfm() -> Config:
    """DeepFM."""
    return _ruler("deepfm", DeepFMConfig(embedding_dim=17, hidden=(400, 400, 400), norm=True, dropout=0.2))


def finalmlp() -> Config:
    """FinalMLP, its gates opened by the user and by the item."""
    model = FinalMLPConfig(
        embedding_dim=16,
        gate_hidden=(64,),
        first_hidden=(400,),
        second_hidden=(400,),
        num_heads=8,
        norm=True,
        dropout=0.2,
    )
    return _ruler("finalmlp", model)

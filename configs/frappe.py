"""Wukong on Frappe (BARS Frappe_x1): will this user open this app in this context?

python -m gem_jax.train configs/frappe.py data.path=<frappe_x1.npz or the BARS folder>

Test AUC .9844, .9846, .9851 (seeds 0, 1, 2), train negatives re-drawn; the bar is .984. Wukong's paper has .9868, BARS' best .9861.
Two CPU cores, jax 0.11.2, commit 7c0bccb: python -m gem_jax.compare configs/frappe.py --seeds 0,1,2 data.path=...

Other models, test AUC and log loss of seed 0, train negatives re-drawn, beside what BARS publishes:
  finalmlp   .9820 .1539   BARS .9861 .1484
  deepfm     .9801 .1705   BARS .9842 .1482
  dcnv2      .9686 .2051   BARS .9845 .1491
None reaches its published figure yet, so none may stand for its paper in a comparison on this data. BARS trains the whole tables
with Adam and L2, normalises over the batch, and lowers the rate by validation; here a fixed cosine of 15 epochs, row-wise Adagrad,
L2 on touched rows, LayerNorm. DCN-V2 is underfitted (last train NE .30, test .32), DeepFM overfitted (.15, .27).
Two shared CPU cores, jax 0.11.2, commits 4083eb8 (finalmlp, dcnv2) and 9c293b7 (deepfm): python -m gem_jax.compare
configs/frappe.py:finalmlp --seeds 0 data.path=..., and so on
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


# --- rulers -----------------------------------------------------------------------------------------------------------------------


def _ruler(name: str, model: ModelConfig, *, table_l2: float) -> Config:
    config = get_config()
    optimizer = dataclasses.replace(config.optimizer, table_l2=table_l2)
    return config.replace(name=f"frappe_{name}", model=model, optimizer=optimizer)


def dcnv2() -> Config:
    """DCN-V2 with four experts of low rank in each of four cross layers."""
    model = DCNv2Config(
        embedding_dim=16, num_cross_layers=4, rank=32, num_experts=4, hidden=(400, 400, 400), norm=True, dropout=0.3
    )
    return _ruler("dcnv2", model, table_l2=0.1)


def deepfm() -> Config:
    """DeepFM."""
    model = DeepFMConfig(embedding_dim=17, hidden=(400, 400, 400), norm=True, dropout=0.2)
    return _ruler("deepfm", model, table_l2=0.02)


def finalmlp() -> Config:
    """FinalMLP, its gates opened by the user and by the item."""
    model = FinalMLPConfig(
        embedding_dim=16,
        gate_hidden=(64,),
        first_hidden=(400,),
        second_hidden=(400,),
        num_heads=8,
        norm=True,
        dropout=0.3,
    )
    return _ruler("finalmlp", model, table_l2=0.1)

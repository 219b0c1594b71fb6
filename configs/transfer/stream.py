"""A GEM that sees everything teaches students that see no histories, on the synthetic ads stream.

python -m gem_jax.transfer configs/transfer/stream.py
python -m gem_jax.transfer configs/transfer/stream.py seeds=0 recipes=kd,full        a part of it

The teacher has both histories, the image and all features; the students neither, as ranking models that must answer at once. One
student serves all surfaces. The other serves one surface alone: it learns from the teacher directly, and by way of a foundation
model of its surface.
"""

from gem_jax.config import Config, TrainConfig
from gem_jax.data.packing import BatchConfig
from gem_jax.data.subset import SubsetConfig
from gem_jax.data.synthetic import SyntheticConfig
from gem_jax.models import DCNv2Config, DLRMConfig
from gem_jax.models.gem import GemConfig, Level
from gem_jax.training.optimizer import OptimizerConfig
from gem_jax.transfer.config import Strength, TransferConfig
from gem_jax.transfer.manifest import EmbeddingConfig

WIDTH = 16
"""Of all embedding tables: students begin with the teacher's."""

DATA = SyntheticConfig(
    seed=0,
    train_examples=120_000,
    test_examples=20_000,
    active_users=2_400,
    active_ads=480,
    organic_max_len=16,
    impressions_max_len=16,
)
TEACHER = GemConfig(embedding_dim=WIDTH, levels=(Level(), Level(recent=8)), fmb_hidden=(64,))
OPTIMIZER = OptimizerConfig(learning_rate=3e-3, table_learning_rate=0.2)


def _less(**fields) -> SubsetConfig:
    """What a student sees."""
    return SubsetConfig(data=DATA, without_sequences=("organic", "impressions"), without_features=("image",), **fields)


def _run(name, data, model, **batch) -> Config:
    return Config(
        name=name,
        data=data,
        model=model,
        batch=BatchConfig(examples=256, **batch),
        optimizer=OPTIMIZER,
        train=TrainConfig(shuffle=False),
    )


def get_config() -> TransferConfig:
    surface = DATA.schema().domains[0]
    tokens = {"organic": 256 * 16, "impressions": 256 * 16}
    return TransferConfig(
        name="stream",
        teacher=_run("teacher", DATA, TEACHER, tokens=tokens),
        students={
            "dlrm": _run("dlrm", _less(), DLRMConfig(embedding_dim=WIDTH)),
            f"dcnv2_{surface}": _run(
                "dcnv2", _less(domains=(surface,)), DCNv2Config(embedding_dim=WIDTH, hidden=(64,))
            ),
        },
        domain_models={
            f"dcnv2_{surface}": _run("domain", SubsetConfig(data=DATA, domains=(surface,)), TEACHER, tokens=tokens)
        },
        strength=Strength(embedding=EmbeddingConfig(representation="last", dim=32)),
        results="configs/results/transfer.json",
    )

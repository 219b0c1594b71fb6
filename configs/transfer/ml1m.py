"""MovieLens-1M: a GEM that sees what a user rated before teaches students that do not.

ML1M=<folder of MovieLens-1M> python -m gem_jax.transfer configs/transfer/ml1m.py

Is a rating 4 or more? The last tenth of each user's ratings is the test. The teacher's lead is its histories: `configs/ml1m.py` has
what they are worth. Every model takes one pass; the teacher's is shuffled, so it labels a user's early ratings after late ones too.
"""

import os

from gem_jax.config import Config
from gem_jax.data.movielens import MovieLensConfig
from gem_jax.data.packing import BatchConfig
from gem_jax.data.subset import SubsetConfig
from gem_jax.models import DCNv2Config, DLRMConfig
from gem_jax.models.gem import GemConfig, Level
from gem_jax.models.outputs import ModelConfig
from gem_jax.training.optimizer import OptimizerConfig
from gem_jax.transfer.config import Strength, TransferConfig
from gem_jax.transfer.manifest import EmbeddingConfig

WIDTH = 32
"""Of all embedding tables: students begin with the teacher's."""

DATA = MovieLensConfig(path=os.environ.get("ML1M", ""), max_len=64)
WITHOUT_HISTORIES = SubsetConfig(data=DATA, without_sequences=("past",))
TEACHER = GemConfig(embedding_dim=WIDTH, levels=(Level(), Level(recent=16)), domain_gates=False)


def _run(name: str, data: MovieLensConfig | SubsetConfig, model: ModelConfig, **tokens: int) -> Config:
    return Config(
        name=name,
        data=data,
        model=model,
        batch=BatchConfig(examples=512, tokens=tokens),
        optimizer=OptimizerConfig(learning_rate=2e-3, table_learning_rate=0.05, weight_decay=1e-2),
    )


def get_config() -> TransferConfig:
    return TransferConfig(
        name="ml1m",
        teacher=_run("teacher", DATA, TEACHER, past=512 * 56),
        students={
            "dlrm": _run("dlrm", WITHOUT_HISTORIES, DLRMConfig(embedding_dim=WIDTH)),
            "dcnv2": _run("dcnv2", WITHOUT_HISTORIES, DCNv2Config(embedding_dim=WIDTH)),
        },
        recipes=("scratch", "kd", "auxiliary", "adapter", "representation", "sharing", "full"),
        strength=Strength(embedding=EmbeddingConfig(representation="last", dim=32)),
        results="configs/results/transfer_ml1m.json",
    )

"""Every test runs on 8 forced CPU devices, with types enforced, and with a compilation cache shared by all of them."""

import os
import pathlib

ON_GPU = os.environ.get("GEM_TEST_GPU") == "1"  # `GEM_TEST_GPU=1 pytest -m gpu` on a machine with a CUDA GPU
if not ON_GPU:
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"

# In the environment rather than by `jax.config`, so that processes which tests start share it.
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(pathlib.Path(__file__).parents[1] / ".jax_cache")
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.5"

import pytest  # noqa: E402
from jaxtyping import install_import_hook  # noqa: E402

ROOT = pathlib.Path(__file__).parents[1]
# Triton compiles the source of its kernels, which a wrapper around them would hide.
KERNEL_SOURCES = tuple(f"triton_{name}kernels" for name in ("", "short_", "in_one_", "dense_", "gate_"))
KERNEL_FILES = [p for p in (ROOT / "pallas_kernels").rglob("*.py") if p.stem not in ("__init__", *KERNEL_SOURCES)]
KERNELS = [".".join(p.relative_to(ROOT).with_suffix("").parts) for p in KERNEL_FILES]

# Every annotation of every function is checked on every call: shapes and dtypes by jaxtyping, the rest by beartype.
install_import_hook(["gem_jax", *KERNELS], "beartype.beartype")

SHARED_DATA = ROOT.parent / "shared" / "data"


def pytest_configure(config):
    if ON_GPU:  # the GPU tests run on any Hopper GPU, also on one that nobody tuned for
        config.addinivalue_line("filterwarnings", "ignore:No tile sizes were tuned:UserWarning")
        config.addinivalue_line("filterwarnings", "ignore:.*does not run on its faster backend:UserWarning")


@pytest.fixture
def shared_data() -> pathlib.Path:
    """Folder of real data beside the checkout; the test is skipped where it is absent."""
    if not SHARED_DATA.is_dir():
        pytest.skip(
            f"needs the real data files in {SHARED_DATA.name}/ beside the checkout (they may not be redistributed)"
        )
    return SHARED_DATA

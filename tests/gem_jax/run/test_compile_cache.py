"""Where compiled programs are kept, by what the environment says; and that a second process reads what the first one wrote."""

import os
import pathlib
import subprocess
import sys

import jax
import pytest

from gem_jax.run import compile_cache

ROOT = pathlib.Path(__file__).parents[3]
OPTIONS = ("jax_compilation_cache_dir", "jax_compilation_cache_max_size", "jax_persistent_cache_min_compile_time_secs")


@pytest.fixture
def unset(monkeypatch):
    """JAX without a cache, and put back as it was."""
    before = {name: getattr(jax.config, name) for name in OPTIONS}
    jax.config.update("jax_compilation_cache_dir", None)
    for name in ("GEM_JAX_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    yield
    for name, value in before.items():
        jax.config.update(name, value)


def test_a_folder_of_the_users_own(unset, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert compile_cache.folder() == tmp_path / ".cache" / "gem_jax" / "xla"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert compile_cache.folder() == tmp_path / "xdg" / "gem_jax" / "xla"
    monkeypatch.setenv("GEM_JAX_CACHE", "~/mine")
    assert compile_cache.folder() == tmp_path / "mine"
    compile_cache.enable()
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "mine")
    assert jax.config.jax_compilation_cache_max_size == compile_cache.MAX_BYTES


def test_what_jax_was_given_stays(unset, monkeypatch, tmp_path):
    monkeypatch.setenv("GEM_JAX_CACHE", str(tmp_path / "mine"))
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "given"))
    compile_cache.enable()
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "given") and not (tmp_path / "mine").exists()


def test_off(unset, monkeypatch):
    monkeypatch.setenv("GEM_JAX_CACHE", "off")
    compile_cache.enable()
    assert jax.config.jax_compilation_cache_dir is None


def test_a_folder_that_cannot_be_written_is_a_warning(unset, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("GEM_JAX_CACHE", str(tmp_path / "file" / "xla"))
    with pytest.warns(UserWarning, match=r"not kept: '.*xla' cannot be written \(Not a directory\)"):
        compile_cache.enable()
    assert jax.config.jax_compilation_cache_dir is None


PROGRAM = """
import logging, jax, jax.numpy as jnp
from gem_jax.run import compile_cache
compile_cache.MIN_COMPILE_S = 0.0
compile_cache.enable()
from jax import monitoring
hits = []
monitoring.register_event_listener(lambda name, **_: hits.append(name) if name.endswith("cache_hits") else None)
jax.jit(lambda x: jnp.sin(x) @ x)(jnp.ones((8, 8)))
print(len(hits))
"""


def test_the_second_process_compiles_nothing(tmp_path):
    environment = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    environment |= {"GEM_JAX_CACHE": str(tmp_path), "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}

    def hits() -> int:
        done = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True)
        assert done.returncode == 0 and not done.stderr, done.stderr
        return int(done.stdout)

    assert hits() == 0 and hits() > 0
    assert list(tmp_path.glob("*-cache"))

"""Compiled programs kept from process to process: a run that starts again compiles nothing anew.

The folder is the user's own, since whoever may write there may run code: $GEM_JAX_CACHE, else gem_jax/xla under $XDG_CACHE_HOME or
~/.cache. GEM_JAX_CACHE=off turns it off; a cache that JAX was given already (JAX_COMPILATION_CACHE_DIR) stays as it is.
"""

import os
import pathlib
import tempfile
import warnings

import jax

MAX_BYTES = 4 * 2**30
"""Programs used longest ago are deleted beyond it."""

MIN_COMPILE_S = 0.1
"""What compiles sooner is compiled again: reading it back would take about as long."""


def enable() -> None:
    """Turns JAX's persistent cache on for this process, once; warns where its folder cannot be written, and goes on without."""
    if os.environ.get("GEM_JAX_CACHE") == "off" or jax.config.jax_compilation_cache_dir is not None:
        return
    path = folder()
    try:
        path.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path).close()
    except OSError as error:
        warnings.warn(
            f"compiled programs are not kept: '{path}' cannot be written ({error.strerror}); name another folder by "
            "GEM_JAX_CACHE, or set it to 'off'",
            stacklevel=2,
        )
        return
    jax.config.update("jax_compilation_cache_dir", str(path))
    jax.config.update("jax_compilation_cache_max_size", MAX_BYTES)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", MIN_COMPILE_S)


def folder() -> pathlib.Path:
    """Where compiled programs are kept, unless JAX was told otherwise."""
    named = os.environ.get("GEM_JAX_CACHE")
    if named:
        return pathlib.Path(named).expanduser()
    home = os.environ.get("XDG_CACHE_HOME")
    return (pathlib.Path(home) if home else pathlib.Path.home() / ".cache") / "gem_jax" / "xla"

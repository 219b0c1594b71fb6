"""The step's bench on a tiny model: every key of a row, time by scope, start-up in processes of its own."""

import json
import pathlib

import pytest

from gem_jax.bench import __main__, profile, startup, step
from gem_jax.config import Config, load

TINY = """
from gem_jax.config import Config
from gem_jax.data.packing import BatchConfig
from gem_jax.data.synthetic import SyntheticConfig
from gem_jax.models.gem import GemConfig, Level


def get_config() -> Config:
    stream = SyntheticConfig(train_examples=500, test_examples=100, active_users=50, active_ads=24,
                             organic_max_len=8, impressions_max_len=8)
    model = GemConfig(embedding_dim=8, num_layers=1, levels=(Level(),), fmb_tokens=2, lcb_tokens=2, rank=2,
                      fmb_hidden=(8,), head_hidden=8)
    batch = BatchConfig(examples=4, tokens={"organic": 32, "impressions": 32})
    return Config(name="tiny", data=stream, model=model, batch=batch)
"""
KEYS = {
    "bench", "config", "dtype", "ms", "examples_per_s", "fed_examples_per_s", "tflops", "mfu", "peak_gib", "first_step_s",
    "warm_first_step_s", "by_scope", "device", "jax", "commit",
}  # fmt: skip
PHASES = {"data", "state", "lower", "compile", "first_step", "total"}


@pytest.fixture
def tiny(tmp_path) -> tuple[str, Config]:
    file = tmp_path / "tiny.py"
    file.write_text(TINY)
    return str(file), load(file)


def test_a_row(tiny, tmp_path, monkeypatch, capsys):
    """What `step` prints and writes; start-up is stubbed, the step itself is real."""
    phases = dict.fromkeys(PHASES, 1.5)
    monkeypatch.setattr(startup, "measure", lambda words: (phases, phases))
    file = tmp_path / "rows.json"
    assert __main__.main(["step", tiny[0], "--json", str(file), "--trace", str(tmp_path / "trace")]) == 0
    (row,) = json.loads(file.read_text())
    assert row.keys() >= KEYS and row["bench"] == "step" and row["first_step_s"] == 1.5
    assert all(row[name] > 0 for name in ("ms", "examples_per_s", "fed_examples_per_s", "tflops", "mfu", "peak_gib"))
    assert {"pyramid", "heads", "layer/fmb"} <= row["by_scope"].keys()
    assert (
        sum(row["by_kind"].values()) == pytest.approx(sum(row["by_scope"].values()))
        and sum(row["by_kind"].values()) > 0
    )
    assert list(pathlib.Path(tmp_path / "trace").rglob("*.xplane.pb"))
    assert "examples/s" in capsys.readouterr().out


@pytest.mark.slow
def test_start_up_is_colder_without_a_cache(tiny, monkeypatch):
    cold, warm = startup.measure([tiny[0]])
    assert cold.keys() == warm.keys() == PHASES
    assert warm["compile"] < cold["compile"] / 2
    assert cold["total"] == pytest.approx(sum(s for name, s in cold.items() if name != "total"), rel=0.05)


def test_what_cannot_be_measured_is_said(capsys):
    assert __main__.main([]) == 2 and __main__.main(["kernels"]) == 2
    assert "name what to measure" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("op_name", "expected"),
    [
        ("jit(train_step)/transpose(jvp(layer1))/sequence/gdpa/mul", "layer/sequence/gdpa"),
        ("jit(train_step)/shard_map/jvp(pyramid)/jit(searchsorted)/sub", "pyramid"),
        ("jit(train_step)/transpose(jvp(layer0))/cross/vmap(nhgk,mhk->hgnm)/transpose", "layer/cross"),
        ("jit(train_step)/jvp()/all_gather", "other"),
        ("jit(train_step)/mul", "other"),
        ("", "other"),
    ],
)
def test_scopes(op_name, expected):
    assert profile.scope(op_name) == expected


def test_times_add_up_by_scope_and_kind():
    hlo = """
  %fusion.1 = f32[8]{0} fusion(%p), kind=kLoop, metadata={op_name="jit(f)/jvp(heads)/mul" source_line=3}
  ROOT dot.2 = f32[8]{0} dot(%p, %q), metadata={op_name="jit(f)/tokens/dot_general"}
"""
    hlo += '  custom-call.4 = f32[8]{0} custom-call(%p), custom_call_target="__cublas$lt$matmul"\n'
    times = {"fusion.1": 1.0, "dot.2": 2.0, "copy.3": 0.5}
    assert profile.by_scope(times, hlo) == {"tokens": 2.0, "heads": 1.0, "other": 0.5}
    assert profile.by_kind(times) == {"matmul": 2.0, "elementwise": 1.0, "movement": 0.5}
    calls = {"custom-call.4": 3.0, "custom-call.5": 1.0}
    assert profile.by_kind(calls, hlo) == {"matmul": 3.0, "kernel": 1.0}


def test_a_product_has_a_speed():
    assert step.ceiling_tflops() > 0

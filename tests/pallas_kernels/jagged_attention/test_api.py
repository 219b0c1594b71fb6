"""Argument checks, dispatch, and memory of the CPU path."""

import types
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.common import dispatch
from pallas_kernels.jagged_attention import Mask, RelativeBias, backends, gdpa, jagged_attention, seed_attention

Q = jnp.zeros((32, 2, 16))
OFFSETS = np.array([0, 8, 32])


def call(q=Q, k=Q, v=Q, offsets=OFFSETS, lengths=None, max_len=24, **more):
    return jagged_attention(q, k, v, offsets, lengths, max_len=max_len, **more)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(offsets=np.array([0, 4, 32])), "multiple of 8"),
        (dict(max_len=20), "more than max_len=20"),
        (dict(lengths=np.array([9, 1])), "must fit between"),
        (dict(lengths=np.array([1, 1, 1])), "one entry a sequence"),
        (dict(offsets=np.array([0, 40])), "offsets end at row 40"),
        (dict(offsets=np.array([0.0, 8.0])), "integer vector"),
        (dict(max_len=0), "max_len must be at least 1"),
        (dict(kind="gelu"), "kind must be one of"),
        (dict(k=jnp.zeros((32, 3, 16)), v=jnp.zeros((32, 3, 16))), "divides q's H"),
        (dict(v=jnp.zeros((32, 2, 8))), "divides q's H"),
        (dict(k=Q.astype(jnp.bfloat16), v=Q.astype(jnp.bfloat16)), "share one floating dtype"),
        (dict(q=Q[0]), "must be"),
        (dict(num_targets=np.array([1])), "num_targets must have one entry"),
        (dict(implementation="cuda"), "implementation must be one of"),
        (dict(bias=RelativeBias(jnp.zeros(3), jnp.zeros(3), jnp.zeros(32, jnp.int32))), "2 \\* max_len - 1"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        call(**arguments)


def test_wrong_mask():
    with pytest.raises(ValueError, match=r"Mask\.window"):
        Mask(window=0)
    with pytest.raises(ValueError, match=r"Mask\.prefix"):
        Mask(prefix=-1)


def test_wrong_dense_arguments():
    with pytest.raises(ValueError, match="gdpa needs k and v"):
        gdpa(Q, Q, Q, OFFSETS, max_len=24)
    with pytest.raises(ValueError, match="seed_attention needs q"):
        seed_attention(Q[0], Q, Q, OFFSETS, max_len=24)


@pytest.mark.parametrize(
    ("implementation", "message"),
    [
        ("mosaic_gpu", "Hopper"),
        ("triton", "Ampere|jax-triton|triton"),
        ("triton_short", "Ampere|jax-triton|triton"),
    ],
)
def test_gpu_backends_say_what_they_need(implementation, message):
    if jax.default_backend() == "gpu":
        pytest.skip("this machine may have what they need")
    q = jnp.zeros((32, 2, 64), jnp.bfloat16)
    with pytest.raises(NotImplementedError, match=message):
        call(q=q, k=q, v=q, implementation=implementation)


def test_defaults_to_xla_on_cpu_and_runs_under_jit():
    if jax.default_backend() != "cpu":
        pytest.skip("CPU only")
    rng = np.random.default_rng(0)
    q = jnp.asarray(rng.normal(size=Q.shape), jnp.float32)
    by_default = jax.jit(lambda q, o: jagged_attention(q, q, q, o, max_len=24))(q, OFFSETS)
    np.testing.assert_array_equal(by_default, call(q, q, q, implementation="xla"))


def test_memory_is_linear_in_tokens():
    """Temporary memory of forward and backward, for sequences of one length, doubles with their number."""

    def temporary(batch):
        length = 640
        shape = jax.ShapeDtypeStruct((batch * length, 2, 16), jnp.float32)
        offsets = jax.ShapeDtypeStruct((batch + 1,), jnp.int32)

        def loss(q, k, v, offsets):
            return jagged_attention(q, k, v, offsets, max_len=length, implementation="xla").sum()

        compiled = jax.jit(jax.grad(loss, (0, 1, 2))).lower(shape, shape, shape, offsets).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    # the scores at hand are a constant (SCORE_BYTES), so compare increments
    small, middle, large = (temporary(batch) for batch in (64, 128, 256))
    assert large - middle <= 2.1 * (middle - small)
    per_token = (large - middle) / (128 * 640)
    assert per_token < 32 * 2 * 16 * 4  # a few dozen copies of a float32 row of q, not a row of scores


H100 = types.SimpleNamespace(platform="gpu", compute_capability="9.0")
L4 = types.SimpleNamespace(platform="gpu", compute_capability="8.9")
T4 = types.SimpleNamespace(platform="gpu", compute_capability="7.5")
CPU = types.SimpleNamespace(platform="cpu")


@pytest.mark.parametrize(
    ("device", "request_of", "expected", "warned"),
    [
        (H100, dict(), "mosaic_gpu", ""),
        (H100, dict(dense_keys=12), "triton", "multiple of 8 keys an example, got 12"),
        (H100, dict(scale=-1.0), "triton", "positive scale"),
        (L4, dict(), "triton", ""),
        (H100, dict(longest=256), "triton_short", ""),
        (H100, dict(longest=257), "mosaic_gpu", ""),
        (L4, dict(longest=64, dtype=jnp.dtype("float32"), head_dim=48), "triton_short", ""),
        (L4, dict(longest=64, head_dim=512), "xla", "multiples of 16 up to 256, got 512"),
        (CPU, dict(longest=64), "xla", ""),
        (T4, dict(), "xla", ""),
        (T4, dict(head_dim=48), "xla", ""),
        (CPU, dict(has_bias=True), "xla", ""),
    ],
)
def test_the_fastest_backend_that_can_is_taken(device, request_of, expected, warned, monkeypatch):
    dispatch._warn_once.cache_clear()
    monkeypatch.setattr(dispatch, "default_device", lambda: device)
    monkeypatch.setattr(dispatch, "package_missing", lambda *names: None)
    request = backends.Request(**dict(dtype=jnp.dtype("bfloat16"), head_dim=128, scale=0.1, longest=4096) | request_of)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        names = {dispatch.choose("gdpa", backends.BACKENDS, request).name for _ in range(2)}
    assert names == {expected}
    messages = [str(warning.message) for warning in said]
    assert bool(messages) == bool(warned) and all("gdpa" in message for message in messages)
    assert not warned or any(warned in message for message in messages)
    assert len(set(messages)) == len(messages)


@pytest.mark.parametrize(
    ("request_of", "reason"),
    [
        (dict(has_bias=True), "no relative bias"),
        (dict(head_dim=48), "heads of 32, 64, 128, 256, got 48"),
        (dict(dtype=jnp.dtype("float32")), "bfloat16 and float16, got float32"),
    ],
)
def test_each_faster_backend_that_refuses_is_named_once(request_of, reason, monkeypatch):
    dispatch._warn_once.cache_clear()
    monkeypatch.setattr(dispatch, "default_device", lambda: H100)
    request = backends.Request(**dict(dtype=jnp.dtype("bfloat16"), head_dim=128, scale=0.1, longest=4096) | request_of)
    with pytest.warns(UserWarning, match=reason) as said:
        assert dispatch.choose("jagged_attention", backends.BACKENDS, request).name == "xla"
    assert [name for w in said for name in ("mosaic_gpu", "triton") if f'"{name}"' in str(w.message)] == [
        "mosaic_gpu",
        "triton",
    ]
    dispatch.choose("jagged_attention", backends.BACKENDS, request)  # a second warning would be an error


def test_a_named_backend_runs_or_says_why(monkeypatch):
    request = backends.Request(jnp.dtype("bfloat16"), 48, 0.1, 4096)
    with pytest.raises(NotImplementedError, match='"mosaic_gpu" cannot run this gdpa: it takes heads of'):
        dispatch.choose("gdpa", backends.BACKENDS, request, "mosaic_gpu")
    assert dispatch.choose("gdpa", backends.BACKENDS, request, "reference").name == "reference"


def test_missing_packages_are_named():
    assert (
        dispatch.package_missing("jax", "no_such_package")
        == "it needs the package no-such-package, which is not installed."
    )
    assert dispatch.package_missing("jax") is None


def test_the_default_device_is_the_one_that_jit_uses():
    second = jax.devices()[-1]
    with jax.default_device(second):
        assert dispatch.default_device() == second
    assert dispatch.default_device() == jax.devices()[0]

"""What every backend must do: values and gradients against the float64 reference, padding untouched."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.jagged_attention import Mask, RelativeBias, gdpa, jagged_attention, make_work_list, seed_attention
from tests.pallas_kernels.jagged_attention import cases, emulator
from tests.pallas_kernels.jagged_attention.cases import GPU_LENGTHS, LENGTHS, MASKS, Case
from tests.pallas_kernels.jagged_attention.emulator import emulated

EMULATED = "mosaic_gpu on a CPU"  # see `emulator`
GPU_BACKENDS = [pytest.param(name, marks=pytest.mark.gpu) for name in ("mosaic_gpu", "triton", "triton_short")]


def attention(case: Case, implementation, **more):
    """(q, k, v, do) -> o, dq, dk, dv."""

    def run(q, k, v, do):
        forward = functools.partial(
            jagged_attention,
            offsets=case.offsets,
            lengths=np.array(case.lengths),
            max_len=case.longest,
            kind=case.kind,
            mask=case.mask,
            num_targets=case.targets,
            implementation=implementation,
            **more,
        )
        out, pull = jax.vjp(forward, q, k, v)
        return out, *pull(do.astype(out.dtype))

    return run


def call(run, implementation, *arrays):
    """run(implementation, *arrays) on a backend, jitted, or in the emulator, which takes concrete arrays."""
    if implementation == EMULATED:
        with emulated():
            return run("mosaic_gpu", *arrays)
    return jax.jit(functools.partial(run, implementation))(*arrays)


def assert_contract(case: Case, implementation, **more):
    arrays = case.arrays()
    got = call(lambda name, *arrays: attention(case, name, **more)(*arrays), implementation, *arrays)
    truth = cases.in_float64(attention(case, "reference"), *arrays)
    limit = cases.tolerance(case.dtype, case.longest)
    for name, value, expected in zip(("o", "dq", "dk", "dv"), got, truth, strict=True):
        value = np.asarray(value, np.float64)
        assert value.dtype == np.float64 and np.all(np.isfinite(value)), f"{name} is not finite"
        assert np.all(value[~case.valid()] == 0), f"{name} is not 0 in padding rows"
        error = cases.relative_error(value, expected)
        assert error < limit, f"{name}: {error:.1e} >= {limit:.1e}"


QUICK = {("silu", "causal"), ("softmax", "window"), ("silu", "block"), ("softmax", "prefix"), ("silu", "window_full")}


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        pytest.param(kind, name, marks=() if (kind, name) in QUICK else pytest.mark.slow)
        for kind in ("silu", "softmax")
        for name in MASKS
    ],
)
@pytest.mark.parametrize("max_len", [130, 600], ids=["dense", "tiled"])
def test_xla(name, kind, max_len):
    assert_contract(Case(kind=kind, mask=MASKS[name], max_len=max_len), "xla")


@pytest.mark.parametrize("kind", ["silu", "softmax"])
@pytest.mark.parametrize("max_len", [130, 600], ids=["dense", "tiled"])
def test_xla_targets_and_grouped_heads(kind, max_len):
    mask = Mask(window=40, prefix=3)
    case = Case(heads=4, kv_heads=2, kind=kind, mask=mask, num_targets=9, max_len=max_len)
    assert_contract(case, "xla")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_xla_narrow(dtype):
    assert_contract(Case(dtype=dtype, lengths=(65, 0, 30), max_len=600), "xla")


def test_xla_float64():
    case = Case(lengths=(65, 0, 30), dtype="float64")
    with jax.enable_x64(True):
        assert_contract(case, "xla")


def test_xla_maps_over_sequences_when_scores_are_large(monkeypatch):
    from pallas_kernels.jagged_attention import xla

    monkeypatch.setattr(xla, "SCORE_BYTES", 2 * 4 * 2 * 130**2)
    assert_contract(Case(max_len=130), "xla")


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        pytest.param(kind, name, marks=() if (kind, name) in QUICK else pytest.mark.slow)
        for kind in ("silu", "softmax")
        for name in MASKS
    ],
)
@pytest.mark.parametrize("deterministic", [False, True])
def test_emulated_masks(deterministic, name, kind):
    case = Case(size=128, kind=kind, mask=MASKS[name], dtype="bfloat16")
    assert_contract(case, EMULATED, deterministic=deterministic)


@pytest.mark.parametrize("kind", ["silu", "softmax"])
@pytest.mark.parametrize("size", [pytest.param(32, marks=pytest.mark.slow), 64, 256])
@pytest.mark.parametrize("deterministic", [False, True])
def test_emulated_sizes(deterministic, size, kind):
    assert_contract(Case(size=size, kind=kind, dtype="float16"), EMULATED, deterministic=deterministic)


@pytest.mark.parametrize("kind", ["silu", "softmax"])
@pytest.mark.parametrize("size", [64, pytest.param(128, marks=pytest.mark.slow)])
def test_emulated_targets_and_grouped_heads(size, kind):
    mask = Mask(window=40, prefix=3)
    case = Case(heads=4, kv_heads=2, size=size, kind=kind, mask=mask, num_targets=9, dtype="bfloat16")
    assert_contract(case, EMULATED)


@pytest.mark.parametrize("slow", [0, 1, 2])
def test_emulated_with_a_slow_thread(slow, monkeypatch):
    monkeypatch.setattr(emulator, "slow", slow)
    for size in (64, 128):
        assert_contract(Case((0, 65, 300), size=size, kind="softmax", dtype="bfloat16"), EMULATED)


@pytest.mark.parametrize("kind", ["silu", "softmax"])
@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize("size", [64, 128])
@pytest.mark.parametrize("implementation", GPU_BACKENDS)
def test_gpu_masks(implementation, size, name, kind):
    case = Case(GPU_LENGTHS, size=size, kind=kind, mask=MASKS[name], dtype="bfloat16")
    assert_contract(case, implementation)


@pytest.mark.parametrize("kind", ["silu", "softmax"])
@pytest.mark.parametrize("size", [32, 64, 128, 256])
@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("implementation", GPU_BACKENDS)
def test_gpu_sizes(implementation, deterministic, size, kind):
    case = Case(GPU_LENGTHS, size=size, kind=kind, dtype="float16")
    assert_contract(case, implementation, deterministic=deterministic)


@pytest.mark.parametrize("kind", ["silu", "softmax"])
@pytest.mark.parametrize("implementation", GPU_BACKENDS)
def test_gpu_targets_and_grouped_heads(implementation, kind):
    mask = Mask(window=40, prefix=3)
    case = Case(GPU_LENGTHS, heads=4, kv_heads=2, size=64, kind=kind, mask=mask, num_targets=9, dtype="bfloat16")
    assert_contract(case, implementation)


@pytest.mark.parametrize("kind", ["silu", "softmax"])
@pytest.mark.parametrize("size", [64, 128, 256])
@pytest.mark.parametrize("name", ["causal", "window"])
@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.gpu
def test_gpu_many_tiles_a_program(name, size, kind, deterministic):
    """Several rounds of the work list: what a tile leaves behind in buffers and barriers meets the next one."""
    lengths = tuple(np.random.default_rng(0).integers(0, 400, 16).tolist())
    case = Case(lengths, heads=9, kv_heads=9, size=size, kind=kind, mask=MASKS[name], dtype="bfloat16")
    assert sum(-(-n // 128) for n in lengths) * case.heads > 2 * 132
    assert_contract(case, "mosaic_gpu", deterministic=deterministic)


SHORT_LENGTHS = (0, 3, 64, 1, 17, 0, 33, 8, 60) * 12


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["silu", "softmax"])
@pytest.mark.parametrize("name", MASKS)
def test_gpu_many_short_histories(name, kind):
    """What the tiles of many histories are for; float32 too, and heads that are no power of two."""
    for dtype, size in (("bfloat16", 64), ("float32", 48)):
        case = Case(SHORT_LENGTHS, heads=4, kv_heads=2, size=size, kind=kind, mask=MASKS[name], dtype=dtype)
        assert_contract(case, "triton_short")


@pytest.mark.gpu
@pytest.mark.parametrize("implementation", ["mosaic_gpu", "triton_short"])
def test_deterministic_gradients_are_bitwise_equal(implementation):
    case = Case(GPU_LENGTHS, size=128, dtype="bfloat16", heads=4, kv_heads=4)
    run = jax.jit(attention(case, implementation, deterministic=True))
    arrays = case.arrays()
    first = jax.tree.map(np.asarray, run(*arrays))
    for _ in range(10):
        again = jax.tree.map(np.asarray, run(*arrays))
        assert all(x.tobytes() == y.tobytes() for x, y in zip(first, again, strict=True))


CROSS = ["xla", EMULATED, *GPU_BACKENDS]


@pytest.mark.parametrize("activation", ["silu", "gelu", "relu", "softmax"])
@pytest.mark.parametrize("implementation", CROSS)
def test_gdpa(implementation, activation):
    dtype, size = ("float32", 16) if implementation == "xla" else ("bfloat16", 128)
    case = Case(LENGTHS, size=size, dtype=dtype)
    q, _, _, do = case.arrays()
    rng = np.random.default_rng(1)
    k, v = (jnp.asarray(rng.normal(size=(len(LENGTHS), 40, case.heads, size)), dtype) for _ in range(2))

    def run(implementation, q, k, v, do):
        def forward(q, k, v):
            return gdpa(
                q,
                k,
                v,
                case.offsets,
                np.array(LENGTHS),
                max_len=129,
                activation=activation,
                implementation=implementation,
            )

        out, pull = jax.vjp(forward, q, k, v)
        return out, *pull(do.astype(out.dtype))

    got = call(run, implementation, q, k, v, do)
    truth = cases.in_float64(functools.partial(run, "reference"), q, k, v, do)
    _assert_close(got, truth, cases.tolerance(dtype, 129))
    assert np.all(np.asarray(got[0], np.float32)[~case.valid()] == 0)


@pytest.mark.parametrize("kind", ["silu", "softmax"])
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("implementation", CROSS)
def test_seed_attention(implementation, shared, kind):
    dtype, size = ("float32", 16) if implementation == "xla" else ("bfloat16", 128)
    case = Case(LENGTHS, size=size, dtype=dtype)
    _, k, v, _ = case.arrays()
    rng = np.random.default_rng(1)
    shape = (6, 2, size) if shared else (len(LENGTHS), 6, 2, size)
    q = jnp.asarray(rng.normal(size=shape), dtype)
    do = jnp.asarray(rng.normal(size=(len(LENGTHS), 6, 2, size)), dtype)

    def run(implementation, q, k, v, do):
        def forward(q, k, v):
            return seed_attention(
                q,
                k,
                v,
                case.offsets,
                np.array(LENGTHS),
                max_len=129,
                kind=kind,
                implementation=implementation,
            )

        out, pull = jax.vjp(forward, q, k, v)
        return out, *pull(do.astype(out.dtype))

    got = call(run, implementation, q, k, v, do)
    truth = cases.in_float64(functools.partial(run, "reference"), q, k, v, do)
    # shared seeds: the gradient also sums over the examples, in the narrow dtype
    _assert_close(got, truth, cases.tolerance(dtype, 129) * (2 if shared else 1))
    assert np.all(np.asarray(got[0], np.float32)[0] == 0)  # the first sequence is empty
    for gradient in got[2:]:
        assert np.all(np.asarray(gradient, np.float32)[~case.valid()] == 0)


def _assert_close(got, truth, limit):
    for name, value, expected in zip(("o", "dq", "dk", "dv"), got, truth, strict=True):
        assert np.all(np.isfinite(np.asarray(value, np.float32))), name
        error = cases.relative_error(value, expected)
        assert error < limit, f"{name}: {error:.1e} >= {limit:.1e}"


@pytest.mark.parametrize("kind", ["silu", "softmax"])
def test_relative_bias(kind):
    case = Case(lengths=(0, 1, 30, 41), kind=kind)
    q, k, v, do = case.arrays()
    rng = np.random.default_rng(2)
    position, time = rng.normal(size=2 * case.longest - 1), rng.normal(size=33)
    timestamps = rng.integers(0, 10_000, size=case.num_rows).astype(np.int32)

    def run(implementation, q, k, v, do, position, time):
        def forward(q, k, v, position, time):
            return jagged_attention(
                q,
                k,
                v,
                case.offsets,
                np.array(case.lengths),
                max_len=case.longest,
                kind=kind,
                bias=RelativeBias(position, time, jnp.asarray(timestamps)),
                implementation=implementation,
            )

        out, pull = jax.vjp(forward, q, k, v, position, time)
        return out, *pull(do.astype(out.dtype))

    arrays = (q, k, v, do, jnp.asarray(position, jnp.float32), jnp.asarray(time, jnp.float32))
    got = jax.jit(functools.partial(run, "xla"))(*arrays)
    truth = cases.in_float64(functools.partial(run, "reference"), *arrays)
    for value, expected in zip(got, truth, strict=True):
        # a bias entry's gradient sums over the pairs of all sequences
        assert cases.relative_error(value, expected) < cases.tolerance("float32", 41 * 41)


def test_relative_bias_matches_hstu_definition():
    """One sequence, softmax off: o for v = identity reads off silu(score + bias)."""
    length, scale = 8, 0.5
    rng = np.random.default_rng(0)
    q, k = (jnp.asarray(rng.normal(size=(length, 1, length)), jnp.float32) for _ in range(2))
    v = jnp.eye(length)[:, None]
    position, time = rng.normal(size=2 * length - 1), rng.normal(size=6)
    stamps = np.array([0, 1, 2, 10, 100, 101, 500, 501])
    out = jagged_attention(
        q,
        k,
        v,
        jnp.array([0, length]),
        max_len=length,
        mask=Mask(causal=False),
        scale=scale,
        bias=RelativeBias(
            jnp.asarray(position, jnp.float32), jnp.asarray(time, jnp.float32), jnp.asarray(stamps, jnp.int32)
        ),
    )
    following = np.append(stamps[1:], stamps[-1])
    for i in range(length):
        for j in range(length):
            bucket = int(min(np.log(max(1, abs(following[i] - stamps[j]))) / 0.301, 5))
            score = scale * float(q[i, 0] @ k[j, 0]) + position[length - 1 + j - i] + time[bucket]
            np.testing.assert_allclose(out[i, 0, j], score / (1 + np.exp(-score)) / length, rtol=1e-4, atol=1e-5)


EVERYONE = ["reference", "xla", EMULATED, *GPU_BACKENDS]


@pytest.mark.parametrize("implementation", EVERYONE)
@pytest.mark.parametrize(("rows", "batch"), [(0, 0), (0, 3), (32, 0)])
def test_no_rows_and_no_sequences_give_zeros(rows, batch, implementation):
    dtype = jnp.float32 if implementation in ("reference", "xla") else jnp.bfloat16
    packed = jnp.full((rows, 2, 64), jnp.nan, dtype)  # without sequences, rows are padding
    dense, offsets = jnp.ones((batch, 8, 2, 64), dtype), np.zeros(batch + 1, np.int32)
    operations = {
        "jagged_attention": (jagged_attention, (packed,) * 3, packed.shape),
        "gdpa": (gdpa, (packed, dense, dense), packed.shape),
        "seed_attention": (seed_attention, (dense[:, :4], packed, packed), (batch, 4, 2, 64)),
        "shared seeds": (seed_attention, (jnp.ones((4, 2, 64), dtype), packed, packed), (batch, 4, 2, 64)),
    }
    for operation, arrays, shape in operations.values():

        def run(name, *arrays, operation=operation):
            forward = functools.partial(operation, offsets=offsets, max_len=24, implementation=name)
            out, pull = jax.vjp(forward, *arrays)
            return out, *pull(out)

        out, *gradients = call(run, implementation, *arrays)
        assert out.shape == shape and out.dtype == dtype
        assert [x.shape for x in gradients] == [x.shape for x in arrays]
        assert not any(np.any(np.asarray(x, np.float32)) for x in (out, *gradients))


def test_a_work_list_of_no_sequences_has_no_items():
    made = make_work_list(np.zeros(1, np.int32), num_rows=32, heads=2, programs=3)
    assert not np.any(made.by_query[1]) and not np.any(made.by_key[1])
    assert made.q_gaps[0] == 128 // 8


@pytest.mark.parametrize("implementation", EVERYONE)
def test_targets_outside_the_sequence_count_as_the_nearest_inside(implementation):
    lengths, size = (0, 20, 70), 64
    dtype = "float32" if implementation in ("reference", "xla") else "bfloat16"
    case = Case(lengths, size=size, dtype=dtype)
    arrays = case.arrays()

    def run(name, *arrays, targets):
        q, k, v, do = arrays
        forward = functools.partial(
            jagged_attention,
            offsets=case.offsets,
            lengths=np.array(lengths),
            max_len=case.longest,
            num_targets=targets,
            implementation=name,
        )
        out, pull = jax.vjp(forward, q, k, v)
        return out, *pull(do)

    outside, inside = (
        call(functools.partial(run, targets=jnp.array(targets)), implementation, *arrays)
        for targets in ((-1, -3, 71), (0, 0, 70))
    )
    for one, other in zip(outside, inside, strict=True):
        np.testing.assert_array_equal(np.asarray(one, np.float32), np.asarray(other, np.float32))

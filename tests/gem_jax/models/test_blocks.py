"""The published blocks against float64 NumPy written from their equations; padding rows hold NaN."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from gem_jax.models.gdpa import GDPAFeedForward
from gem_jax.models.heads import DomainGatedHeads, PlainHead
from gem_jax.models.hstu import HSTUBlock
from gem_jax.models.interformer import PFFN, FeatureSummary, SequenceArch, SequenceSummary
from gem_jax.models.sasrec import SASRecBlock
from gem_jax.models.wukong import FactorizationMachineBlock, Wukong, WukongLayer
from gem_jax.nn.parameters import numbered
from gem_jax.precision.policy import Policy
from tests.gem_jax.nn import numpy_reference as ref
from tests.gem_jax.nn.numpy_reference import f64
from tests.gem_jax.nn.running import (
    FLOAT32,
    LENGTHS,
    MAX_LEN,
    NUM_ROWS,
    assert_rows,
    example_layout,
    normal,
    random_rows,
    randomised,
    run,
)

CLOSE = dict(rtol=1e-4, atol=1e-4)  # norms after products of random parameters multiply float32's 1e-7 by about 100
NUM_EXAMPLES = len(LENGTHS)
TOKENS = numbered("token", 9)


# Wukong


def fmb(module, x):
    """reshape(MLP(LN(flatten(FM(X))))) for one example [n, D]."""
    products = x @ x.T if module.y is None else x @ (x.T @ f64(module.y))
    return ref.mlp(module.mlp, ref.layer_norm(products.reshape(-1), module.norm)).reshape(-1, x.shape[1])


def wukong_layer(module, x):
    """LN([FMB(X), LCB(X)] + X)."""
    tokens = np.concatenate([fmb(module.fmb, x), f64(module.lcb.weight).T @ x])
    residual = x if module.residual is None else f64(module.residual.weight).T @ x
    return ref.layer_norm(tokens + residual, module.norm)


@pytest.mark.parametrize("rank", [None, 3])
def test_factorization_machine_block(rank):
    module = randomised(
        lambda: FactorizationMachineBlock(TOKENS[:5], 2, 4, rank=rank, hidden=(6,), policy=FLOAT32, rngs=nnx.Rngs(0))
    )
    x = normal(3, 5, 4)
    np.testing.assert_allclose(run(module, x), [fmb(module, example) for example in f64(x)], **CLOSE)


@pytest.mark.parametrize("tokens_in", [5, 7])  # 5 = tokens out: a plain residual
def test_wukong_layer(tokens_in):
    options = dict(fmb_tokens=2, lcb_tokens=3, rank=3, hidden=(6,))
    module = randomised(lambda: WukongLayer(TOKENS[:tokens_in], 4, **options, policy=FLOAT32, rngs=nnx.Rngs(0)))
    assert (module.residual is None) == (tokens_in == 5)
    x = normal(3, tokens_in, 4)
    np.testing.assert_allclose(run(module, x), [wukong_layer(module, example) for example in f64(x)], **CLOSE)


def test_wukong_pyramid():
    sizes = dict(fmb_tokens=(4, 1), lcb_tokens=(3, 2), rank=2, hidden=(5,))
    module = randomised(lambda: Wukong(TOKENS, 4, **sizes, policy=FLOAT32, rngs=nnx.Rngs(0)))
    x = normal(3, 9, 4)
    expected = [wukong_layer(module.layers[1], wukong_layer(module.layers[0], example)) for example in f64(x)]
    y = run(module, x)
    assert y.shape == (3, len(module.tokens_out), 4) == (3, 3, 4)
    np.testing.assert_allclose(y, expected, **CLOSE)


# InterFormer


def pffn(module, summary, history):
    """W_PFFN S with W_PFFN = X_sum W [D, D], on columns as the paper has them."""
    w_pffn = summary.T @ f64(module.weight)
    return (w_pffn @ history.T).T


def gate(module, x):
    return x * ref.sigmoid(ref.linear(module.linear, x))


def test_pffn():
    module = randomised(lambda: PFFN(4, 3, policy=FLOAT32, rngs=nnx.Rngs(0)))
    x, histories = random_rows(4)
    summary = normal(NUM_EXAMPLES, 3, 4)
    expected = [pffn(module, s, h) for s, h in zip(f64(summary), histories, strict=True)]
    assert_rows(run(module, summary, x, example_layout()), expected)


def test_feature_summary():
    module = randomised(lambda: FeatureSummary(TOKENS[:5], 2, 4, gate="gated", policy=FLOAT32, rngs=nnx.Rngs(0)))
    x = normal(3, 5, 4)
    compressed = np.einsum("nm,bnd->bmd", f64(module.compress.weight), f64(x))
    np.testing.assert_allclose(run(module, x), gate(module.gate, compressed), **CLOSE)


def test_sequence_summary():
    sizes = dict(num_cls=1, num_pma=3, num_recent=2, num_heads=2)
    module = randomised(lambda: SequenceSummary(4, **sizes, gate="gated", policy=FLOAT32, rngs=nnx.Rngs(0)))
    x, histories = random_rows(4)
    expected = []
    for history in histories:
        cls, events = np.zeros((1, 4)), history[1:]
        cls[: len(history)] = history[:1]
        newest = np.zeros((2, 4))
        newest[2 - min(2, len(events)) :] = events[len(events) - min(2, len(events)) :]
        expected.append(gate(module.gate, np.concatenate([cls, ref.pma(module.pma, history), newest])))
    assert module.names == ("cls0", "pma0", "pma1", "pma2", "recent0", "recent1")
    np.testing.assert_allclose(run(module, x, example_layout()), expected, **CLOSE)


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("personalise", ["pffn", "gdpa"])
def test_sequence_arch(residual, personalise):
    module = randomised(
        lambda: SequenceArch(4, 3, 2, personalise=personalise, residual=residual, policy=FLOAT32, rngs=nnx.Rngs(0))
    )
    x, histories = random_rows(4)
    summary = normal(NUM_EXAMPLES, 3, 4)
    expected = []
    for s, history in zip(f64(summary), histories, strict=True):
        if personalise == "gdpa":
            p = gdpa(module.feed_forward, s, history)
        elif residual:
            p = history + pffn(module.feed_forward, s, ref.layer_norm(history, module.norms[0]))
        else:
            p = pffn(module.feed_forward, s, history)
        normed = ref.layer_norm(p, module.norms[1]) if residual else p
        attended = ref.self_attention(module.attention, normed, is_causal=False, max_len=MAX_LEN)
        expected.append(p + attended if residual else attended)
    assert_rows(run(module, summary, x, example_layout()), expected, tolerance=1e-4)


# Kunlun


def gdpa(module, summary, history):
    """RMSNorm(silu(q K^T / n) V + q), q = LN(S), K and V mixed per head from the summary tokens."""
    q = ref.layer_norm(history, module.norm_in)
    size = module.head_dim
    out = np.zeros_like(q)
    for h in range(q.shape[1] // size):
        span = slice(h * size, (h + 1) * size)
        k = f64(module.w1)[:, h].T @ summary[:, span]
        v = f64(module.w2)[:, h].T @ summary[:, span]
        out[:, span] = ref.silu(q[:, span] @ k.T / MAX_LEN) @ v
    return ref.rms_norm(out + q, module.norm_out)


def test_gdpa_feed_forward():
    module = randomised(lambda: GDPAFeedForward(6, 3, 2, num_keys=5, policy=FLOAT32, rngs=nnx.Rngs(0)))
    x, histories = random_rows(6)
    summary = normal(NUM_EXAMPLES, 3, 6)
    expected = [gdpa(module, s, h) for s, h in zip(f64(summary), histories, strict=True)]
    assert_rows(run(module, summary, x, example_layout()), expected)


# HSTU and SASRec


def hstu(module, x, timestamps, num_targets=0):
    """The block as the authors' ranking code computes it, with the paper's bias: one history at a time, pair by pair."""
    num_rows, num_heads = len(x), module.num_heads
    u, v, q, k = np.split(ref.linear(module.uvqk, ref.layer_norm(x, module.norm_in, eps=1e-6)), 4, axis=-1)
    u = ref.silu(u)
    q, k, v = (ref.heads(part, num_heads) for part in (q, k, v))
    attended = np.zeros_like(q)
    for i in range(num_rows):
        next_time = timestamps[min(i + 1, num_rows - 1)]
        for j in range(i + 1):
            if num_rows - num_targets <= j < i:  # a candidate before another
                continue
            rab = 0.0
            if module.relative_bias is not None:
                bucket = int(np.log(max(1, abs(next_time - timestamps[j]))) / 0.301)
                rab = f64(module.relative_bias.position)[MAX_LEN - 1 + j - i]
                rab += f64(module.relative_bias.time)[min(bucket, 128)]
            for h in range(num_heads):
                score = q[i, h] @ k[j, h] / np.sqrt(q.shape[-1]) + rab
                attended[i, h] += ref.silu(score) / MAX_LEN * v[j, h]
    attended = attended.reshape(u.shape)
    gated = u * ref.layer_norm(attended, module.norm_out, eps=1e-6)
    return x + np.concatenate([u, attended, gated], axis=1) @ f64(module.out.kernel)


@pytest.mark.parametrize("num_targets", [None, (2, 0, 3, 1)])
@pytest.mark.parametrize("relative_bias", [True, False])
def test_hstu_block(relative_bias, num_targets):
    module = randomised(
        lambda: HSTUBlock(6, 2, 4, MAX_LEN, relative_bias=relative_bias, policy=FLOAT32, rngs=nnx.Rngs(0))
    )
    assert module.uvqk.bias is not None and module.out.bias is None
    x, histories = random_rows(6)
    timestamps = -np.sort(np.random.default_rng(3).integers(0, 10**6, NUM_ROWS).astype(np.int32))[::-1]
    layout = example_layout()
    spans = [slice(o, o + n) for o, n in zip(layout.offsets[:-1], layout.lengths, strict=True)]
    expected = [
        hstu(module, h, timestamps[s].astype(np.int64), 0 if num_targets is None else num_targets[b])
        for b, (h, s) in enumerate(zip(histories, spans, strict=True))
    ]
    targets = [] if num_targets is None else [np.array(num_targets, np.int32)]
    # The norm of u * attention / n divides by sums that are small by 1 / n: float32 errors grow tenfold.
    assert_rows(run(module, x, layout, timestamps, *targets), expected, tolerance=5e-4)


def test_hstu_candidates_do_not_see_each_other():
    """Each of several candidates at the end of a history has the state that it has there alone."""
    module = randomised(lambda: HSTUBlock(6, 2, 4, MAX_LEN, relative_bias=False, policy=FLOAT32, rngs=nnx.Rngs(0)))
    x, histories = random_rows(6)
    layout, timestamps = example_layout(), np.zeros(NUM_ROWS, np.int32)
    y = run(module, x, layout, timestamps, np.array([3, 0, 3, 0], np.int32))
    for b in (0, 2):
        start, end = int(layout.offsets[b]), int(layout.offsets[b] + layout.lengths[b])
        for candidate in range(3):
            own = np.concatenate([histories[b][:-3], histories[b][[len(histories[b]) - 3 + candidate]]])
            alone = hstu(module, own, np.zeros(len(own), np.int64))
            np.testing.assert_allclose(y[end - 3 + candidate], alone[-1], rtol=5e-4, atol=5e-4)
            np.testing.assert_allclose(y[start : end - 3], alone[:-1], rtol=5e-4, atol=5e-4)


def test_sasrec_block():
    module = randomised(lambda: SASRecBlock(6, 2, policy=FLOAT32, rngs=nnx.Rngs(0)))
    x, histories = random_rows(6)
    expected = []
    for history in histories:
        normed = ref.layer_norm(history, module.attention_norm)
        y = history + ref.self_attention(module.attention, normed, max_len=MAX_LEN)
        expected.append(y + ref.mlp(module.mlp, ref.layer_norm(y, module.mlp_norm)))
    assert_rows(run(module, x, example_layout()), expected, tolerance=1e-4)


# Heads


def test_domain_gated_heads():
    module = randomised(
        lambda: DomainGatedHeads(
            7, ("click", "like"), ("feed", "stories", "reels"), hidden=6, policy=FLOAT32, rngs=nnx.Rngs(0)
        )
    )
    x, domain = normal(9, 7), np.arange(9, dtype=np.int32) % 3
    expected = np.zeros((9, 2))
    for b in range(9):
        hidden = ref.relu(ref.linear(module.shared, f64(x[b])))
        for task in range(2):
            gate = 2 / (1 + np.exp(-f64(module.domain_gate)[domain[b], task]))
            expected[b, task] = (gate * hidden) @ f64(module.readout)[task] + f64(module.domain_bias)[domain[b], task]
    np.testing.assert_allclose(run(module, x, domain), expected, **CLOSE)


def test_heads_return_float32_logits():
    x = jnp.asarray(normal(5, 8))
    tasks = ("click", "like", "buy")
    make = dict(policy=Policy(compute="bfloat16"), rngs=nnx.Rngs(0))
    assert PlainHead(8, tasks, hidden=(4,), **make)(x).dtype == jnp.float32
    logits = DomainGatedHeads(8, tasks, ("feed", "stories"), hidden=4, **make)(x, jnp.zeros(5, jnp.int32))
    assert logits.shape == (5, 3) and logits.dtype == jnp.float32


def test_blocks_do_not_mix_examples():
    """Swapping two histories swaps their outputs, whatever lies around them."""
    module = randomised(lambda: HSTUBlock(6, 2, 4, MAX_LEN, policy=FLOAT32, rngs=nnx.Rngs(0)))
    x, histories = random_rows(6)
    layout = example_layout()
    timestamps = np.arange(NUM_ROWS, dtype=np.int32)
    changed = x.copy()
    changed[layout.offsets[2] : layout.offsets[2] + layout.lengths[2]] += 1
    y, z = (run(module, rows, dataclasses.replace(layout), timestamps) for rows in (x, changed))
    other = np.asarray(layout.example) != 2
    np.testing.assert_array_equal(y[other], z[other])
    assert not np.allclose(y[~other], z[~other])

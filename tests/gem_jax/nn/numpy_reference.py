"""The layers' equations in float64 NumPy, written from the papers; they take only weights from the modules."""

import numpy as np


def f64(x) -> np.ndarray:
    """An array or a parameter in float64."""
    return np.asarray(x[...] if hasattr(x, "shape") else x, np.float64)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def silu(x):
    return x * sigmoid(x)


def relu(x):
    return np.maximum(x, 0)


def softmax(x, axis=-1):
    e = np.exp(x - x.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


def linear(layer, x):
    y = x @ f64(layer.kernel)
    return y if layer.bias is None else y + f64(layer.bias)


def mlp(module, x):
    """The last layer is plain, unless there are no more than the hidden ones."""
    for i, layer in enumerate(module.layers):
        x = linear(layer, x)
        if i < module.num_hidden:
            x = layer_norm(x, module.norms[i]) if module.norms else x
            slope = f64(module.activations[i].slope) if module.activations else 0.0
            x = relu(x) - slope * relu(-x)
    return x


def layer_norm(x, norm=None, eps=1e-5):
    """Normalised over the last axis, with the affine parameters of `norm` if given."""
    y = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + eps)
    return y if norm is None else y * f64(norm.scale) + f64(norm.bias)


def rms_norm(x, norm=None, eps=1e-5):
    y = x / np.sqrt((x**2).mean(-1, keepdims=True) + eps)
    return y if norm is None else y * f64(norm.scale)


def rope(x, positions, base=10_000.0):
    """[l, H, K]: each pair (i, i + K/2) as a complex number, turned."""
    half = x.shape[-1] // 2
    z = x[..., :half] + 1j * x[..., half:]
    z = z * np.exp(1j * positions[:, None, None] * base ** (-np.arange(half) / half))
    return np.concatenate([z.real, z.imag], axis=-1)


def heads(x, num_heads):
    """[l, D] as [l, H, K]."""
    return x.reshape(len(x), num_heads, x.shape[1] // num_heads)


def attention(q, k, v, weights_of):
    """One history: q [n, H, K], k and v [l, H, K]; `weights_of` maps scores [H, n, l] to weights."""
    weights = weights_of(np.einsum("nhk,lhk->hnl", q, k))
    return np.einsum("hnl,lhk->nhk", weights, v).reshape(len(q), -1)


def causal(num_rows):
    return np.tril(np.ones((num_rows, num_rows), bool))


def self_attention(module, x, *, is_causal=True, max_len):
    """`JaggedSelfAttention` on one history [l, D]."""
    if not len(x):
        return x
    q, k, v = (heads(part, module.num_heads) for part in np.split(linear(module.qkv, x), 3, axis=-1))
    if module.q_norm is not None:
        q, k = rms_norm(q, module.q_norm), rms_norm(k, module.k_norm)
    if module.rope:
        positions = np.arange(len(x))
        q, k = rope(q, positions), rope(k, positions)
    seen = causal(len(x)) if is_causal else np.ones((len(x), len(x)), bool)

    def weights(scores):
        scores = scores / np.sqrt(q.shape[-1])
        if module.kind == "softmax":
            return softmax(np.where(seen, scores, -np.inf))
        return np.where(seen, silu(scores), 0) / max_len

    return linear(module.out, attention(q, k, v, weights))


def pma(module, x):
    """`PMA` on one history [l, D]; zeros for an empty one."""
    seeds = f64(module.seeds)
    if not len(x):
        return np.zeros((len(seeds), f64(module.out.kernel).shape[1]))
    k, v = (heads(part, module.num_heads) for part in np.split(linear(module.kv, x), 2, axis=-1))
    return linear(module.out, attention(seeds, k, v, lambda s: softmax(s / np.sqrt(seeds.shape[-1]))))

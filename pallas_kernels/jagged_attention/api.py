"""The public functions: what they mean, what they check, and which backend runs them."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer

from pallas_kernels.common import dispatch
from pallas_kernels.jagged_attention import backends
from pallas_kernels.jagged_attention.activations import KINDS
from pallas_kernels.jagged_attention.backends import Request
from pallas_kernels.jagged_attention.bias import RelativeBias
from pallas_kernels.jagged_attention.mask import Mask
from pallas_kernels.jagged_attention.worklist import WorkList

ROW_ALIGNMENT = 8  # rows; one swizzled TMA tile on Hopper


def jagged_attention(
    q: Array,
    k: Array,
    v: Array,
    offsets: Array | np.ndarray,
    lengths: Array | np.ndarray | None = None,
    *,
    max_len: int,
    kind: str = "silu",
    mask: Mask = Mask(),  # noqa: B008 (frozen)
    scale: float | None = None,
    num_targets: Array | np.ndarray | None = None,
    bias: RelativeBias | None = None,
    implementation: str | None = None,
    deterministic: bool = False,
    work_list: WorkList | None = None,
) -> Array:
    """Self-attention inside each of B packed sequences of uneven length.

    silu:    o_i = sum_j silu(scale * q_i . k_j + bias_ij) v_j / max_len   (HSTU, arXiv 2402.17152)
    softmax: o_i = sum_j softmax_j(scale * q_i . k_j + bias_ij) v_j
    where j runs over the keys of the same sequence that `mask` shows to i.

    Rows outside every sequence are padding: q, k, v (and the gradient of o) may hold anything there,
    NaN included; o and all gradients are exactly 0 there. Differentiable in q, k, v and bias. No rows (T = 0) or
    no sequences (B = 0) give zeros.

    Args:
      q: [T, H, K] bfloat16, float16, float32 (float64 in "reference" and "xla"); packed rows.
      k, v: [T, Hkv, K], dtype of q; Hkv divides H (grouped-query attention).
      offsets: int32 [B + 1], ascending; sequence b starts at row offsets[b]. Every start must be a
        multiple of 8: the GPU's copy engine moves rows in groups of 8 and silently reads the wrong
        ones otherwise. Checked only where offsets is concrete (not under jit).
      lengths: int32 [B]; sequence b is rows offsets[b] .. offsets[b] + lengths[b]. None: all rows up
        to the next start.
      max_len: an upper bound of lengths; also silu's divisor.
      kind: "silu" or "softmax".
      mask: which keys a query sees.
      scale: None means 1 / sqrt(K) (HSTU's research code uses 1.0).
      num_targets: int32 [B]; the last tokens of each sequence that are targets (see `Mask`).
        Fewer than 0 count as 0, more than the length as all.
      bias: HSTU's relative bias ("reference" and "xla" only).
      implementation: None takes the fastest backend that has the case on this device: triton_short for a max_len of
        at most 256 and otherwise triton on a GPU from Ampere on, mosaic_gpu on a Hopper GPU, xla everywhere. Where
        a faster one refuses the case, a warning says so once. A name runs that backend or raises.
      deterministic: gradients bitwise equal from run to run ("mosaic_gpu": two kernels instead of a
        fused one; the other backends always are).
      work_list: `make_work_list(...)`, to share one work list over layers; "mosaic_gpu" only, others ignore it.

    Returns:
      o: [T, H, K], dtype of q; sums are kept in float32 or wider.

    Raises:
      ValueError: an argument is wrong.
      NotImplementedError: the named implementation cannot do this case.
    """
    _check_kind("kind", kind, ("silu", "softmax"))
    _check_self(q, k, v)
    starts, lengths = layout(offsets, lengths, q.shape[0], max_len)
    if num_targets is not None:
        num_targets = _targets(num_targets, lengths)
    if bias is not None:
        _check_bias(bias, q.shape[0], max_len)
    scale = q.shape[-1] ** -0.5 if scale is None else float(scale)
    if q.shape[0] == 0 or starts.shape[0] == 0:
        return jnp.zeros_like(q)
    request = Request(q.dtype, q.shape[-1], scale, max_len, has_bias=bias is not None)
    options = dict(max_len=max_len, kind=kind, mask=mask, scale=scale, deterministic=deterministic, work_list=work_list)
    run = _backend("jagged_attention", request, implementation)
    return run(q, k, v, starts, lengths, num_targets, bias, **options)


def gdpa(
    q: Array,
    k: Array,
    v: Array,
    offsets: Array | np.ndarray,
    lengths: Array | np.ndarray | None = None,
    *,
    max_len: int,
    activation: str = "silu",
    scale: float | None = None,
    implementation: str | None = None,
) -> Array:
    """Generalised dot-product attention: jagged queries on dense keys and values of their example.

    o_i = sum_j activation(scale * q_i . k[b(i), j]) v[b(i), j]   (Kunlun, arXiv 2602.10016: K and V
    are made from the example's summary; nothing is masked and nothing divided.)

    Args:
      q: [T, H, K] packed; padding and offsets as in `jagged_attention`.
      k, v: [B, J, H, K], dtype of q, finite.
      offsets, lengths, max_len, implementation: as in `jagged_attention`.
      activation: "silu", "gelu" (the tanh form), "relu" or "softmax".
      scale: None means 1 / sqrt(K).

    Returns:
      o: [T, H, K], dtype of q; 0 in padding rows.

    Raises:
      ValueError, NotImplementedError: as in `jagged_attention`.
    """
    _check_kind("activation", activation, KINDS)
    starts, lengths = layout(offsets, lengths, q.shape[0], max_len)
    if k.shape != v.shape or k.ndim != 4 or k.shape[2:] != q.shape[1:]:
        raise ValueError(
            f"gdpa needs k and v of one shape [B, J, H, K] with q's H and K, got k {k.shape}, v {v.shape}, q {q.shape}."
        )
    _per_sequence("k", k, starts.shape[0])
    _check_dtypes(q, k, v)
    scale = q.shape[-1] ** -0.5 if scale is None else float(scale)
    if q.size == 0 or k.size == 0:
        return jnp.zeros_like(q)
    request = Request(q.dtype, q.shape[-1], scale, max(max_len, k.shape[1]), dense_keys=k.shape[1])
    run = _backend("gdpa", request, implementation)
    return run(q, k, v, starts, lengths, max_len=max_len, activation=activation, scale=scale)


def seed_attention(
    q: Array,
    k: Array,
    v: Array,
    offsets: Array | np.ndarray,
    lengths: Array | np.ndarray | None = None,
    *,
    max_len: int,
    kind: str = "softmax",
    scale: float | None = None,
    implementation: str | None = None,
) -> Array:
    """Pooling by attention: dense seed queries on all tokens of each packed sequence (PMA).

    Args:
      q: [n, H, K] seeds shared by all examples, or [B, n, H, K]; finite.
      k, v: [T, Hkv, K] packed, Hkv divides H; padding and offsets as in `jagged_attention`.
      offsets, lengths, max_len, implementation: as in `jagged_attention`.
      kind: "softmax", or "silu" (divided by max_len).
      scale: None means 1 / sqrt(K).

    Returns:
      o: [B, n, H, K], dtype of q; 0 for an empty sequence.

    Raises:
      ValueError, NotImplementedError: as in `jagged_attention`.
    """
    _check_kind("kind", kind, ("silu", "softmax"))
    starts, lengths = layout(offsets, lengths, k.shape[0], max_len)
    if q.ndim == 3:
        q = jnp.broadcast_to(q, (starts.shape[0], *q.shape))
    if q.ndim != 4:
        raise ValueError(f"seed_attention needs q of shape [n, H, K] or [B, n, H, K], got {q.shape}.")
    _per_sequence("q", q, starts.shape[0])
    _check_heads(q, k, v)
    scale = q.shape[-1] ** -0.5 if scale is None else float(scale)
    if q.size == 0 or k.shape[0] == 0:
        return jnp.zeros_like(q)
    request = Request(q.dtype, q.shape[-1], scale, max(max_len, q.shape[1]))
    run = _backend("seed_attention", request, implementation)
    return run(q, k, v, starts, lengths, max_len=max_len, kind=kind, scale=scale)


def seed_attention_pair(
    q: Array,
    kv: Array,
    offsets: Array | np.ndarray,
    lengths: Array | np.ndarray | None = None,
    *,
    max_len: int,
    scale: float | None = None,
    implementation: str | None = None,
) -> Array:
    """`seed_attention` (softmax) with keys and values in one array, as one product with the weights gives them.

    Args:
      q: [B, n, H, K] seeds.
      kv: [T, 2, Hkv, K], keys and values of each row.
      offsets, lengths, max_len, scale, implementation: as in `seed_attention`.

    Returns:
      o: [B, n, H, K].

    Raises:
      ValueError, NotImplementedError: as in `jagged_attention`.
    """
    if kv.ndim != 4 or kv.shape[1] != 2 or q.ndim != 4:
        raise ValueError(f"seed_attention_pair needs q [B, n, H, K] and kv [T, 2, Hkv, K], got {q.shape}, {kv.shape}.")
    scale = q.shape[-1] ** -0.5 if scale is None else float(scale)
    request = Request(q.dtype, q.shape[-1], scale, max(max_len, q.shape[1]))
    chosen = dispatch.choose("seed_attention", backends.BACKENDS, request, implementation)
    if chosen.name != "triton_short" or q.size == 0 or kv.shape[0] == 0:
        k, v = kv[:, 0], kv[:, 1]
        return seed_attention(q, k, v, offsets, lengths, max_len=max_len, scale=scale, implementation=chosen.name)
    starts, lengths = layout(offsets, lengths, kv.shape[0], max_len)
    _per_sequence("q", q, starts.shape[0])
    _check_heads(q, kv[:, 0], kv[:, 1])
    run = chosen.load().seed_attention_pair
    rows = kv.reshape(kv.shape[0], -1, kv.shape[-1])
    return run(q, rows, starts, lengths, max_len=max_len, kind="softmax", scale=scale)


def _backend(operation: str, request: Request, implementation: str | None):
    """The function of the backend that runs this call."""
    chosen = dispatch.choose(operation, backends.BACKENDS, request, implementation)
    return getattr(chosen.load(), operation)


def _check_kind(name, value, allowed):
    if value not in allowed:
        raise ValueError(f"{name} must be one of {allowed}, got {value!r}.")


def _check_dtypes(q, k, v):
    if not (q.dtype == k.dtype == v.dtype) or not jnp.issubdtype(q.dtype, jnp.floating):
        raise ValueError(
            f"q, k and v must share one floating dtype, got {q.dtype}, {k.dtype}, {v.dtype}; cast them before the call."
        )


def _check_self(q, k, v):
    if q.ndim != 3 or k.ndim != 3 or q.shape[0] != k.shape[0]:
        raise ValueError(f"q must be [T, H, K] and k, v [T, Hkv, K] with one T, got q {q.shape}, k {k.shape}.")
    _check_heads(q, k, v)


def _check_heads(q, k, v):
    heads, size = q.shape[-2:]
    if k.shape != v.shape or k.ndim != 3 or k.shape[2] != size or heads % k.shape[1]:
        raise ValueError(
            f"k and v must be [T, Hkv, K] with q's K and an Hkv that divides q's H, got q {q.shape}, "
            f"k {k.shape}, v {v.shape}."
        )
    _check_dtypes(q, k, v)


def _check_bias(bias, num_rows, max_len):
    if bias.position.shape != (2 * max_len - 1,):
        raise ValueError(
            f"bias.position must have 2 * max_len - 1 = {2 * max_len - 1} entries, got shape {bias.position.shape}."
        )
    if bias.timestamps.shape != (num_rows,):
        raise ValueError(
            f"bias.timestamps must have one entry a packed row ({num_rows}), got shape {bias.timestamps.shape}."
        )


def _per_sequence(name, value, batch):
    value = jnp.asarray(value)
    if value.shape[:1] != (batch,):
        raise ValueError(f"{name} must have one entry a sequence (offsets say {batch}), got shape {value.shape}.")
    return value


def _targets(num_targets, lengths):
    """int32 [B] in [0, lengths]: values are traced, so one outside means the nearest inside, in every backend."""
    num_targets = _per_sequence("num_targets", num_targets, lengths.shape[0]).astype(jnp.int32)
    return jnp.clip(num_targets, 0, lengths)


def layout(offsets, lengths, num_rows, max_len):
    """Checked (starts, lengths), int32 [B]; values are checked only where they are concrete."""
    if offsets.ndim != 1 or offsets.shape[0] < 1 or not jnp.issubdtype(offsets.dtype, jnp.integer):
        raise ValueError(
            f"offsets must be an integer vector of B + 1 >= 1 entries, got {offsets.dtype}{list(offsets.shape)}."
        )
    if max_len < 1:
        raise ValueError(f"max_len must be at least 1, got {max_len}.")
    if not isinstance(offsets, Tracer) and not isinstance(lengths, Tracer):
        offsets_np = np.asarray(offsets)
        _check_values(
            offsets_np,
            np.diff(offsets_np) if lengths is None else np.asarray(lengths),
            num_rows,
            max_len,
        )
    offsets = jnp.asarray(offsets, jnp.int32)
    lengths = jnp.diff(offsets) if lengths is None else jnp.asarray(lengths, jnp.int32)
    return offsets[:-1], _per_sequence("lengths", lengths, offsets.shape[0] - 1)


def _check_values(offsets, lengths, num_rows, max_len):
    starts = offsets[:-1]
    if lengths.shape != starts.shape:
        raise ValueError(f"lengths must have one entry a sequence ({starts.shape[0]}), got shape {lengths.shape}.")
    if (starts % ROW_ALIGNMENT).any():
        raise ValueError(
            f"every sequence must start at a multiple of {ROW_ALIGNMENT} rows, but sequence "
            f"{int(np.argmax(starts % ROW_ALIGNMENT > 0))} does not; pad each sequence to a multiple "
            f"of {ROW_ALIGNMENT} rows and pass its true length in `lengths`."
        )
    if (lengths < 0).any() or (lengths > np.diff(offsets)).any() or offsets[0] < 0:
        raise ValueError(
            "offsets must ascend from at least 0 and each length must fit between two of them, got "
            f"offsets {offsets.tolist()[:9]}... and lengths {lengths.tolist()[:8]}..."
        )
    if offsets[-1] > num_rows:
        raise ValueError(f"offsets end at row {offsets[-1]}, but the arrays have {num_rows} rows.")
    if lengths.max(initial=0) > max_len:
        raise ValueError(f"a sequence has {lengths.max()} tokens, more than max_len={max_len}.")

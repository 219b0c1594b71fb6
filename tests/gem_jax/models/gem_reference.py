"""GEM in float64 NumPy, one example at a time, written from the docstrings' equations; only weights come from the modules.

A history is an array [l, D], oldest first; the streams of an example are its histories, one per module.
"""

import numpy as np

from tests.gem_jax.models.test_blocks import fmb
from tests.gem_jax.nn import numpy_reference as ref
from tests.gem_jax.nn.numpy_reference import f64

SECONDS_SCALE = 17.27  # log(1 + a year)


def spans(source):
    """The rows of each example's history in a packed source."""
    return [slice(o, o + n) for o, n in zip(source.offsets[:-1], source.lengths, strict=True)]


def shorten(level, history):
    """The newest `recent` events, then means of `pool` at a time, counted from the newest."""
    if level.recent is not None:
        history = history[max(len(history) - level.recent, 0) :]
    means = [history[max(end - level.pool, 0) : end].mean(axis=0) for end in range(len(history), 0, -level.pool)]
    return np.array(means[::-1]).reshape(len(means), history.shape[1])


def likeness(events, candidates):
    """sqrt(D) cos(event, candidate) for each pair of columns: [l, P]."""
    columns = []
    for event, candidate in zip(events, candidates, strict=True):
        columns.append(np.sqrt(event.shape[1]) * cosine(event, candidate))
    return np.stack(columns, axis=1)


def cosine(a, b):
    """With the norms' epsilon, 1e-5 of a mean square, so that an absent id's zeros give 0."""
    return ref.rms_norm(a) @ ref.rms_norm(b) / a.shape[1]


def encode(encoder, events, age_s, extra):
    """The source's rows: attributes, age on a log scale with 8 waves, likeness; projected."""
    age = np.log1p(age_s.astype(np.float64))[:, None] / SECONDS_SCALE
    waves = np.pi * age * np.arange(1, 9)
    x = np.concatenate([*events, age, np.cos(waves), np.sin(waves), extra], axis=1)
    return ref.mlp(encoder.project, x)


def pyramid(module, schema, pairs, batch, embedded):
    """Streams of each example; `pairs`: source -> (event attribute, candidate feature)."""
    streams = [[] for _ in batch.domain]
    for sequence in schema.sequences if module.levels else ():
        source = batch.sequences[sequence.name]
        for b, span in enumerate(spans(source)):
            attribute = {name: f64(rows)[span] for name, rows in embedded.events[sequence.name].items()}
            extra = likeness(
                [attribute[event] for event, _ in pairs[sequence.name]],
                [f64(embedded.features[feature])[b] for _, feature in pairs[sequence.name]],
            )
            events = [attribute[a.name] for a in sequence.attributes]
            history = encode(module.encoders[sequence.name], events, source.age_s[span], extra)
            streams[b] += [shorten(level, history) for level in module.levels]
    return streams


def grouped(layer, i, x):
    y = x @ f64(layer.weight)[i]
    return y if layer.bias is None else y + f64(layer.bias)[i]


def gated(layer, i, x):
    return x * ref.sigmoid(grouped(layer, i, x))


def history_summary(module, x_sum, streams):
    """Gate([targets | seeds | recent]) of every module: [M s, D]."""
    num_heads = x_sum.shape[1] // module.head_dim
    tokens = []
    for i, history in enumerate(streams):
        normed = ref.layer_norm(history)
        queries = grouped(module.query, i, np.concatenate([ref.layer_norm(x_sum), f64(module.seeds)[i, 0]]))
        pooled = np.zeros_like(queries)
        if len(history):
            q, k, v = (ref.heads(x, num_heads) for x in (queries, *np.split(grouped(module.kv, i, normed), 2, axis=1)))
            pooled = ref.attention(q, k, v, lambda s: ref.softmax(s / np.sqrt(module.head_dim)))
        newest = np.zeros((module.num_recent, x_sum.shape[1]))
        count = min(module.num_recent, len(history))
        newest[module.num_recent - count :] = normed[len(history) - count :]
        tokens.append(gated(module.gate, i, np.concatenate([grouped(module.out, i, pooled), newest])))
    return np.concatenate(tokens)


def personalised(module, i, x_sum, history):
    """P = RMSNorm(q + silu(q K^T / sqrt(K)) V), q = LN(S); RMSNorm(q) where nothing personalises."""
    q = ref.layer_norm(history)
    out = np.zeros_like(q)
    for h in range(q.shape[1] // module.head_dim if x_sum is not None else 0):
        span = slice(h * module.head_dim, (h + 1) * module.head_dim)
        k, v = (f64(w)[i, :, h].T @ x_sum[:, span] for w in (module.w1, module.w2))
        out[:, span] = ref.silu(q[:, span] @ k.T / np.sqrt(module.head_dim)) @ v
    return ref.rms_norm(q + out)


def sequence_layer(module, x_sum, streams, *, longest, window=None):
    """S' = W2 (LN(A V) * U) + P of every module; `longest`: the upper bound of all modules' lengths."""
    results = []
    for i, history in enumerate(streams):
        if not len(history):
            results.append(history)
            continue
        p = personalised(module, i, x_sum, history)
        u, v, q, k = np.split(ref.silu(grouped(module.uvqk, i, ref.layer_norm(p))), 4, axis=1)
        seen = ref.causal(len(p))
        if window is not None:
            seen &= ~np.tril(np.ones_like(seen), -window)

        def weights(scores, seen=seen):
            return np.where(seen, ref.silu(scores / np.sqrt(module.head_dim)), 0) / longest

        attended = ref.attention(*(ref.heads(x, x.shape[1] // module.head_dim) for x in (q, k, v)), weights)
        results.append(grouped(module.out, i, ref.layer_norm(attended) * u) + p)
    return results


def cross_layer(module, states):
    """Each token's last state and what it takes of its earlier ones; states oldest first: [n, D]."""
    size = module.head_dim
    x = np.stack(states[:-1])
    q, k = (
        ref.linear(module.query, ref.rms_norm(states[-1], module.norm)),
        ref.linear(module.key, ref.rms_norm(x, module.norm)),
    )
    mixed = np.array(states[-1])
    for token in range(x.shape[1]):
        for h in range(module.num_heads):
            span = slice(h * size, (h + 1) * size)
            scores = k[:, token, span] @ q[token, span] / np.sqrt(size)
            mixed[token, span] += (f64(module.static)[h] + f64(module.attended)[h] * ref.silu(scores)) @ x[
                :, token, span
            ]
    return mixed


def compress(layer, x):
    return f64(layer.weight).T @ x


def cross(module, x, streams):
    """X_sum and S_sum."""
    x_sum = compress(module.features.compress, x)
    x_sum = x_sum * ref.sigmoid(ref.linear(module.features.gate.linear, x_sum))
    return x_sum, history_summary(module.histories, x_sum, streams)


def gem_layer(module, states, streams, **options):
    """The next tokens and streams."""
    both = states[-1]
    x_sum = None
    if module.cross is not None:
        x_sum, s_sum = cross(module.cross, both, streams)
        both = np.concatenate([both, s_sum])
    if module.sequences is not None:
        streams = sequence_layer(module.sequences, x_sum, streams, **options)
    residual = states[-1] if module.residual is None else cross_layer(module.residual, states)
    mixed = np.concatenate([fmb(module.fmb, both), compress(module.lcb, both)])
    return ref.layer_norm(mixed + residual, module.norm), streams


def heads(module, features, domain):
    if not hasattr(module, "domain_gate"):
        return ref.mlp(module.mlp, features)
    hidden = ref.relu(ref.linear(module.shared, features))
    weight = f64(module.readout) * 2 * ref.sigmoid(f64(module.domain_gate)[domain])
    return weight @ hidden + f64(module.domain_bias)[domain]


def gem(model, schema, pairs, batch, embedded, **options):
    """Logits [B, N]."""
    streams = pyramid(model.pyramid, schema, pairs, batch, embedded)
    logits = []
    for b in range(len(batch.domain)):
        tokens = [f64(embedded.features[f.name])[b] for f in schema.categoricals]
        tokens.append(ref.mlp(model.tokens.dense, f64(batch.dense)[b]))
        for vector in schema.vectors:
            tokens.append(ref.linear(model.tokens.vector_linears[vector.name], f64(batch.vectors[vector.name])[b]))
        states = [ref.layer_norm(compress(model.compress, np.stack(tokens)), model.norm)]
        own = streams[b]
        for layer in model.layers:
            x, own = gem_layer(layer, states, own, **options)
            states.append(x)
        last = states[-1]
        if model.last is not None:
            last = np.concatenate([last, cross(model.last, last, own)[1]])
        logits.append(heads(model.heads, last.reshape(-1), batch.domain[b]))
    return np.array(logits)

"""The pyramid of parallel sequence modules: every source of events at several time scales, side by side.

Meta describes GEM's sequence side as a "pyramid-parallel structure, stacking multiple parallel interaction modules in a pyramid
formation" (engineering.fb.com, November 2025) without a formula. This is our reading, after LLaTTE's pyramidal reduction (arXiv
2601.20083) and Wukong's appendix F: the base level sees every event one by one; each level above sees the same history shorter,
either coarser (means of `pool` consecutive events) or only its newest end (`recent` events). A module is one source at one level.
All modules run in parallel with weights of their own, and all feed the summaries that cross over to the features.

Parallel is meant literally: the modules' rows lie in one packed array, as M x B histories, so that a layer is one attention
call, one grouped product per projection and one norm, whatever the number of modules.

Shape letters: M modules, B examples, R packed rows of all modules, D width, m tokens of X_sum, s tokens of one module's S_sum,
H heads, K head dim, J keys of the personalisation.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from gem_jax.data.batch import START_ALIGNMENT, Batch
from gem_jax.data.schema import Schema
from gem_jax.embedding.tables import Embedded
from gem_jax.errors import UserError
from gem_jax.nn.attention import head_dim
from gem_jax.nn.candidate import Likeness
from gem_jax.nn.dense import GroupedDense, cast_weight
from gem_jax.nn.dropout import dropout
from gem_jax.nn.events import EventEncoder
from gem_jax.nn.initializers import normal
from gem_jax.nn.jagged import Layout, pool, recent, round_up, take_recent
from gem_jax.nn.norms import LayerNorm
from gem_jax.nn.parameters import Names, joined, numbered, parameter
from gem_jax.precision import tags
from gem_jax.precision.policy import Policy
from pallas_kernels.fused_rows import mixed_keys, row_norm, sum_norms
from pallas_kernels.jagged_attention import Mask, gated_attention, gdpa, seed_attention_pair

MAX_BLOCK = 2048
"""Rows of a block of a module's rows at most."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Level:
    """One level of the pyramid: how it shortens every source's history."""

    recent: int | None = None
    """Keep only this many newest events; None keeps all."""
    pool: int = 1
    """Then average groups of this many consecutive events into one row."""

    def __post_init__(self):
        for name in ("recent", "pool"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"a pyramid level has {name}={value}; it must be at least 1")

    def shorten(self, x: Float[Array, "T D"], layout: Layout) -> tuple[Float[Array, "R D"], Layout]:
        """The level's rows and their layout."""
        if self.recent is not None and self.recent < layout.max_len:
            x, layout = take_recent(x, layout, self.recent)
        return pool(x, layout, self.pool) if self.pool > 1 else (x, layout)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Streams:
    """The events of all modules: M x B histories in one packed array.

    Attributes:
      rows: [R, D].
      layout: of the M x B histories, module by module.
      row_counts: packed rows of each module, static, adding up to R; multiples of one block (`_block`).
    """

    rows: Array
    layout: Layout
    row_counts: tuple[int, ...] = dataclasses.field(metadata={"static": True})

    @classmethod
    def of(cls, modules: list[tuple[Array, Layout]]) -> "Streams":
        """Several modules' rows with their layouts, joined."""
        counts = [len(rows) for rows, _ in modules]
        block = _block(min(counts))
        row_counts = tuple(round_up(count, block) for count in counts)
        total = sum(row_counts)
        offsets, start = [], 0
        for (_, layout), count in zip(modules, row_counts, strict=True):
            offsets.append(layout.offsets[:-1] + start)
            start += count
        layout = Layout.make(
            jnp.concatenate([*offsets, jnp.full(1, total, jnp.int32)]),
            jnp.concatenate([layout.lengths for _, layout in modules]),
            total,
            max(layout.max_len for _, layout in modules),
        )
        rows = [jnp.pad(x, ((0, count - len(x)), (0, 0))) for (x, _), count in zip(modules, row_counts, strict=True)]
        return cls(rows=jnp.concatenate(rows), layout=layout, row_counts=row_counts)


def _block(rows: int) -> int:
    """Of how many rows a module's should be a multiple, so that products of all modules run as one (`grouped_product`): few enough
    to pad the smallest module by an eighth at most, many enough that copies of the weights are little beside the rows."""
    return min(MAX_BLOCK, max(START_ALIGNMENT, 2 ** int(math.log2(max(rows // 8, 1)))))


def normed_rows(streams: Streams, policy: Policy) -> Float[Array, "R D"]:
    """LN(S) without scale and bias, which personalisation and summary both read; 0 in padding rows, whatever they held."""
    return checkpoint_name(row_norm(policy.cast(streams.rows), streams.layout.row_mask()), tags.NORM)


class Pyramid(nnx.Module):
    """Encodes every source's events and lays out the modules' streams.

    Attributes:
      modules: names of the M modules: each source at each level.
    """

    def __init__(
        self,
        schema: Schema,
        levels: tuple[Level, ...],
        width: int,
        *,
        likeness: bool = True,
        policy: Policy,
        rngs: nnx.Rngs,
    ):
        sources = schema.sequences if levels else ()
        self.levels = levels
        self.max_lens = {s.name: s.max_len for s in sources}
        source_names = tuple(f"sequence/{s.name}" for s in sources)
        self.modules = joined(source_names, numbered("level", len(levels)))
        self.likeness = nnx.Dict({s.name: Likeness(s, schema, width, used=likeness) for s in sources})
        self.encoders = nnx.Dict(
            {
                s.name: EventEncoder(s, width, width, extra=self.likeness[s.name].names, policy=policy, rngs=rngs)
                for s in sources
            }
        )

    def __call__(self, batch: Batch, embedded: Embedded) -> Streams:
        """The streams before the first layer."""
        modules = []
        for source, max_len in self.max_lens.items():
            layout = Layout.of(batch.sequences[source], max_len)
            events = embedded.events[source]
            likeness = self.likeness[source](events, embedded.features, layout)
            rows = self.encoders[source](batch.sequences[source], events, layout, likeness)
            modules += [level.shorten(rows, layout) for level in self.levels]
        return Streams.of(modules)


class SequenceLayer(nnx.Module):
    """One layer of all modules: events personalised by X_sum, then attention among them.

    Personalisation is Kunlun's GDPA form of InterFormer's PFFN (arXiv 2602.10016): P = RMSNorm(q + silu(q K^T / sqrt(K)) V) with
    q = LN(S), and K, V mixed from X_sum. Attention is the HSTU block (arXiv 2402.17152) without its additive bias, which GPU
    kernels cannot carry (events carry their age instead): S' = W2 (LN(A V) * U) + P with U, V, Q, K = silu(W1 LN(P)) and
    A = silu(Q K^T / sqrt(K)) / n, causal, n the upper bound of all modules' lengths.

    Args:
      width: D.
      num_summary: m; 0 for events that are not personalised: P = RMSNorm(q).
      num_heads: H.
      modules: names of the M modules.
      window: newest rows that each row attends to, itself included; None for all earlier ones.
      dropout_rate: before the last projection.
      policy: of the computation.
      rngs: initialises the weights.
    """

    def __init__(
        self,
        width: int,
        num_summary: int,
        num_heads: int,
        modules: Names,
        *,
        window: int | None,
        dropout_rate: float,
        policy: Policy,
        rngs: nnx.Rngs,
    ):
        self.head_dim = head_dim(width, num_heads)
        self.mask = Mask(causal=True, window=window)
        self.dropout_rate = dropout_rate
        self.policy = policy
        self.personalises = num_summary > 0
        num_keys = 2 * num_summary
        shape, axes = (len(modules), num_summary, num_heads, num_keys), (modules, None, None, None)
        if self.personalises:
            self.w1 = parameter(normal(num_summary**-0.5), shape, rngs, decay=True, axes=axes)
            self.w2 = parameter(normal((num_summary * num_keys) ** -0.5), shape, rngs, decay=True, axes=axes)
        self.uvqk = GroupedDense(modules, width, 4 * width, policy=policy, rngs=rngs)
        self.out = GroupedDense(modules, width, width, use_bias=True, policy=policy, rngs=rngs)

    def __call__(self, x_sum: Float[Array, "B m D"] | None, streams: Streams, key: jax.Array | None) -> Streams:
        """The next streams; `x_sum` is None where events are not personalised."""
        with jax.named_scope("sequence/gdpa"):
            personal, normed = self._personalise(x_sum, streams)
        with jax.named_scope("sequence/attention"):
            return dataclasses.replace(streams, rows=self._attend(personal, normed, streams, key))

    def _personalise(
        self, x_sum: Float[Array, "B m D"] | None, streams: Streams
    ) -> tuple[Float[Array, "R D"], Float[Array, "R D"]]:
        """P and LN(P)."""
        layout = streams.layout
        q = normed_rows(streams, self.policy)
        if x_sum is None:
            return sum_norms(q, jnp.zeros_like(q), layout.row_mask())
        heads = self.policy.cast(x_sum).reshape(*x_sum.shape[:2], -1, self.head_dim)
        k, v = mixed_keys(heads, cast_weight(self.w1, self.policy), cast_weight(self.w2, self.policy))
        k, v = (checkpoint_name(x, tags.PROJECTION) for x in (k, v))
        personal = gdpa(self._heads(q), k, v, layout.offsets, layout.lengths, max_len=layout.max_len, activation="silu")
        personal = checkpoint_name(personal, tags.ATTENTION).reshape(q.shape)
        personal, normed = sum_norms(q, personal, layout.row_mask())
        return checkpoint_name(personal, tags.NORM), checkpoint_name(normed, tags.NORM)

    def _attend(
        self, x: Float[Array, "R D"], normed: Float[Array, "R D"], streams: Streams, key: jax.Array | None
    ) -> Float[Array, "R D"]:
        layout = streams.layout
        uvqk = self.uvqk.rows(normed, streams.row_counts)
        gated = gated_attention(
            uvqk.reshape(len(x), 4, -1, self.head_dim),
            layout.offsets,
            layout.lengths,
            max_len=layout.max_len,
            mask=self.mask,
        )
        gated = dropout(checkpoint_name(gated, tags.ACTIVATION), self.dropout_rate, key)
        return layout.clear_padding(self.out.rows(gated, streams.row_counts) + x)

    def _heads(self, x: Float[Array, "R D"]) -> Float[Array, "R H K"]:
        return x.reshape(len(x), -1, self.head_dim)


class HistorySummary(nnx.Module):
    """S_sum of every module = Gate([targets | seeds | recent]) (InterFormer, arXiv 2411.09852, Eq 11).

    InterFormer prepends X_sum to the history as CLS tokens; causal kernels would hide the events from them, and they would cost 8
    packed rows a history. Here the tokens of X_sum are queries of the same pooling attention as the learned seeds, which gives
    each a view of the whole history without entering it: the candidate asks the history directly. Keys, values and recent rows are
    those of LN(S), targets those of LN(X_sum); a short history's missing recent rows are 0.

    Args:
      width: D.
      num_summary: m, tokens of X_sum: as many targets.
      num_seeds: learned queries.
      num_recent: newest rows.
      num_heads: H.
      modules: names of the M modules.
      policy: of the computation.
      rngs: initialises the weights.

    Attributes:
      names: of the M * s tokens of all modules together.
    """

    def __init__(
        self,
        width: int,
        num_summary: int,
        num_seeds: int,
        num_recent: int,
        num_heads: int,
        modules: Names,
        *,
        policy: Policy,
        rngs: nnx.Rngs,
    ):
        self.head_dim = head_dim(width, num_heads)
        self.num_recent = num_recent
        self.num_modules = len(modules)
        kinds = (*numbered("target", num_summary), *numbered("seed", num_seeds), *numbered("recent", num_recent))
        self.names = joined(modules, kinds)
        self.policy = policy
        self.norm = LayerNorm(width, affine=False)
        shape = (len(modules), 1, num_seeds, width)
        self.seeds = parameter(normal(1.0), shape, rngs, decay=False, axes=(modules, None, None, None))
        self.query = GroupedDense(modules, width, width, policy=policy, rngs=rngs)
        self.kv = GroupedDense(modules, width, 2 * width, policy=policy, rngs=rngs)
        self.out = GroupedDense(modules, width, width, policy=policy, rngs=rngs)
        self.gate = GroupedDense(modules, width, width, use_bias=True, policy=policy, rngs=rngs)

    def __call__(self, x_sum: Float[Array, "B m D"], streams: Streams) -> Float[Array, "B s D"]:
        """All modules' tokens, module by module; seeds and targets of an empty history are 0."""
        batch, _, width = x_sum.shape
        layout = streams.layout
        x = normed_rows(streams, self.policy)
        kv = self.kv.rows(x, streams.row_counts).reshape(len(x), 2, -1, self.head_dim)
        pooled = seed_attention_pair(
            self._queries(x_sum),
            kv,
            layout.offsets,
            layout.lengths,
            max_len=layout.max_len,
        )
        pooled = checkpoint_name(pooled, tags.ATTENTION)
        pooled = self.out.blocks(pooled.reshape(self.num_modules, batch, -1, width))
        newest, _ = recent(x, layout, self.num_recent)
        newest = newest.reshape(self.num_modules, batch, -1, width)
        tokens = jnp.concatenate([pooled, newest], axis=2)
        tokens = tokens * jax.nn.sigmoid(self.gate.blocks(tokens))  # the gate of nn.gates.Gate, one per module
        tokens = checkpoint_name(tokens, tags.ACTIVATION)
        return tokens.swapaxes(0, 1).reshape(batch, len(self.names), width)

    def _queries(self, x_sum: Float[Array, "B m D"]) -> Float[Array, "_ n H K"]:
        batch, _, width = x_sum.shape
        targets = jnp.broadcast_to(self.policy.cast(self.norm(x_sum)), (self.num_modules, *x_sum.shape))
        seeds = cast_weight(self.seeds, self.policy)
        seeds = jnp.broadcast_to(seeds, (self.num_modules, batch, *seeds.shape[2:]))
        q = self.query.blocks(jnp.concatenate([targets, seeds], axis=2))
        return q.reshape(self.num_modules * batch, -1, width // self.head_dim, self.head_dim)

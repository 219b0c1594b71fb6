"""Operations on packed rows: histories of uneven length that share one array [T, ...] of static size.

Every operation takes rows with a `Layout` and returns rows with the layout they now have. Padding rows may hold
anything on input, NaN included; on output they are 0. Rows move by gathers, forward and backward: on CPU XLA runs a
scatter-add row by row, many times slower than the gather with the inverse index.

Shape letters: B examples, T packed rows, D width, n tokens per example.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from gem_jax.data.batch import START_ALIGNMENT, Events


def round_up(value, multiple: int = START_ALIGNMENT):
    """The next multiple at or above `value` (int or integer array)."""
    return -(-value // multiple) * multiple


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout:
    """Where each example's rows lie: `offsets[b] .. offsets[b] + lengths[b]`, oldest first. Made by `of` or `make`.

    Attributes:
      offsets: int32 [B + 1], starts, multiples of 8.
      lengths: int32 [B].
      example: int32 [T], the example that each row belongs to; B for padding rows.
      position: int32 [T], each row's place in its history: 0 for the oldest event and for padding rows.
      max_len: an upper bound of `lengths`, static; attention needs it.
    """

    offsets: Array
    lengths: Array
    example: Array
    position: Array
    max_len: int = dataclasses.field(metadata={"static": True})

    @classmethod
    def of(cls, events: Events, max_len: int) -> "Layout":
        """The layout of one source of a batch; `max_len` as in the schema's `Sequence`."""
        return cls.make(events.offsets, events.lengths, events.age_s.shape[0], max_len)

    @classmethod
    def make(cls, offsets: Int[Array, " B_and_1"], lengths: Int[Array, " B"], num_rows: int, max_len: int) -> "Layout":
        """The layout of histories that start at `offsets`, multiples of 8, in an array of `num_rows` rows."""
        offsets, lengths = jnp.asarray(offsets), jnp.asarray(lengths)
        # Starts are multiples of 8, so the 8 rows of a group belong to at most one example: search once a group.
        group_starts = START_ALIGNMENT * jnp.arange(-(-num_rows // START_ALIGNMENT), dtype=jnp.int32)
        # Compared with all: one fused reduction. Unrolled bisection was a quarter of a step's instructions, since XLA copies it
        # into each of its consumers, and the default's loop launches its kernels anew for each bisection on a GPU.
        example = jnp.searchsorted(offsets[1:], group_starts, side="right", method="compare_all").astype(jnp.int32)
        example = jnp.repeat(example, START_ALIGNMENT)[:num_rows]  # B after the last history
        position = jnp.arange(num_rows, dtype=jnp.int32) - offsets[example]
        in_history = position < jnp.append(lengths, 0)[example]
        return cls(
            offsets=offsets,
            lengths=lengths,
            example=jnp.where(in_history, example, lengths.shape[0]),
            position=jnp.where(in_history, position, 0),
            max_len=max_len,
        )

    @property
    def num_examples(self) -> int:
        return self.lengths.shape[0]

    @property
    def num_rows(self) -> int:
        return self.example.shape[0]

    def row_mask(self) -> Bool[Array, " T"]:
        """False for padding rows."""
        return self.example < self.num_examples

    def length_of_row(self) -> Int[Array, " T"]:
        """The length of the history that each row belongs to, 0 for padding rows."""
        return jnp.append(self.lengths, 0)[self.example]

    def distance_to_end(self) -> Int[Array, " T"]:
        """How many events of its history are newer than each row; -1 for padding rows."""
        return self.length_of_row() - 1 - self.position

    def clear_padding(self, x: Float[Array, "T ..."]) -> Float[Array, "T ..."]:
        """`x` with zeros in the padding rows."""
        return jnp.where(self.row_mask().reshape(-1, *[1] * (x.ndim - 1)), x, 0)


def tokens_as_rows(tokens: Float[Array, "B n D"]) -> tuple[Float[Array, "R D"], Layout]:
    """n tokens per example as histories of length n: R = B * round_up(n, 8) rows."""
    num_examples, n, width = tokens.shape
    room = round_up(n)
    offsets = room * jnp.arange(num_examples + 1, dtype=jnp.int32)
    layout = Layout.make(offsets, jnp.full(num_examples, n, jnp.int32), num_examples * room, n)
    return jnp.pad(tokens, ((0, 0), (0, room - n), (0, 0))).reshape(-1, width), layout


@jax.custom_vjp
def move_rows(x: Float[Array, "T D"], source: Int[Array, " R"], target: Int[Array, " T"]) -> Float[Array, "R D"]:
    """Row `source[r]` of x for each r, 0 where it is -1; no row of x may be taken twice.

    Args:
      x: rows.
      source: for each output row the input row, or -1.
      target: the inverse: for each input row the output row that takes it, or -1. The gradient is a gather with it.
    """
    return _take(x, source)


def _take(x, index):
    return x.at[index].get(mode="fill", fill_value=0, wrap_negative_indices=False)


move_rows.defvjp(
    lambda x, source, target: (_take(x, source), target),
    lambda target, gradient: (_take(gradient, target), None, None),
)


def _row_of(layout: Layout, example: Int[Array, "..."], position: Int[Array, "..."], keep: Bool[Array, "..."]):
    """Row of `position` in the history of `example`; -1 where `keep` is False."""
    return jnp.where(keep, layout.offsets[jnp.minimum(example, layout.num_examples - 1)] + position, -1)


def prepend(
    x: Float[Array, "T D"], layout: Layout, tokens: Float[Array, "B n D"]
) -> tuple[Float[Array, "R D"], Layout]:
    """Puts n tokens before each history: R = T + B * round_up(n, 8) rows."""
    num_examples, n, width = tokens.shape
    room = round_up(n)
    new = Layout.make(
        layout.offsets + room * jnp.arange(num_examples + 1, dtype=jnp.int32),
        layout.lengths + n,
        layout.num_rows + num_examples * room,
        layout.max_len + n,
    )
    event_target = _row_of(new, layout.example, layout.position + n, layout.row_mask())
    token_target = (new.offsets[:-1, None] + jnp.arange(n, dtype=jnp.int32)).reshape(-1)

    source = _row_of(layout, new.example, new.position - n, new.row_mask())
    is_token = new.row_mask() & (new.position < n)
    source = jnp.where(is_token, layout.num_rows + new.example * n + new.position, source)

    rows = jnp.concatenate([x, tokens.astype(x.dtype).reshape(-1, width)])
    return move_rows(rows, source, jnp.concatenate([event_target, token_target])), new


def first(x: Float[Array, "T D"], layout: Layout, n: int) -> Float[Array, "B n D"]:
    """The n oldest rows of each history (the tokens that `prepend` put there), zeros where there are fewer."""
    slot = jnp.arange(n, dtype=jnp.int32)
    source = jnp.where(slot < layout.lengths[:, None], layout.offsets[:-1, None] + slot, -1)
    target = _slot_of_row(layout, layout.position, n)
    return move_rows(x, source.reshape(-1), target).reshape(-1, n, x.shape[-1])


def recent(
    x: Float[Array, "T D"], layout: Layout, n: int, *, skip: int = 0
) -> tuple[Float[Array, "B n D"], Bool[Array, "B n"]]:
    """The n newest rows of each history, the newest in the last slot; zeros in the slots that a short history leaves.

    Args:
      x: packed rows.
      layout: theirs.
      n: slots.
      skip: how many rows at the start of each history are not events (tokens that `prepend` put there).

    Returns:
      rows, and which slots are filled.
    """
    slot = jnp.arange(n, dtype=jnp.int32)
    position = layout.lengths[:, None] - n + slot
    filled = position >= skip
    source = jnp.where(filled, layout.offsets[:-1, None] + position, -1)
    slot_of_row = n - 1 - layout.distance_to_end()
    target = _slot_of_row(layout, jnp.where(layout.position >= skip, slot_of_row, -1), n)
    return move_rows(x, source.reshape(-1), target).reshape(-1, n, x.shape[-1]), filled


def _slot_of_row(layout: Layout, slot: Int[Array, " T"], n: int) -> Int[Array, " T"]:
    return jnp.where(layout.row_mask() & (slot >= 0) & (slot < n), layout.example * n + slot, -1)


def _pack_lengths(lengths: Int[Array, " B"], max_rows: int, max_len: int) -> Layout:
    """The tightest layout of `lengths`, which the caller knows to need at most `max_rows` rows."""
    ends = jnp.cumsum(round_up(lengths), dtype=jnp.int32)
    return Layout.make(jnp.concatenate([jnp.zeros(1, jnp.int32), ends]), lengths, max_rows, max_len)


def take_recent(x: Float[Array, "T D"], layout: Layout, n: int) -> tuple[Float[Array, "R D"], Layout]:
    """Keeps the newest n events of each history: R = min(T, B * round_up(n, 8)) rows."""
    lengths = jnp.minimum(layout.lengths, n)
    new = _pack_lengths(lengths, min(layout.num_rows, layout.num_examples * round_up(n)), min(layout.max_len, n))
    dropped = jnp.append(layout.lengths - lengths, 0)
    source = _row_of(layout, new.example, new.position + dropped[new.example], new.row_mask())
    position = layout.position - dropped[layout.example]
    target = _row_of(new, layout.example, position, layout.row_mask() & (position >= 0))
    return move_rows(x, source, target), new


def pooled_rows(num_examples: int, num_rows: int, max_len: int, stride: int) -> int:
    """Rows that `pool` allots, enough for any lengths: a history of r packed rows needs at most 8 + (r - 8) / stride."""
    num_histories = min(num_examples, num_rows // START_ALIGNMENT)
    spare = num_rows - num_histories * START_ALIGNMENT
    by_longest = num_examples * round_up(-(-max_len // stride))
    return min(by_longest, num_histories * START_ALIGNMENT + round_up(-(-spare // stride)))


def pool(x: Float[Array, "T D"], layout: Layout, stride: int) -> tuple[Float[Array, "R D"], Layout]:
    """Means over groups of `stride` consecutive events, counted from the newest, so the oldest group may be partial."""
    max_len = -(-layout.max_len // stride)
    num_rows = pooled_rows(layout.num_examples, layout.num_rows, layout.max_len, stride)
    new = _pack_lengths(-(-layout.lengths // stride), num_rows, max_len)

    newest = jnp.append(layout.lengths, 0)[new.example] - 1 - stride * new.distance_to_end()  # of each group
    position = newest[:, None] - jnp.arange(stride, dtype=jnp.int32)
    source = _row_of(layout, new.example[:, None], position, new.row_mask()[:, None] & (position >= 0))

    newer = layout.distance_to_end()
    group = jnp.append(new.lengths, 0)[layout.example] - 1 - newer // stride
    target = _row_of(new, layout.example, group, layout.row_mask())
    target = jnp.where(target >= 0, target * stride + newer % stride, -1)

    members = move_rows(x, source.reshape(-1), target).reshape(num_rows, stride, x.shape[-1])
    count = jnp.maximum((source >= 0).sum(axis=1), 1).astype(x.dtype)
    return members.sum(axis=1) / count[:, None], new


def rows_of_examples(x: Float[Array, "B D"], layout: Layout) -> Float[Array, "T D"]:
    """Each example's vector at every row of its history.

    The gradient sums groups of 8 rows, which never straddle examples, before it scatters them: 8 times fewer updates.
    """
    groups = _take(x, _example_of_group(layout, outside=-1))
    rows = jnp.repeat(groups, START_ALIGNMENT, axis=0, total_repeat_length=len(groups) * START_ALIGNMENT)
    return layout.clear_padding(rows[: layout.num_rows])


def _example_of_group(layout: Layout, outside: int) -> Int[Array, " G"]:
    """The example of each 8 rows; `outside` where there is none."""
    example = layout.example[::START_ALIGNMENT]
    return jnp.where(example < layout.num_examples, example, outside)


def history_sum(x: Float[Array, "T D"], layout: Layout) -> Float[Array, "B D"]:
    """The sum of each history's rows, 0 for an empty one; float32 inside."""
    x32 = layout.clear_padding(x).astype(jnp.float32)
    x32 = jnp.pad(x32, ((0, -layout.num_rows % START_ALIGNMENT), (0, 0)))
    groups = x32.reshape(-1, START_ALIGNMENT, x.shape[-1]).sum(axis=1)
    sums = jax.ops.segment_sum(groups, _example_of_group(layout, layout.num_examples), layout.num_examples + 1)
    return sums[:-1].astype(x.dtype)


def history_mean(x: Float[Array, "T D"], layout: Layout) -> Float[Array, "B D"]:
    """The mean of each history's rows, 0 for an empty one."""
    count = jnp.maximum(layout.lengths, 1).astype(x.dtype)
    return history_sum(x, layout) / count[:, None]


def merge(
    xs: list[Float[Array, "_ D"]], layouts: list[Layout], ages: list[Int[Array, " _"]]
) -> tuple[Float[Array, "R D"], Layout, Int[Array, " R"]]:
    """Several sources as one history in order of time; of events of one age, those of the earlier source come first.

    Args:
      xs: packed rows of each source.
      layouts: theirs.
      ages: int32, age of each row's event in seconds, larger = older.

    Returns:
      rows [sum of all T, D], their layout, and the age of each row (0 in padding rows).
    """
    num_examples = layouts[0].num_examples
    new = Layout.make(
        jnp.stack([layout.offsets for layout in layouts]).sum(axis=0),
        jnp.stack([layout.lengths for layout in layouts]).sum(axis=0),
        sum(layout.num_rows for layout in layouts),
        sum(layout.max_len for layout in layouts),
    )
    example = jnp.concatenate([layout.example for layout in layouts])
    age = jnp.concatenate(ages)
    order = jnp.lexsort((-age, example)).astype(jnp.int32)  # stable; padding rows come last
    rank = jnp.zeros_like(order).at[order].set(jnp.arange(new.num_rows, dtype=jnp.int32), unique_indices=True)

    first_rank = jnp.append(0, jnp.cumsum(new.lengths, dtype=jnp.int32))
    target = _row_of(new, example, rank - first_rank[example], example < num_examples)
    place = jnp.where(new.row_mask(), first_rank[new.example] + new.position, 0)
    source = jnp.where(new.row_mask(), order[place], -1)
    return move_rows(jnp.concatenate(xs), source, target), new, _take(age, source)

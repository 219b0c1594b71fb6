"""The Triton kernels of embedding tables: pooled and plain gathers, and the update of the rows that sorted ids touch.

The update walks tiles of T sorted lookups, one tile a warp. A run is the lookups of one row. A run inside a tile updates its
row at once; what a tile holds of a longer run is left in `part` (slot 2 t of the run that comes from before tile t, 2 t + 1 of
the one that begins in it and goes on). `fold` adds the parts of each group of tiles that lies whole inside a run (into its
first tile's slot 2 t + 1, which is free), and `join` adds what is left of a long run and updates its row. There is no list of
runs, and no gradient of all lookups.

Sums are exact, so they depend on no order: float64 `high` starts at HIGH = 1.5 2^32, where its numbers are 2^-20 apart, so that
adding a gradient rounds it to a multiple of 2^-20; what that leaves is known exactly and is added in float64 `low`, all
multiples of 2^-52 (gradients below 2^-29 are rounded to multiples of 2^-51 first). No other addition rounds while the gradients
of a row are below 2^31 over their number, and that is at most 2^21; beyond, sums are rounded as float64's are. One rounding to
float32 ends a sum.

Shape letters: R lookups, V rows, D columns, N rows of gradients.
"""

import triton
import triton.language as tl

HIGH = tl.constexpr(1.5 * 2**32)
TINY = tl.constexpr(2.0**-29)
BESIDE_TINY = tl.constexpr(1.5 * 2**-28)  # where float32 numbers are 2^-51 apart


@triton.jit
def gather(rows, ids, out, R: tl.constexpr, V: tl.constexpr, D: tl.constexpr, WIDE: tl.constexpr, ROWS: tl.constexpr):
    """out [R, D]: the rows of the ids, zeros for ids outside the table."""
    d, at = tl.arange(0, WIDE), tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    key = tl.load(ids + at, mask=at < R, other=-1)
    here = ((key >= 0) & (key < V))[:, None] & (d < D)[None, :]
    values = tl.load(rows + key.to(tl.int64)[:, None] * D + d[None, :], mask=here, other=0.0)
    tl.store(
        out + at.to(tl.int64)[:, None] * D + d[None, :],
        values.to(out.dtype.element_ty),
        mask=(at < R)[:, None] & (d < D)[None, :],
    )


@triton.jit
def pool(
    rows,
    ids,
    out,
    V: tl.constexpr,
    BAG: tl.constexpr,
    MEAN: tl.constexpr,
    D: tl.constexpr,
    WIDE: tl.constexpr,
    ROWS: tl.constexpr,
):
    """out [B, D]: sums, or means over the ids that are not negative, of a bag's rows; one program a bag."""
    bag = tl.program_id(0).to(tl.int64)
    d, item = tl.arange(0, WIDE), tl.arange(0, ROWS)
    total = tl.zeros((ROWS, WIDE), tl.float32)
    count = tl.zeros((ROWS,), tl.int32)
    for start in range(0, BAG, ROWS):
        key = tl.load(ids + bag * BAG + start + item, mask=start + item < BAG, other=-1)
        here = ((key >= 0) & (key < V))[:, None] & (d < D)[None, :]
        total += tl.load(rows + key.to(tl.int64)[:, None] * D + d[None, :], mask=here, other=0.0).to(tl.float32)
        count += (key >= 0).to(tl.int32)
    result = tl.sum(total, 0)
    if MEAN:
        result = result / tl.maximum(tl.sum(count, 0), 1).to(tl.float32)
    tl.store(out + bag * D + d, result.to(out.dtype.element_ty), mask=d < D)


@triton.jit
def _key(keys, at, R):
    """The row of a sorted lookup; -1 outside."""
    return tl.load(keys + at, mask=(at >= 0) & (at < R), other=-1)


@triton.jit
def _gradient(grads, sources, at, key, V, d, D: tl.constexpr):
    """float32 [WIDE] of a sorted lookup; zeros, and nothing read, for what is outside the table."""
    ok = (key >= 0) & (key < V)
    source = tl.load(sources + at, mask=ok, other=0).to(tl.int64)
    return tl.load(grads + source * D + d, mask=ok & (d < D), other=0.0).to(tl.float32)


@triton.jit
def _row(state, key, here, d, D: tl.constexpr):
    """Numbers [WIDE] of a row in the state's dtype."""
    at = state + key.to(tl.int64) * D + d
    return tl.load(
        at, mask=here & (d < D), other=0.0, eviction_policy="evict_first"
    )  # read once; gradients may stay in cache


@triton.jit
def _put(state, key, d, values, D: tl.constexpr):
    tl.store(state + key.to(tl.int64) * D + d, values, mask=d < D, eviction_policy="evict_first")


@triton.jit
def _old(slot, key, here, d, PER_ROW: tl.constexpr, PER_NUMBER: tl.constexpr, D: tl.constexpr):
    """A slot of a row: one number, or [WIDE]; zero where the rule has none."""
    if PER_ROW:
        return tl.load(slot + key, mask=here, other=0.0)
    elif PER_NUMBER:
        return _row(slot, key, here, d, D)
    else:
        return 0.0


@triton.jit
def _add(high, low, g):
    """The exact sums with a float32 gradient added."""
    g = tl.where(tl.abs(g) < TINY, (g + BESIDE_TINY) - BESIDE_TINY, g)
    wide = g.to(tl.float64)
    more = high + wide
    return more, low + (wide - (more - high))


@triton.jit
def _mix(x):
    """A bijection of 32 bits that looks random: xor-shifts and multiplications."""
    x = (x ^ (x >> 16)) * 0x7FEB352D
    x = (x ^ (x >> 15)) * 0x846CA68B
    return x ^ (x >> 16)


@triton.jit
def _rounded(values, key, d, seed, ROUND: tl.constexpr):
    """bfloat16 up or down at random, right on average, by a counter of (seed, row, column); or float32 as it is."""
    if ROUND:
        row = _mix(key.to(tl.uint32) ^ seed.to(tl.uint32))
        noise = _mix(row + d.to(tl.uint32)) & 0xFFFF
        bits = (values.to(tl.uint32, bitcast=True) + noise) & 0xFFFF0000
        return bits.to(tl.float32, bitcast=True).to(tl.bfloat16)
    else:
        return values


@triton.jit
def _learn(
    w_out, a_out, b_out, key, g, w, a, b, d, scalars, seed,
    RULE: tl.constexpr, L2: tl.constexpr, GROUPS: tl.constexpr, BETA1: tl.constexpr, BETA2: tl.constexpr,
    EPS: tl.constexpr, ROUND: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    """Writes a row and its slots after a step on its summed gradient; `w`, `a`, `b` are the old ones."""
    rate = tl.load(scalars)
    w = w.to(tl.float32)
    if L2 != 0.0:
        g += L2 * w
    if RULE == "rowwise_adagrad":
        a += tl.sum(g * g, 0) / D
        w -= rate * (g / (tl.sqrt_rn(a / GROUPS) + EPS))
        tl.store(a_out + key, a)
    elif RULE == "adam":
        a = BETA1 * a + (1.0 - BETA1) * g
        b = BETA2 * b + (1.0 - BETA2) * g * g
        w -= rate * (a * tl.load(scalars + 1) / (tl.sqrt(b * tl.load(scalars + 2)) + EPS))
        _put(a_out, key, d, a, D)
        _put(b_out, key, d, b, D)
    else:
        w -= rate * g
    _put(w_out, key, d, _rounded(w, key, d, seed, ROUND), D)


@triton.jit
def _leave(part, slot, d, high, low, D: tl.constexpr):
    """Writes the partial sums of a slot; `high` less HIGH."""
    at = part.to(tl.pointer_type(tl.float64)) + slot.to(tl.int64) * (2 * D) + d
    tl.store(at, high, mask=d < D)
    tl.store(at + D, low, mask=d < D)


@triton.jit
def walk(
    w, a, b, grads, keys, sources, scalars, seed, w_out, a_out, b_out, part,
    R: tl.constexpr, V: tl.constexpr, TILE: tl.constexpr, RULE: tl.constexpr, L2: tl.constexpr, GROUPS: tl.constexpr,
    BETA1: tl.constexpr, BETA2: tl.constexpr, EPS: tl.constexpr, ROUND: tl.constexpr, D: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """A tile of TILE sorted lookups: runs inside it update their row, parts of the others go to `part`.

    Four lookups at a time: all that they read is asked for before anything is written, so that the reads wait together.
    """
    PER_ROW: tl.constexpr = RULE == "rowwise_adagrad"
    PER_NUMBER: tl.constexpr = RULE == "adam"
    d = tl.arange(0, WIDE)
    tile = tl.program_id(0)
    first = tile * TILE
    noise = tl.load(seed)
    key = _key(keys, first, R)
    begins = _key(keys, first - 1, R) != key
    is_open = (begins == 0) & (key >= 0)  # the run comes from the tile before
    high, low = tl.full((WIDE,), HIGH, tl.float64), tl.zeros((WIDE,), tl.float64)
    # What is dropped comes last: a tile that begins with it has nothing to do.
    for start in range(0, tl.where((key >= 0) & (key < V), TILE, 0), 4):
        at = first + start
        k0, k1, k2, k3 = key, _key(keys, at + 1, R), _key(keys, at + 2, R), _key(keys, at + 3, R)
        k4 = _key(keys, at + 4, R)
        g0, g1 = _gradient(grads, sources, at, k0, V, d, D), _gradient(grads, sources, at + 1, k1, V, d, D)
        g2, g3 = _gradient(grads, sources, at + 2, k2, V, d, D), _gradient(grads, sources, at + 3, k3, V, d, D)
        e0, e1 = (k0 != k1) & (k0 >= 0) & (k0 < V), (k1 != k2) & (k1 >= 0) & (k1 < V)
        e2, e3 = (k2 != k3) & (k2 >= 0) & (k2 < V), (k3 != k4) & (k3 >= 0) & (k3 < V)
        o0 = is_open
        o1 = o0 & (e0 == 0)
        o2 = o1 & (e1 == 0)
        o3 = o2 & (e2 == 0)
        f0, f1, f2, f3 = e0 & (o0 == 0), e1 & (o1 == 0), e2 & (o2 == 0), e3 & (o3 == 0)
        w0, w1, w2, w3 = _row(w, k0, f0, d, D), _row(w, k1, f1, d, D), _row(w, k2, f2, d, D), _row(w, k3, f3, d, D)
        a0, a1 = _old(a, k0, f0, d, PER_ROW, PER_NUMBER, D), _old(a, k1, f1, d, PER_ROW, PER_NUMBER, D)
        a2, a3 = _old(a, k2, f2, d, PER_ROW, PER_NUMBER, D), _old(a, k3, f3, d, PER_ROW, PER_NUMBER, D)
        b0, b1 = _old(b, k0, f0, d, False, PER_NUMBER, D), _old(b, k1, f1, d, False, PER_NUMBER, D)
        b2, b3 = _old(b, k2, f2, d, False, PER_NUMBER, D), _old(b, k3, f3, d, False, PER_NUMBER, D)
        high, low = _step(
            high, low, k0, g0, begins, e0, o0, w0, a0, b0, tile, d, part, w_out, a_out, b_out, scalars, noise,
            RULE, L2, GROUPS, BETA1, BETA2, EPS, ROUND, D,
        )  # fmt: skip
        high, low = _step(
            high, low, k1, g1, k0 != k1, e1, o1, w1, a1, b1, tile, d, part, w_out, a_out, b_out, scalars, noise,
            RULE, L2, GROUPS, BETA1, BETA2, EPS, ROUND, D,
        )  # fmt: skip
        high, low = _step(
            high, low, k2, g2, k1 != k2, e2, o2, w2, a2, b2, tile, d, part, w_out, a_out, b_out, scalars, noise,
            RULE, L2, GROUPS, BETA1, BETA2, EPS, ROUND, D,
        )  # fmt: skip
        high, low = _step(
            high, low, k3, g3, k2 != k3, e3, o3, w3, a3, b3, tile, d, part, w_out, a_out, b_out, scalars, noise,
            RULE, L2, GROUPS, BETA1, BETA2, EPS, ROUND, D,
        )  # fmt: skip
        is_open = o3 & (e3 == 0)
        begins = k3 != k4
        key = k4
    if (_key(keys, first + TILE - 1, R) == key) & (key >= 0) & (key < V):
        _leave(part, 2 * tile + (is_open == 0).to(tl.int32), d, high - HIGH, low, D)


@triton.jit
def _step(
    high, low, key, g, begins, ends, is_open, w, a, b, tile, d, part, w_out, a_out, b_out, scalars, noise,
    RULE: tl.constexpr, L2: tl.constexpr, GROUPS: tl.constexpr, BETA1: tl.constexpr, BETA2: tl.constexpr,
    EPS: tl.constexpr, ROUND: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    """One lookup: adds its gradient, and where its run ends, updates or leaves a part."""
    high, low = _add(high, low, g)
    if ends:
        if is_open:
            _leave(part, 2 * tile, d, high - HIGH, low, D)
        else:
            total = ((high - HIGH) + low).to(tl.float32)
            _learn(
                w_out, a_out, b_out, key, total, w, a, b, d, scalars, noise,
                RULE, L2, GROUPS, BETA1, BETA2, EPS, ROUND, D,
            )  # fmt: skip
        high, low = tl.full(high.shape, HIGH, tl.float64), tl.zeros_like(low)
    return high, low


@triton.jit
def _parts(high, low, part, slot, here, d, D: tl.constexpr):
    """Sums [ROWS, WIDE] with those of some slots [ROWS] added."""
    at = (part.to(tl.pointer_type(tl.float64)) + slot.to(tl.int64) * (2 * D))[:, None] + d[None, :]
    mask = here[:, None] & (d < D)[None, :]
    return high + tl.load(at, mask=mask, other=0.0), low + tl.load(at + D, mask=mask, other=0.0)


@triton.jit
def fold(
    keys, part, part_out, R: tl.constexpr, V: tl.constexpr, TILE: tl.constexpr, GROUP: tl.constexpr, D: tl.constexpr,
    WIDE: tl.constexpr,
):  # fmt: skip
    """The parts of a group of GROUP tiles, added, if it lies whole inside a run; in place."""
    first = tl.program_id(0) * GROUP
    key = _key(keys, first * TILE, R)
    whole = (_key(keys, first * TILE - 1, R) == key) & (_key(keys, (first + GROUP) * TILE - 1, R) == key)
    if whole & (key >= 0) & (key < V):
        d, t = tl.arange(0, WIDE), tl.arange(0, GROUP)
        zeros = tl.zeros((GROUP, WIDE), tl.float64)
        high, low = _parts(zeros, zeros, part, 2 * (first + t), t >= 0, d, D)
        _leave(part_out, 2 * first + 1, d, tl.sum(high, 0), tl.sum(low, 0), D)


@triton.jit
def join(
    w, a, b, keys, part, scalars, seed, w_out, a_out, b_out,
    R: tl.constexpr, V: tl.constexpr, TILE: tl.constexpr, GROUP: tl.constexpr, RULE: tl.constexpr, L2: tl.constexpr,
    GROUPS: tl.constexpr, BETA1: tl.constexpr, BETA2: tl.constexpr, EPS: tl.constexpr, ROUND: tl.constexpr, D: tl.constexpr,
    WIDE: tl.constexpr,
):  # fmt: skip
    """The run that begins in a tile and goes on after it, if there is one: adds its parts, and updates its row."""
    PER_ROW: tl.constexpr = RULE == "rowwise_adagrad"
    PER_NUMBER: tl.constexpr = RULE == "adam"
    tile = tl.program_id(0)
    key = _key(keys, tile * TILE + TILE - 1, R)
    begins = _key(keys, tile * TILE - 1, R) != key
    if begins & (key >= 0) & (key < V) & (_key(keys, tile * TILE + TILE, R) == key):
        d, t = tl.arange(0, WIDE), tl.arange(0, GROUP)
        group = tile // GROUP + 1
        # The tiles up to the next group, this one's own part among them.
        other = tile + t
        here = (other < group * GROUP) & ((t == 0) | (_key(keys, other * TILE, R) == key))
        zeros = tl.zeros((GROUP, WIDE), tl.float64)
        high, low = _parts(zeros, zeros, part, 2 * other + (t == 0).to(tl.int32), here, d, D)
        if _key(keys, group * GROUP * TILE, R) == key:
            # Groups inside the run, then the tiles of the group in which it ends.
            found = GROUP
            while found == GROUP:
                whole = _key(keys, (group + t + 1) * GROUP * TILE - 1, R) == key
                high, low = _parts(high, low, part, 2 * (group + t) * GROUP + 1, whole, d, D)
                found = tl.sum(whole.to(tl.int32), 0)
                group += found
            other = group * GROUP + t
            high, low = _parts(high, low, part, 2 * other, _key(keys, other * TILE, R) == key, d, D)
        g = (tl.sum(high, 0) + tl.sum(low, 0)).to(tl.float32)
        _learn(
            w_out, a_out, b_out, key, g, _row(w, key, True, d, D), _old(a, key, True, d, PER_ROW, PER_NUMBER, D),
            _old(b, key, True, d, False, PER_NUMBER, D), d, scalars, tl.load(seed), RULE, L2, GROUPS, BETA1, BETA2, EPS, ROUND, D,
        )  # fmt: skip

"""The stream on tape: lives of users, simulated when they are asked for, and the order in time of their impressions.

A seat's users follow each other, one a generation. Seats are cut into blocks; a block's generation is a pure function of
(config, block, generation), simulated whole. Lives lie in flat arrays, a generation in each of a few `shelves`: the events
of a life are neighbours, and where they lie follows from the seat alone.

Shape letters: n impressions, U seats.
"""

import dataclasses

import numpy as np

from gem_jax.data.synthetic import clock
from gem_jax.data.synthetic.clock import LIFE_SLABS, SLAB_S
from gem_jax.data.synthetic.inventory import Inventory
from gem_jax.data.synthetic.laws import Laws
from gem_jax.data.synthetic.people import People
from gem_jax.data.synthetic.simulate import Lives, simulate

BLOCK_SEATS = 4096
"""Seats that are simulated together; fewer with more organic events."""
SHELF_BYTES = 2**30
"""Generations are kept up to this size, the two that any slab needs in any case."""
ORDERED = 2**24
"""Impressions whose order in time is kept."""

_IMPRESSION_COLUMNS = {
    "time_s": "i4", "ad": "i4", "due": "i4", "before": "i4", "surface": "u1", "click": "f4", "oracle": "f4", "convert": "f4",
}  # fmt: skip
_ORGANIC_COLUMNS = {
    "time_s": "i4", "topic": "u1", "action": "u1", "style": "u1", "response": "u1", "surface": "u1",
}  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Place:
    """Where impressions lie on the tape.

    Attributes:
      user: int64 [n].
      began_s: int64 [n], when the user's life began.
      turn: int64 [n], impressions of the user before it.
      impression: int64 [n], its place in the flat columns of impressions; those of the user before it lie just before.
      organic: int64 [n], place of the user's first organic event.
    """

    user: np.ndarray
    began_s: np.ndarray
    turn: np.ndarray
    impression: np.ndarray
    organic: np.ndarray


def joined(places: list[Place], order: np.ndarray) -> Place:
    """Places one after the other, taken in this order, int64 [n]."""
    fields = [field.name for field in dataclasses.fields(Place)]
    return Place(**{name: np.concatenate([getattr(place, name) for place in places])[order] for name in fields})


class Tape:
    """All impressions and organic events of a stream, by place.

    Attributes:
      impressions, organic: column -> flat array; see `simulate.Lives`. Good for the slabs asked for last.

    Args:
      seed: of the stream.
      seats: users at any time.
      intensity: multiplies organic events.
      slabs: of the stream.
      world: the laws.
      ads: the ads.
    """

    def __init__(self, *, seed: int, seats: int, intensity: int, slabs: int, world: Laws, ads: Inventory):
        self._seed, self._seats, self._intensity, self._world, self._ads = seed, seats, intensity, world, ads
        seat = np.arange(seats)
        self._tier, self._phase = clock.tier(seat), clock.phase(seat, seats)
        self._impressions = (clock.IMPRESSIONS * LIFE_SLABS)[self._tier]
        organic = (clock.ORGANIC * LIFE_SLABS * intensity)[self._tier]
        self._first_impression = np.cumsum(self._impressions) - self._impressions
        self._first_organic = np.cumsum(organic) - organic
        self._shelf = int(self._impressions.sum()), int(organic.sum())
        self._slab_size = clock.slab_size(seats)
        self._block = max(BLOCK_SEATS // intensity, 256)
        self._shelves = self._count_shelves(1 + (slabs - 1) // LIFE_SLABS)
        self._holds = np.full((self._shelves, -(-seats // self._block)), -1)
        self._slab_order: dict[int, np.ndarray] = {}
        seat_of = np.repeat(seat, clock.IMPRESSIONS[self._tier])
        self._slab_seat = seat_of.astype(np.int32)
        size = self._slab_size
        first = np.cumsum(clock.IMPRESSIONS[self._tier]) - clock.IMPRESSIONS[self._tier]
        self._slab_turn = (np.arange(size) - first[seat_of]).astype(np.int32)
        self.impressions = _columns(_IMPRESSION_COLUMNS, self._shelves * self._shelf[0])
        self.organic = _columns(_ORGANIC_COLUMNS, self._shelves * self._shelf[1])

    def _count_shelves(self, generations: int) -> int:
        bytes_ = sum(
            size * sum(np.dtype(dtype).itemsize for dtype in columns.values())
            for size, columns in zip(self._shelf, (_IMPRESSION_COLUMNS, _ORGANIC_COLUMNS), strict=True)
        )
        return min(max(2, SHELF_BYTES // bytes_), generations)

    def runs(self, slab: np.ndarray) -> list[np.ndarray]:
        """Cuts ascending slabs into pieces whose lives fit on the shelves together."""
        pieces, first = [], 0
        for k in range(1, len(slab)):
            if int(slab[k]) // LIFE_SLABS - int(slab[first] - LIFE_SLABS + 1) // LIFE_SLABS >= self._shelves:
                pieces.append(slab[first:k])
                first = k
        return [*pieces, slab[first:]]

    def locate(self, slab: int, position: np.ndarray) -> Place:
        """The impressions at these positions in the order of time of a slab; makes the lives they belong to if need be.

        Args:
          slab: at least `FIRST_SLAB`.
          position: int64 [n].
        """
        self._make(slab)
        entry = self._order(slab)[position]
        return self._place(slab, self._slab_seat[entry].astype(np.int64), self._slab_turn[entry])

    def _place(self, slab: int, seat: np.ndarray, turn_in_slab: np.ndarray) -> Place:
        generation, lived = np.divmod(slab - self._phase[seat], LIFE_SLABS)
        turn = lived * clock.IMPRESSIONS[self._tier[seat]] + turn_in_slab
        shelf = generation % self._shelves
        return Place(
            user=generation * self._seats + seat,
            began_s=(slab - lived) * SLAB_S,
            turn=turn,
            impression=shelf * self._shelf[0] + self._first_impression[seat] + turn,
            organic=shelf * self._shelf[1] + self._first_organic[seat],
        )

    def _order(self, slab: int) -> np.ndarray:
        """Entries of a slab (seat by seat, turn by turn) in order of time, int32."""
        if slab not in self._slab_order:
            while self._slab_order and (len(self._slab_order) + 1) * self._slab_size > ORDERED:
                del self._slab_order[next(iter(self._slab_order))]
            place = self._place(slab, self._slab_seat.astype(np.int64), self._slab_turn)
            time = place.began_s + self.impressions["time_s"][place.impression]
            self._slab_order[slab] = np.argsort(time, kind="stable").astype(np.int32)
        return self._slab_order[slab]

    def _make(self, slab: int) -> None:
        """Simulates the lives of a slab that are not there."""
        for block in range(self._holds.shape[1]):
            first, last = block * self._block, min((block + 1) * self._block, self._seats) - 1
            for generation in {int(slab - self._phase[seat]) // LIFE_SLABS for seat in (first, last)}:
                if self._holds[generation % self._shelves, block] != generation:
                    self._simulate(block, generation)

    def _simulate(self, block: int, generation: int) -> None:
        seats = np.arange(block * self._block, min((block + 1) * self._block, self._seats))
        shelf = generation % self._shelves
        for tier in range(len(clock.IMPRESSIONS)):
            seat = seats[self._tier[seats] == tier]
            if len(seat):
                rng = np.random.default_rng((self._seed, 9, generation, block, tier))
                users = People(self._seed, generation * self._seats + seat)
                began_s = (generation * LIFE_SLABS + self._phase[seat]) * SLAB_S
                lives = simulate(rng, self._world, self._ads, users, began_s, tier, self._intensity)
                self._put(shelf, seat, lives)
        self._holds[shelf, block] = generation

    def _put(self, shelf: int, seat: np.ndarray, lives: Lives) -> None:
        columns = lives.impressions | {"before": np.broadcast_to(lives.before, lives.impressions["ad"].shape)}
        _scatter(self.impressions, shelf * self._shelf[0] + self._first_impression[seat], columns)
        _scatter(self.organic, shelf * self._shelf[1] + self._first_organic[seat], lives.organic)


def _columns(kinds: dict[str, str], size: int) -> dict[str, np.ndarray]:
    return {name: np.empty(size, dtype) for name, dtype in kinds.items()}


def _scatter(flat: dict[str, np.ndarray], first: np.ndarray, columns: dict[str, np.ndarray]) -> None:
    at = first[:, None] + np.arange(columns["time_s"].shape[1])
    for name, values in columns.items():
        flat[name][at] = values

"""Processes in step: every process sees the same turns, whatever its own batches; played here by threads."""

import dataclasses
import threading

import numpy as np
import pytest

from gem_jax.data.source import DataError
from gem_jax.parallel import lockstep, processes


@dataclasses.dataclass
class Columns:
    num_examples: int


def batches_of(sizes):
    return iter([(f"batch {n}", Columns(size)) for n, size in enumerate(sizes)])


def alone(sizes, **options):
    return lockstep.Lockstep(batches_of(sizes), lambda: ("empty", Columns(0)), options.get("flags", ()))


def test_alone_it_gives_the_batches_in_turn():
    turns = list(alone([5, 3, 4, 1]))
    assert [turn.batch for turn in turns] == ["batch 0", "batch 1", "batch 2", "batch 3"]
    assert [turn.num_examples for turn in turns] == [5, 3, 4, 1]
    assert list(alone([])) == [] and len(list(alone([2]))) == 1


def test_alone_a_flag_is_seen_at_once():
    raised = []
    turns = iter(alone([1] * 6, flags=(lambda: bool(raised), lambda: False)))
    assert next(turns).flags == (False, False)
    raised.append(1)
    assert next(turns).flags == (True, False)


def failing(sizes, error):
    """Batches of these sizes, and then an exception."""
    yield from batches_of(sizes)
    raise error


def test_alone_a_failure_ends_the_batches_and_is_kept():
    steps = lockstep.Lockstep(
        failing([5, 3, 4], OSError("gone")), lambda: ("empty", Columns(0)), (lambda: steps.has_failed(),)
    )
    turns = iter(steps)
    seen = [next(turns).flags[0]]
    steps.check()
    seen += [turn.flags[0] for turn in turns]
    assert seen == [False, True, True], (
        "seen as soon as it is met, two batches ahead; those before it are given all the same"
    )
    with pytest.raises(OSError, match="gone"):
        steps.check()


def test_a_failure_of_one_stops_all_at_the_same_turn(monkeypatch):
    errors = [[], []]

    def attempt(index, steps):
        try:
            steps.check()
        except Exception as error:
            errors[index].append(error)

    seen = play(
        monkeypatch, ([1] * 9, [1] * 9), lambda step: (lambda: False,), only=0, fail_after=(None, 4), at_end=attempt
    )
    flags = [[turn.flags[0] for turn in turns] for turns in seen]
    assert flags[0] == flags[1] and flags[0].index(True) == 4, "met while turn 2 was made, and known two turns later"
    assert isinstance(errors[1][0], OSError) and isinstance(errors[0][0], DataError)


class Job:
    """Threads that stand for processes: gathers are barriers, and a step's sums arrive when all have taken it."""

    def __init__(self, count: int):
        self.count, self.barrier, self.shared = count, threading.Barrier(count), {}
        self.local = threading.local()

    def exchange(self, key, value):
        self.shared.setdefault(key, {})[self.local.index] = value
        self.barrier.wait()
        return np.stack([self.shared[key][i] for i in range(self.count)])

    def gather(self, values):
        count = self.local.gathers = getattr(self.local, "gathers", 0) + 1
        return self.exchange(f"gather {count}", values)

    def run(self, index, sizes, flags, seen, fail_after=None, at_end=lambda index, steps: None):
        self.local.index = index
        batches = batches_of(sizes) if fail_after is None else failing(sizes[:fail_after], OSError("gone"))
        own = flags(number_of(seen))
        if fail_after is not None:
            own = (lambda: steps.has_failed(),)
        steps = lockstep.Lockstep(batches, lambda: ("empty", Columns(0)), own)
        for number, turn in enumerate(steps):
            seen.append(turn)
            turn.sums = self.exchange(f"step {number}", turn.signals).sum(axis=0)
        at_end(index, steps)


def number_of(seen):
    return lambda: len(seen)


@pytest.mark.parametrize("sizes", [([4, 4, 4], [5]), ([1], [2, 2, 2, 2, 2]), ([3, 3], [3, 3]), ([1], []), ([], [])])
def test_several_go_on_until_the_last_is_done(monkeypatch, sizes):
    seen = play(monkeypatch, sizes, lambda step: ())
    length = max(map(len, sizes))
    totals = [sum(s[k] if k < len(s) else 0 for s in sizes) for k in range(length)]
    for own, turns in zip(sizes, seen, strict=True):
        assert [turn.num_examples for turn in turns] == totals
        assert [turn.batch for turn in turns] == [f"batch {k}" if k < len(own) else "empty" for k in range(length)]


def test_a_flag_of_one_is_seen_by_all_at_the_same_turn(monkeypatch):
    seen = play(monkeypatch, ([1] * 9, [1] * 9), lambda step: (lambda: step() >= 3,), only=1)
    flags = [[turn.flags[0] for turn in turns] for turns in seen]
    assert flags[0] == flags[1] == [False] * 5 + [True] * 4  # raised for turn 3, known two turns later


def play(monkeypatch, sizes, flags, only: int | None = None, fail_after=None, at_end=lambda index, steps: None):
    """Each process's turns."""
    job = Job(len(sizes))
    monkeypatch.setattr(processes, "gather", job.gather)
    monkeypatch.setattr(lockstep.jax, "process_count", lambda: len(sizes))
    seen = [[] for _ in sizes]
    quiet = lambda step: tuple(lambda: False for _ in flags(step))  # noqa: E731
    threads = [
        threading.Thread(
            target=job.run,
            args=(
                i,
                own,
                flags if only in (None, i) else quiet,
                seen[i],
                fail_after[i] if fail_after else None,
                at_end,
            ),
            daemon=True,
        )
        for i, own in enumerate(sizes)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=20)
        assert not thread.is_alive()
    return seen

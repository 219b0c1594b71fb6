"""How far a run is, and how it is told to stop."""

import contextlib
import dataclasses
import os
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
"""What asks a run to save and stop: Ctrl-C, `kill` and schedulers, a lost terminal, a scheduler's warning before its time limit."""

REPEAT_S = 2.0
"""Signals within this time after the first belong to it: a terminal and a scheduler may both send one, and one to a whole group
of processes arrives twice."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Best:
    """The best evaluation of a run so far.

    Attributes:
      metric: the scalar that says so, e.g. valid/ne/click.
      value: of that scalar.
      examples: trained on by then.
      step: taken by then.
    """

    metric: str
    value: float
    examples: int
    step: int


@dataclasses.dataclass(kw_only=True)
class Progress:
    """What a run counts; kept in its checkpoints.

    Attributes:
      step: optimizer steps taken.
      examples: trained on, of all processes.
      position: examples of this process's stream that are behind it.
      truncated: source -> events dropped because a history was longer than its max_len, of this process.
      seconds: of training, start-up left out.
      timed_examples: trained on in those seconds.
      best: the best evaluation; None before the first, or where none is sought.
      stale_evaluations: evaluations since then, which were no better.
    """

    step: int = 0
    examples: int = 0
    position: int = 0
    truncated: dict[str, int] = dataclasses.field(default_factory=dict)
    seconds: float = 0.0
    timed_examples: int = 0
    best: Best | None = None
    stale_evaluations: int = 0

    @classmethod
    def of(cls, counts: dict[str, Any]) -> "Progress":
        """The inverse of `dataclasses.asdict`."""
        best = counts.get("best")
        return cls(**counts | {"best": None if best is None else Best(**best)})

    def advance(self, num_examples: int, position: int, truncated: dict[str, int]) -> None:
        """Counts a step."""
        self.step += 1
        self.examples += num_examples
        self.position = position
        for source, dropped in truncated.items():
            self.truncated[source] = self.truncated.get(source, 0) + dropped

    def count_seconds(self, since: float) -> float:
        """Adds the time since `since`, a value of `time.perf_counter`; returns the time now."""
        now = time.perf_counter()
        self.seconds += now - since
        return now


@contextlib.contextmanager
def interruption() -> Iterator[Callable[[], bool]]:
    """Within it, the first signal of `STOPPING` only sets a flag, so that the loop can save; one more than `REPEAT_S` later stops
    at once (KeyboardInterrupt). An ignored SIGHUP stays so: under nohup, a run outlives its terminal."""
    first: list[float] = []
    terminals = [fd for fd in (1, 2) if os.isatty(fd)]
    nowhere = os.open(os.devnull, os.O_WRONLY)

    def handler(signum, frame):
        for fd in terminals:
            if not os.isatty(fd):  # it was closed: what is still said would raise before all is saved
                os.dup2(nowhere, fd)
        now = time.monotonic()
        if not first:
            first.append(now)
        elif now - first[0] < REPEAT_S:
            with contextlib.suppress(OSError):
                os.write(2, b"saving ...\n")  # print may not be called again within itself
        else:
            signal.default_int_handler(signum, frame)

    previous = {s: signal.getsignal(s) for s in STOPPING}
    if previous[signal.SIGHUP] is signal.SIG_IGN:
        del previous[signal.SIGHUP]
    caught = {
        s: old for s, old in previous.items() if old is not None
    }  # None: another's, which Python cannot give back
    for s in caught:
        signal.signal(s, handler)
    try:
        yield lambda: bool(first)
    finally:
        for s, old in caught.items():
            signal.signal(s, old)
        os.close(nowhere)

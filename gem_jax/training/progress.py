"""How far a run is, and how it is told to stop."""

import dataclasses
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


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
    """

    step: int = 0
    examples: int = 0
    position: int = 0
    truncated: dict[str, int] = dataclasses.field(default_factory=dict)
    seconds: float = 0.0
    timed_examples: int = 0

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


@contextmanager
def interruption() -> Iterator[Callable[[], bool]]:
    """Within it, the first Ctrl-C or SIGTERM only sets a flag, so that the loop can save; a second Ctrl-C stops at once."""
    caught: list[int] = []

    def handler(signum, frame):
        if caught:
            signal.default_int_handler(signum, frame)
        caught.append(signum)

    previous = {s: signal.signal(s, handler) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(caught)
    finally:
        for s, old in previous.items():
            signal.signal(s, old)

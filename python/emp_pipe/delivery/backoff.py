"""How long to wait before trying again: full jitter, so that many senders do not come back at the same moment."""

from __future__ import annotations

from random import Random

_MOST_DOUBLINGS = 32


class Backoff:
    """Waits between 0 and `initial_s * 2**failures`, at most `most_s`."""

    def __init__(self, random: Random, *, initial_s: float, most_s: float) -> None:
        self._random = random
        self._initial_s = initial_s
        self.most_s = max(most_s, initial_s)

    def wait_s(self, failures: int) -> float:
        """Return the wait after so many failures (the first is 1)."""
        bound_s = min(self._initial_s * 2 ** min(max(failures - 1, 0), _MOST_DOUBLINGS), self.most_s)
        return self._random.uniform(0.0, bound_s)

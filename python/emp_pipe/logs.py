"""emp-pipe's own log lines, and the rate limit that keeps a noisy peer from filling the disk with them.

`get_logger("forward/secure")` names the component; formatting (human on a terminal, JSON otherwise) is set up by the command in `cli.py`.
"""

from __future__ import annotations

import logging
import time
from collections import OrderedDict

_MOST_KEYS = 1024


def get_logger(component_id: str) -> logging.Logger:
    """Return the logger of a component."""
    return logging.getLogger(f"emp_pipe.{component_id}")


class RateLimitedLogger:
    """One line per key and interval; the next line of that key says how many were held back. Keys are bounded: the oldest is forgotten."""

    def __init__(self, logger: logging.Logger, interval_s: float = 10.0) -> None:
        self._logger = logger
        self._interval_s = interval_s
        self._keys: OrderedDict[str, tuple[float, int]] = OrderedDict()

    def log(self, level: int, key: str, message: str, *arguments: object, with_stack: bool = False) -> None:
        now = time.monotonic()
        last, held_back = self._keys.get(key, (-self._interval_s, 0))
        if now - last < self._interval_s:
            self._keys[key] = (last, held_back + 1)
            return
        self._keys[key] = (now, 0)
        self._keys.move_to_end(key)
        if len(self._keys) > _MOST_KEYS:
            self._keys.popitem(last=False)
        suffix = f" ({held_back} more like it in the last {now - last:.0f} s)" if held_back else ""
        self._logger.log(level, message + suffix, *arguments, exc_info=with_stack)

    def warning(self, key: str, message: str, *arguments: object) -> None:
        self.log(logging.WARNING, key, message, *arguments)

    def exception(self, key: str, message: str, *arguments: object) -> None:
        """Log the exception that is being handled, with its stack: for what nobody expected."""
        self.log(logging.ERROR, key, message, *arguments, with_stack=True)

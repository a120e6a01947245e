"""Named places at which a chaos test ends this process with SIGKILL, so that a kill lands where it hurts and not where chance puts it.

`EMP_PIPE_FAILPOINT=log.append:7` kills at the seventh pass of `log.append`. Without the variable `hit()` is one comparison. The points are
a closed list, each between two steps whose order is a promise; `tests/chaos/` goes through all of them.
"""

from __future__ import annotations

import os
import signal

POINTS = {
    "log.append": "rows of an append are written and not committed, or it is about to go to Redis",
    "log.commit": "the transaction is committed, or Redis has done it; nobody has been told",
    "delivery.send": "the destination has answered success, the ack is not in the log",
    "derive.commit": "a deriver has given its outputs, nothing of the commit is in the log",
    "derive.committed": "outputs, acks and state are in the log, the deriver has not been told",
    "spool.drained": "Redis has what was spooled, the spool does not know",
    "pipeline.drain": "receivers have stopped, the buffer is being drained",
}


def _armed() -> tuple[str, int]:
    point, _, passes = os.environ.get("EMP_PIPE_FAILPOINT", "").partition(":")
    if point and point not in POINTS:
        raise ValueError(f"EMP_PIPE_FAILPOINT={point}: no such point; there are {', '.join(POINTS)}")
    return point, int(passes or 1)


_point, _passes_left = _armed()


def hit(point: str) -> None:
    """Pass a point; the process ends here when the environment says so."""
    global _passes_left
    if point != _point:
        return
    _passes_left -= 1
    if _passes_left == 0:
        os.kill(os.getpid(), signal.SIGKILL)

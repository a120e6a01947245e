"""SIGHUP before anybody can act on it: remembered from the command's first moment on, for the one who reloads later.

Without this a reload that is asked for while emp-pipe starts would end it. Imports nothing of ours. Not here: the reload (`process.py`).
"""

from __future__ import annotations

import signal
from typing import Any

_came: list[int] = []


def remember() -> None:
    """Note a SIGHUP that comes from now on."""
    signal.signal(signal.SIGHUP, _note)


def came() -> bool:
    """Return whether one has come."""
    return bool(_came)


def _note(number: int, frame: Any) -> None:
    _came.append(number)
    del _came[1:]

"""A plugin that hangs what it is told to at the first batch: the event loop, or the thread that writes the log."""

from __future__ import annotations

import threading
import time
from typing import Any, Literal

from emp_pipe import failpoints
from emp_pipe.component import ComponentConfig, Context


class HangingConfig(ComponentConfig):
    what: Literal["event loop", "log"]


class Hanging:
    CONFIG = HangingConfig

    def __init__(self, id: str, config: HangingConfig, context: Context) -> None:
        self._config = config

    def process(self, batch: Any) -> Any:
        if self._config.what == "event loop":
            time.sleep(3600)
        failpoints.hit = _hang_at_commits
        return batch


def _hang_at_commits(point: str) -> None:
    if point == "log.commit" and threading.current_thread().name == "emp-log-commit":
        time.sleep(3600)

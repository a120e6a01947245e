"""Calls into what may never return: a dead network file system, a driver that hangs. Each has a thread of its own and a time limit.

Such a thread cannot be ended, so it is left behind: it keeps neither the event loop, nor its neighbours, nor the end of the process, and
no second call of its key is begun beside it. What it brings when it returns after all is thrown away. Not here: what is called
(`readings.py` for what is read at an interval).
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import Any, TypeVar

from emp_pipe.clock import Clock
from emp_pipe.logs import get_logger
from emp_pipe.self_metrics import Metrics

_T = TypeVar("_T")


class StillHangs(Exception):
    """A call of this key was begun before and has not returned."""


class HangingCalls:
    """The calls of one component. A key that hangs is said once, and said again when it is back."""

    def __init__(self, component: str, clock: Clock, metrics: Metrics) -> None:
        self._component = component
        self._clock = clock
        self._log = get_logger(component)
        self._under_way: set[str] = set()
        self._hang_since_s: dict[str, float] = {}
        self._hung = metrics.counter(
            "calls_hung",
            unit="calls",
            help="Calls that did not return in time: a dead file system, a driver.",
            labels=["component"],
        ).labels(component)

    @property
    def hanging(self) -> int:
        """How many calls are past their time and have not returned."""
        return len(self._hang_since_s)

    async def call(self, key: str, function: Callable[[], _T], timeout_s: float) -> _T:
        """Return what `function` returns, called in a thread of its own, or raise what it raises.

        Raises TimeoutError when it takes too long, StillHangs (at once) when the last one of its key still does."""
        if key in self._under_way:
            raise StillHangs(key)
        loop = asyncio.get_running_loop()
        returned: asyncio.Future[_T] = loop.create_future()

        def work() -> None:
            result: Any = None
            error: BaseException | None = None
            try:
                result = function()
            except BaseException as raised:  # whatever a driver or a plugin throws belongs to who asked
                error = raised
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(self._returned, key, returned, result, error)

        thread = threading.Thread(target=work, name=f"{self._component}: {key}", daemon=True)
        thread.start()
        self._under_way.add(key)
        await asyncio.wait((returned,), timeout=timeout_s)
        if not returned.done():
            self._hung.inc()
            self._hang_since_s[key] = self._clock.monotonic_s() - timeout_s
            self._log.warning(
                "%s: no answer within %g s; it is left behind and not asked again before it returns, all else goes on",
                key,
                timeout_s,
            )
            returned.cancel()
            raise TimeoutError(f"no answer within {timeout_s:g} s")
        return returned.result()

    def _returned(self, key: str, future: asyncio.Future[Any], result: Any, error: BaseException | None) -> None:
        self._under_way.discard(key)
        since_s = self._hang_since_s.pop(key, None)
        if since_s is not None:
            self._log.info("%s: answers again, after %.0f s", key, self._clock.monotonic_s() - since_s)
        if future.done():
            return
        if error is None:
            future.set_result(result)
        elif isinstance(error, Exception) and not isinstance(error, StopIteration):
            future.set_exception(error)
        else:  # a future takes no StopIteration, and an exit is not a thread's to ask for
            future.set_exception(RuntimeError(f"{type(error).__name__}: {error}"))

"""What the service manager is told, by systemd's protocol: ready, reloading, stopping, and at intervals that this process lives.

One datagram each, to the socket that NOTIFY_SOCKET names; without the variable nothing is told. What cannot be told is said once in the
log, and everything goes on. Not here: when it is told (`process.py`), the unit of systemd (`deploy/`).
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, MutableMapping

from emp_pipe.clock import Clock
from emp_pipe.logs import RateLimitedLogger, get_logger

_PATIENCE_S = 5.0
"""So long the manager may take until it has room for a datagram."""
_log = get_logger("service manager")


class ServiceManager:
    """Takes what was left for this process out of the environment, for what it starts shall not speak in its name."""

    def __init__(self, variables: MutableMapping[str, str], pid: int, clock: Clock) -> None:
        self._clock = clock
        self._address = variables.pop("NOTIFY_SOCKET", "")
        self._said = RateLimitedLogger(_log, interval_s=3600.0)
        self._turn = asyncio.Lock()
        self.watchdog_s = _watchdog_s(variables.pop("WATCHDOG_USEC", ""), variables.pop("WATCHDOG_PID", ""), pid)
        """Within this time it wants to hear that this process lives; 0: it does not."""
        if self._address and not self._address.startswith(("/", "@")):
            _log.warning("NOTIFY_SOCKET=%s is neither a path nor an abstract socket (@…); nothing is told", self._address)
            self._address = ""

    async def tell(self, *assignments: str) -> None:
        """Send one message; those of several callers go in the order of the calls."""
        if not self._address:
            return
        name = f"\0{self._address[1:]}" if self._address.startswith("@") else self._address
        message = "\n".join(" ".join(assignment.splitlines()) for assignment in assignments)
        async with self._turn:
            try:
                with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
                    sock.setblocking(False)
                    sock.connect(name)
                    async with asyncio.timeout(_PATIENCE_S):
                        await asyncio.get_running_loop().sock_sendall(sock, message.encode("utf-8", "replace"))
            except (OSError, ValueError) as error:
                what, detail = assignments[0], str(error) or f"it took nothing for {_PATIENCE_S:g} s"
                self._said.warning("told", "NOTIFY_SOCKET=%s cannot be told %s: %s", self._address, what, detail)

    async def tell_reloading(self) -> None:
        """To be followed by READY=1. The time is what `Type=notify-reload` asks for; others take no notice of it."""
        await self.tell("RELOADING=1", f"MONOTONIC_USEC={int(self._clock.monotonic_s() * 1e6)}")

    async def tell_stopping(self, within_s: float) -> None:
        """A manager that would wait for less gives this process the time that it takes at most."""
        await self.tell("STOPPING=1", f"EXTEND_TIMEOUT_USEC={int(within_s * 1e6)}")

    async def feed_watchdog(self, answers: Callable[[], Awaitable[None]]) -> None:
        """Tell at half of the time that this process lives: each time after `answers` has returned, so never while it does not."""
        while self.watchdog_s:
            await answers()
            await self.tell("WATCHDOG=1")
            await self._clock.sleep(self.watchdog_s / 2)


def _watchdog_s(usec: str, whose: str, pid: int) -> float:
    if not usec or (whose and whose != str(pid)):
        return 0.0
    if not (usec.isascii() and usec.isdecimal() and len(usec) < 20):
        _log.warning("WATCHDOG_USEC=%s is no number of microseconds; no watchdog is fed", usec)
        return 0.0
    return int(usec) / 1e6

"""Turns at receiving: so many messages come at once, and who begins one and does not send it has a turn for long only while nobody waits.

Connections have their turns one after another, however many calls each has: a thousand of one peer's hold up another's by one turn.

A call sends 1 MiB without one (the window of its stream): what is whole by then waits for nobody. The rest of a longer one needs a turn.

Not here: what a call is (`otlp_grpc.py`), what a message may hold (`otlp_intake.py`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Hashable
from typing import Protocol

TURN_S = 5.0
"""How long a message may take to come whole while others wait for a turn: SDKs for Python give up after 10 s in all."""


class Waiting(Protocol):
    """A call whose message is to be read."""

    own_timeout_s: float
    """What it has told of its own time; infinite where it has not."""

    @property
    def connection(self) -> Hashable:
        """Whose call it is."""
        ...

    def has_turn(self) -> None:
        """Its turn has come. May end it."""
        ...

    def timed_out(self) -> None:
        """Its time is over. Must end it."""
        ...


class Turns:
    """`ask` for one; `end` it when the message is whole or will not come, also before it was given."""

    def __init__(self, most: int, timeout_s: float) -> None:
        self._most = most
        self._timeout_s = timeout_s
        self._loop = asyncio.get_running_loop()
        self._waiting: dict[Hashable, dict[Waiting, None]] = {}
        """By connection, the one whose turn is next first; the calls of each in the order in which they came."""
        self._until_s: dict[Waiting, float] = {}
        """Of those who have a turn."""
        self._fair_s: dict[Waiting, float] = {}
        """Until when nobody may take it from them."""
        self._timer: asyncio.TimerHandle | None = None
        self._is_handing_on = False

    @property
    def reading(self) -> int:
        """Messages that are being received."""
        return len(self._until_s)

    @property
    def waiting(self) -> int:
        """Calls that wait for a turn."""
        return sum(len(calls) for calls in self._waiting.values())

    def ask(self, call: Waiting) -> None:
        self._waiting.setdefault(call.connection, {})[call] = None
        if len(self._until_s) >= self._most:
            for other, fair_s in self._fair_s.items():
                self._until_s[other] = min(self._until_s[other], fair_s)
            self._look_again()
        else:
            self._hand_on()

    def end(self, call: Waiting) -> None:
        if self._until_s.pop(call, None) is not None:
            del self._fair_s[call]
            if self._waiting:
                self._hand_on()
        elif calls := self._waiting.get(call.connection):
            calls.pop(call, None)
            if not calls:
                del self._waiting[call.connection]

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _hand_on(self) -> None:
        if self._is_handing_on:  # what a call does with its turn may end it: the loop below goes on with the next
            return
        self._is_handing_on = True
        try:
            while self._waiting and len(self._until_s) < self._most:
                call = self._next()
                now_s = self._loop.time()
                self._fair_s[call] = fair_s = now_s + TURN_S
                until_s = now_s + min(self._timeout_s, call.own_timeout_s)
                self._until_s[call] = until_s = min(until_s, fair_s) if self._waiting else until_s
                if self._timer is None or self._timer.when() > until_s:
                    self._wake_at(until_s)
                call.has_turn()
        finally:
            self._is_handing_on = False

    def _next(self) -> Waiting:
        """Take the first call of the connection that is next, which then comes after all others."""
        connection, calls = next(iter(self._waiting.items()))
        del self._waiting[connection]
        call = next(iter(calls))
        del calls[call]
        if calls:
            self._waiting[connection] = calls
        return call

    def _look_again(self) -> None:
        if self._until_s:
            self._wake_at(min(self._until_s.values()))

    def _wake_at(self, when_s: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_at(when_s, self._expire)

    def _expire(self) -> None:
        self._timer = None
        now_s = self._loop.time()
        for call in [call for call, until_s in self._until_s.items() if until_s <= now_s]:
            if call in self._until_s:
                call.timed_out()
        self._look_again()

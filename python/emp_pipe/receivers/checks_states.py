"""In which state each service was last told to be, and when a look changes it. Kept as JSON in a checkpoint of the log.

A state changes when as many looks as the check asks for agree one after another. Not here: what a look is (`checks_probes.py`).
"""

from __future__ import annotations

import json
from collections.abc import Container, Iterable
from dataclasses import dataclass
from typing import Literal

_FORGOTTEN_AFTER_NS = 86_400 * 1_000_000_000
_MOST_BYTES = 1 << 20
Status = Literal["unknown", "up", "down"]


@dataclass(slots=True)
class State:
    """What a service was last told to be, since when, and how many looks since then say otherwise."""

    status: Status = "unknown"
    since_unix_nano: int = 0
    against: int = 0
    leans: Status = "unknown"
    """What those looks say."""


class States:
    """The states by the checks' names."""

    def __init__(self) -> None:
        self._states: dict[str, State] = {}

    @classmethod
    def of_bytes(cls, text: bytes | None) -> States:
        """Return the states that a checkpoint holds; what cannot be read of it is unknown again, and told when it is seen."""
        states = cls()
        try:
            found = json.loads(text or b"{}") if len(text or b"") <= _MOST_BYTES else {}
        except (ValueError, RecursionError):
            return states
        for name, value in found.items() if isinstance(found, dict) else ():
            if isinstance(value, list) and len(value) == 2 and value[0] in ("up", "down") and isinstance(value[1], int):
                states._states[name] = State(value[0], value[1])
        return states

    def to_bytes(self) -> bytes:
        told = {name: [state.status, state.since_unix_nano] for name, state in self._states.items() if state.status != "unknown"}
        return json.dumps(told, separators=(",", ":")).encode()

    @property
    def names(self) -> Iterable[str]:
        return list(self._states)

    def take(self, name: str, is_up: bool, now_unix_nano: int, down_after: int, up_after: int) -> State | None:
        """Take a look at a service; return the state that it was in when this look changes it, else None."""
        state = self._states.setdefault(name, State())
        seen: Status = "up" if is_up else "down"
        if state.status == seen:
            state.against = 0
            return None
        state.against = state.against + 1 if state.leans == seen else 1
        state.leans = seen
        if state.against < (up_after if is_up else down_after):
            return None
        self._states[name] = State(seen, now_unix_nano)
        return state

    def keep(self, names: Container[str]) -> None:
        """Forget the services that nobody checks any more."""
        self._states = {name: state for name, state in self._states.items() if name in names}

    def forget(self, name: str, now_unix_nano: int) -> bool:
        """Forget a service that has been down for a day; return whether it is forgotten."""
        state = self._states.get(name)
        if state is not None and (state.status != "down" or now_unix_nano - state.since_unix_nano < _FORGOTTEN_AFTER_NS):
            return False
        self._states.pop(name, None)
        return True

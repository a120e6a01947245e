"""An HTTP body whose length is known: the memory that it lands in is had as it comes, each part as large as all before it.

Not here: who grants that memory (`http_connection.py`), a body in chunks (`http_chunks.py`).
"""

from __future__ import annotations

_FIRST_BYTES = 131_072


def first_grant_bytes(content_length: int) -> int:
    """Return how much memory a length gets by being told: a peer that only says how much it has holds no more."""
    return min(content_length, _FIRST_BYTES)


class SizedBody:
    """Collects one body. The parts are joined once, so a large one is copied no more often than if it had had all its room at once."""

    def __init__(self, content_length: int, begin: memoryview) -> None:
        """`begin`: what came with the head; not yet all of it."""
        part = bytearray(max(first_grant_bytes(content_length), len(begin) + 1))
        part[: len(begin)] = begin
        self._parts = [part]
        self._filled_bytes = len(begin)
        self._without_room_bytes = content_length - len(part)

    def room(self) -> memoryview:
        """Return where the next bytes go."""
        return memoryview(self._parts[-1])[self._filled_bytes :]

    def filled(self, size_bytes: int) -> bool:
        """So many have come; return whether there is no room left."""
        self._filled_bytes += size_bytes
        return self._filled_bytes == len(self._parts[-1])

    @property
    def wanted_bytes(self) -> int:
        """What is needed when there is no room left; 0: the body is whole."""
        return min(self._without_room_bytes, sum(map(len, self._parts)))

    def grow(self) -> None:
        """Get the wanted room."""
        wanted_bytes = self.wanted_bytes
        self._without_room_bytes -= wanted_bytes
        self._parts.append(bytearray(wanted_bytes))
        self._filled_bytes = 0

    def body(self) -> bytes:
        return b"".join(self._parts)

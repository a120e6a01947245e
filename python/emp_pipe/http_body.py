"""An HTTP body whose length is known: it lands in the core's memory, of which it is granted more as it comes: each time as much again.

Not here: who grants that memory (`http_connection.py`), a body in chunks (`http_chunks.py`), the memory (`rust/emp-core/src/landing.rs`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from emp_pipe._core import Body, BodyPool

_FIRST_BYTES = 131_072


def first_grant_bytes(content_length: int) -> int:
    """Return how much memory a length gets by being told: a peer that only says how much it has holds no more."""
    return min(content_length, _FIRST_BYTES)


class SizedBody:
    """Collects one body. One of usual size is moved nowhere: it is decoded where it landed."""

    def __init__(self, pool: BodyPool, content_length: int, begin: memoryview) -> None:
        """`begin`: what came with the head; not yet all of it."""
        self._granted_bytes = max(first_grant_bytes(content_length), len(begin) + 1)
        self._ungranted_bytes = content_length - self._granted_bytes
        self.body: Body = pool.begin(begin, self._granted_bytes)

    def room(self) -> memoryview:
        """Return where the next bytes go."""
        return memoryview(self.body)

    def filled(self, size_bytes: int) -> bool:
        """So many have come; return whether there is no room left."""
        return self.body.landed(size_bytes)

    @property
    def wanted_bytes(self) -> int:
        """What is needed when there is no room left; 0: the body is whole."""
        return min(self._ungranted_bytes, self._granted_bytes)

    def grow(self) -> None:
        """Get the wanted room."""
        wanted_bytes = self.wanted_bytes
        self._ungranted_bytes -= wanted_bytes
        self._granted_bytes += wanted_bytes
        self.body.grant(wanted_bytes)

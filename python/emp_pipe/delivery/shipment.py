"""The words of delivery: what is sent in one request, and what becomes of the deliveries in it.

Delivery (from the log) → Ending (what becomes of it) ← Part (its rows in a request) ∈ Piece (a request) ∈ Shipment (until all ended)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from emp_pipe.log.protocol import DeadLetter, Delivery

if TYPE_CHECKING:
    from emp_pipe._core import Block


@dataclass(slots=True)
class Ending:
    """What becomes of a delivery: rows that are neither skipped nor in a dead letter were delivered."""

    delivery: Delivery
    skipped_records: int = 0
    letters: list[DeadLetter] = field(default_factory=list)


@dataclass(slots=True)
class Part:
    """What is to be sent of one delivery."""

    ending: Ending
    block: Block


@dataclass(slots=True)
class Piece:
    """One request: the rows of its parts, or a share of a single part. Its composition and id stay until it has ended or is split."""

    parts: Sequence[Part]
    block: Block
    attempts: int = 0
    time_outs: int = 0
    doubtful_failures: int = 0
    """Failures that may be the data's fault, while other data passed."""
    successes_at_failure: int = -1


@dataclass(slots=True)
class Plan:
    """Deliveries that will go in one request; `opened`: their rows must be looked at."""

    order: int
    deliveries: list[Delivery]
    opened: bool
    size_bytes: int = 0


@dataclass(slots=True)
class Shipment:
    """A plan carried out: `endings` has all of its deliveries, also those of which nothing is left to send (then `piece` may be None)."""

    order: int
    endings: Sequence[Ending]
    piece: Piece | None

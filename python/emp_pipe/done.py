"""What earlier hops have done with rows, so that no later one does it again.

It stands in the headers of blocks, and between two emp-pipes that speak OTLP in one header of the request (over gRPC: metadata):

    emp-pipe-done: decided,red_done

Other servers ignore it. Why whoever may send is believed: `docs/decisions/009-red-metrics.md`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from emp_pipe._core import Block

DONE_HEADER = "emp-pipe-done"
_MOST_CHARACTERS = 256


class Done(NamedTuple):
    """The flags of a block, or of a request's rows: each holds for all of them, or is not set."""

    decided: bool = False
    """Sampling has decided."""
    red_done: bool = False
    """RED metrics have been derived."""
    aggregated: bool = False
    """Metrics have been aggregated."""

    @classmethod
    def of(cls, block: Block) -> Done:
        return cls(block.decided, block.red_done, block.aggregated)

    @classmethod
    def parse(cls, text: str) -> Done:
        """Return what a header says. Words of later versions are ignored, a text that is too long to be ours says nothing."""
        if not text or len(text) > _MOST_CHARACTERS:
            return NOTHING_DONE
        words = {word.strip() for word in text.split(",")}
        return cls(*(name in words for name in cls._fields))

    @property
    def words(self) -> str:
        """The header's value; "" where there is nothing to say."""
        return ",".join(name for name, holds in zip(self._fields, self, strict=True) if holds)


NOTHING_DONE = Done()

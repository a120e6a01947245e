"""Where a dead letter can go back to, and why some cannot: shared by every log and by whoever asks on behalf of an operator.

Rows that were given up as a block go back to the topic they came from, for the destination that gave them up and nobody else: the others
have had them, or their own letters. Bytes that were never rows (a torn entry, a frame) have no way back.
Not here: how a log does it in one transaction (`Log.revive_dead_letters`), what the command says (`cli_dlq.py`).
"""

from __future__ import annotations

from collections.abc import Iterable

from emp_pipe.log.protocol import DeadLetter, GroupSpec, Revival

MAX_INFLATED_BYTES = 256 << 20
"""What the rows of a dead letter may inflate to; blocks of ours have 1 MiB, or one larger record."""


def way_back(id: int, letter: DeadLetter, groups: Iterable[GroupSpec]) -> Revival | str:
    """Return how a letter goes back, or in words why it cannot and what can be done.

    The block gets an id of its own: two letters can be parts of one block under the same id, and a receiver that remembers ids would take
    the second for a repeat of the first."""
    from emp_pipe._core import Block, CoreError

    if not letter.header:
        return f"its bytes were never rows ({letter.reason}): mend the sender and let it send again; `dlq show {id}` has the bytes"
    try:
        block = Block(letter.header, letter.payload)
        block.decode(MAX_INFLATED_BYTES)
    except CoreError as error:
        return f"its rows cannot be read ({error}); `dlq show {id}` has the bytes"
    group = next((spec for spec in groups if spec.name == letter.component), None)
    if group is None:
        return f"there is no destination {letter.component} any more: configure it again under this name, or drop the letter"
    if block.topic not in group.topics:
        return f"{letter.component} does not take {block.topic} any more: change its `only`, or drop the letter"
    return Revival(id, group.name, block.with_block_id(f"{block.block_id}.again-{id}"))

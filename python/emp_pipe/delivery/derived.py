"""What a deriver gave, as it goes into a commit: two of them as one, where the log takes a commit only together with the acks that a later
tick brings; and blocks that it could not take."""

from __future__ import annotations

from emp_pipe.component import Derived
from emp_pipe.log.protocol import DeadLetter, DeadReason, Delivery, Rejection


def merged(first: Derived, then: Derived) -> Derived:
    """Return one commit that does what two did in turn."""
    deleted = set(then.state_deletes)
    kept = {key: value for key, value in first.state_puts.items() if key not in deleted}
    ttls = [one.state_ttl_s for one in (first, then) if one.state_puts]
    return Derived(
        acks=[*first.acks, *then.acks],
        skipped_records={**first.skipped_records, **then.skipped_records},
        rejections=[*first.rejections, *then.rejections],
        outputs=[*first.outputs, *then.outputs],
        state_puts={**kept, **then.state_puts},
        state_ttl_s=None if None in ttls else max((ttl for ttl in ttls if ttl is not None), default=None),
        state_deletes=[*first.state_deletes, *then.state_deletes],  # a commit deletes first and puts then
    )


def rejection(component: str, delivery: Delivery, detail: str, now_unix_nano: int) -> Rejection:
    """Return the end of a block that cannot be taken: all of it becomes a dead letter."""
    block = delivery.block
    letter = DeadLetter(
        component,
        DeadReason.BLOCK_INVALID,
        detail,
        bytes(memoryview(block)),
        block.header,
        block.records,
        time_unix_nano=now_unix_nano,
    )
    return Rejection(delivery, [letter])

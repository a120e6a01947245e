"""Two commits of a deriver as one: where the log takes a commit only together with the acks that a later tick brings."""

from __future__ import annotations

from emp_pipe.component import Derived


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

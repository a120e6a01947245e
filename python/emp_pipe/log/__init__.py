"""The durable log: what it promises (`protocol.py`) and the writer that stands before every implementation (`writer.py`).

The implementations are in `buffers/`; the rules are in `docs/decisions/001-log.md`.
"""

from emp_pipe.log.protocol import (
    Append,
    Appended,
    ChunkKey,
    DeadCount,
    DeadFilter,
    DeadLetter,
    DeadReason,
    Delivery,
    GroupBooks,
    GroupSpec,
    GroupUsage,
    Log,
    LossReason,
    ReceiverBooks,
    Rejection,
    Revival,
    Topic,
    Usage,
)

__all__ = [
    "Append",
    "Appended",
    "ChunkKey",
    "DeadCount",
    "DeadFilter",
    "DeadLetter",
    "DeadReason",
    "Delivery",
    "GroupBooks",
    "GroupSpec",
    "GroupUsage",
    "Log",
    "LossReason",
    "ReceiverBooks",
    "Rejection",
    "Revival",
    "Topic",
    "Usage",
]

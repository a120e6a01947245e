"""A deriver for tests: passes on the rows that it read, some ticks later, and keeps their number and sum as state."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from pydantic import Field

from emp_pipe.component import Context, Derived, ProcessorConfig
from emp_pipe.log.protocol import Delivery, Topic

if TYPE_CHECKING:
    from emp_pipe._core import Batch


class PassingConfig(ProcessorConfig):
    reads: Topic = Field(Topic.TRACES_IN, description="The topic read.")
    writes: Topic = Field(Topic.TRACES, description="The topic written.")
    tick_s: float = Field(0.02, description="How often.")
    keep: int = Field(0, description="So many of the newest blocks wait for a later tick.")
    max_held_bytes: int = Field(64 << 20, description="Above it a tick comes early.")


class Passing:
    """Each row comes out once; `rows` in its state counts them, in the same commit."""

    CONFIG = PassingConfig

    def __init__(self, id: str, config: PassingConfig, context: Context) -> None:
        self.id = id
        self.config = config
        self._codec = context.wiring.codec
        self._held: list[tuple[Delivery, Batch]] = []
        self._rows = 0
        self._made = 0
        self.calls: list[str] = []
        self.closes = 0

    @property
    def reads(self) -> frozenset[Topic]:
        return frozenset({self.config.reads})

    @property
    def writes(self) -> frozenset[Topic]:
        return frozenset({self.config.writes})

    @property
    def tick_s(self) -> float:
        return self.config.tick_s

    @property
    def max_held_bytes(self) -> int:
        return self.config.max_held_bytes

    def restore(self, state: Mapping[str, bytes]) -> None:
        self._held.clear()
        self._rows = int(state.get("rows", b"0"))
        self.calls.append("restore")

    def close(self) -> None:
        self.closes += 1

    def take(self, delivery: Delivery, now_unix_nano: int) -> None:
        self._held.append((delivery, delivery.block.decode()))
        self.calls.append(f"take {delivery.offset}")

    def tick(self, now_unix_nano: int, *, final: bool) -> Derived | None:
        self.calls.append("final tick" if final else "tick")
        held_bytes = sum(delivery.block.payload_bytes for delivery, _ in self._held)
        keep = 0 if held_bytes >= self.max_held_bytes else self.config.keep
        count = max(len(self._held) - keep, 0)
        if not count:
            return None
        due, self._held = self._held[:count], self._held[count:]
        self._rows += sum(len(batch) for _, batch in due)
        first = due[0][0].offset
        outputs = [
            batch.to_block(self._codec, topic=self.config.writes.value, block_id=f"{self.id}-{first}-{index}-{self._made}")
            for index, (_, batch) in enumerate(due)
        ]
        self._made += 1
        return Derived(acks=[delivery for delivery, _ in due], outputs=outputs, state_puts={"rows": str(self._rows).encode()})


CONFIG = PassingConfig
COMPONENT = Passing

"""Fails as it is told: to see, before it happens, what a pipeline does when a destination is down, slow, or refuses.

exporters:
  error: {kind: throttled, rate: 0.2, retry_after_s: 5}
"""

from __future__ import annotations

from random import Random
from typing import Annotated, Literal

from pydantic import Field

from emp_pipe.component import Context, ExporterConfig, Parcel, Sent
from emp_pipe.errors import DeliveryError, ErrorKind


class ErrorConfig(ExporterConfig):
    """Which errors, and how often."""

    kind: Literal["unreachable", "timed_out", "throttled", "unauthenticated", "refused", "too_large", "expired", "server_error"] = Field(
        "unreachable", description="What goes wrong."
    )
    rate: Annotated[float, Field(ge=0, le=1)] = Field(1.0, description="The share of attempts that fail; the others are taken like `noop`.")
    retry_after_s: Annotated[float, Field(ge=0)] | None = Field(None, description="What the destination asks for.")
    delay_s: Annotated[float, Field(ge=0)] = Field(0.0, description="How long each answer takes.")
    seed: int | None = Field(None, description="With a seed the same attempts fail in every run.")


class ErrorExporter:
    """Raises DeliveryError at the configured rate."""

    merges = True
    ordered = False
    codec = "any"
    limits = None

    def __init__(self, id: str, config: ErrorConfig, context: Context) -> None:
        self.id = id
        self.config = config
        self._clock = context.clock
        self._random = Random(config.seed)
        self.taken_records = 0

    async def open(self) -> None: ...

    async def send(self, parcel: Parcel) -> Sent:
        if self.config.delay_s:
            await self._clock.sleep(self.config.delay_s)
        if self._random.random() < self.config.rate:
            raise DeliveryError(ErrorKind(self.config.kind), place=self.id, detail="told to fail", retry_after_s=self.config.retry_after_s)
        self.taken_records += parcel.block.records
        return Sent()

    async def close(self, deadline_monotonic_s: float) -> None: ...


CONFIG = ErrorConfig
COMPONENT = ErrorExporter

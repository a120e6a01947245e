"""Takes everything and sends it nowhere: for measurements, and for dry runs of what comes before it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from emp_pipe.component import Context, ExporterConfig, Parcel, Sent


class NoopConfig(ExporterConfig):
    """Settings of an exporter that sends nothing."""

    codec: Literal["any", "none", "gzip", "zstd"] = Field(
        "any", description="What it pretends to send compressed with; where it is the first exporter the buffer's blocks have it too."
    )


class NoopExporter:
    """Counts what it was given."""

    merges = True
    ordered = False
    limits = None

    def __init__(self, id: str, config: NoopConfig, context: Context) -> None:
        self.id = id
        self.config = config
        self.codec: str = config.codec
        """A plain attribute: the delivery loop asks for it."""
        self.parcels = 0
        self.records = 0

    async def open(self) -> None: ...

    async def send(self, parcel: Parcel) -> Sent:
        self.parcels += 1
        self.records += parcel.block.records
        return Sent()

    async def close(self, deadline_monotonic_s: float) -> None: ...


CONFIG = NoopConfig
COMPONENT = NoopExporter

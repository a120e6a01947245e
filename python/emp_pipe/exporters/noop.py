"""Takes everything and sends it nowhere: for measurements, and for dry runs of what comes before it."""

from __future__ import annotations

from emp_pipe.component import Context, ExporterConfig, Parcel, Sent


class NoopConfig(ExporterConfig):
    """Nothing beside what every exporter has."""


class NoopExporter:
    """Counts what it was given."""

    merges = True
    ordered = False
    codec = "any"
    limits = None

    def __init__(self, id: str, config: NoopConfig, context: Context) -> None:
        self.id = id
        self.config = config
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

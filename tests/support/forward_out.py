"""What the tests of the Forward exporter share: an exporter that is open, and sending as the delivery loop does."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from emp_pipe._core import Block
from emp_pipe.component import Parcel
from emp_pipe.errors import DeliveryError, Retry
from emp_pipe.exporters.forward import ForwardExporter, ForwardExporterConfig
from tests.support.forward import PATIENCE_S, make_context


@contextlib.asynccontextmanager
async def exporting(directory: Path, port: int | None = None, **settings: Any) -> AsyncIterator[ForwardExporter]:
    if port is not None:
        settings.setdefault("endpoint", f"127.0.0.1:{port}")
    context = make_context(directory, role="edge")
    exporter = ForwardExporter("forward/central", ForwardExporterConfig(**settings), context)
    await exporter.open()
    try:
        yield exporter
    finally:
        await exporter.close(context.clock.monotonic_s())


def parcel(exporter: ForwardExporter, sent: Block, *, timeout_s: float = PATIENCE_S) -> Parcel:
    return Parcel(sent, attempt=1, deadline_monotonic_s=exporter._context.clock.monotonic_s() + timeout_s)


async def send(exporter: ForwardExporter, sent: Block, **more: Any) -> None:
    await exporter.send(parcel(exporter, sent, **more))


async def error_of(exporter: ForwardExporter, sent: Block, **more: Any) -> DeliveryError:
    with pytest.raises(DeliveryError) as caught:
        await send(exporter, sent, **more)
    assert "forward/central" in str(caught.value)
    return caught.value


async def open_exporter(directory: Path, **settings: Any) -> ForwardExporter:
    exporter = ForwardExporter("forward/central", ForwardExporterConfig(**settings), make_context(directory, role="edge"))
    await exporter.open()
    return exporter


async def send_until_sent(exporter: ForwardExporter, one: Block) -> None:
    """Send as the delivery loop does: again after an error that a retry can help."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            try:
                await send(exporter, one)
                return
            except DeliveryError as error:
                if error.retry is not Retry.LATER:
                    raise
                await asyncio.sleep(0.01)


async def until(holds: Any) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not holds():  # noqa: ASYNC110
            await asyncio.sleep(0.005)

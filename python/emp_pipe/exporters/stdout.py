"""Prints records to standard output: the fleet's JSON for logs, OTLP JSON lines for spans and metrics; one line a record.

When the reader of the pipe goes away (`emp-pipe run … | head`), emp-pipe stops as on SIGTERM; what was not printed stays in the buffer.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import BinaryIO

from pydantic import Field

from emp_pipe.component import Context, ExporterConfig, Parcel, Sent
from emp_pipe.delivery.blocking import OneWriteAtATime
from emp_pipe.errors import DeliveryError, ErrorKind, Retry


class StdoutConfig(ExporterConfig):
    """How records are printed."""

    stop_when_closed: bool = Field(True, description="Stop emp-pipe when nobody reads its output any more.")


class StdoutExporter:
    """Writes lines to standard output, in the order of the log."""

    merges = True
    ordered = True
    codec = "none"
    limits = None

    def __init__(self, id: str, config: StdoutConfig, context: Context, *, stream: BinaryIO | None = None) -> None:
        self.id = id
        self.config = config
        self._clock = context.clock
        self._stream = stream
        self._writes = OneWriteAtATime()
        self._closed = False

    async def open(self) -> None:
        if self._stream is None:
            self._stream = sys.stdout.buffer

    async def send(self, parcel: Parcel) -> Sent:
        """Print a parcel; return when the lines are in the pipe."""
        if self._closed:
            raise self._closed_error()
        block = parcel.block
        try:
            await self._writes.write(block.block_id, lambda: self._write(block.decode().to_json_lines()))
        except BrokenPipeError as error:
            self._stop()
            raise self._closed_error() from error
        except OSError as error:
            raise DeliveryError(ErrorKind.UNREACHABLE, place=self.id, detail=f"cannot write to standard output ({error})") from error
        return Sent()

    async def close(self, deadline_monotonic_s: float) -> None:
        await self._writes.wait(deadline_monotonic_s - self._clock.monotonic_s())

    def _write(self, lines: bytes) -> None:
        assert self._stream is not None
        self._stream.write(lines)
        self._stream.flush()

    def _stop(self) -> None:
        self._closed = True
        if self._stream is sys.stdout.buffer:
            # Whatever Python flushes at its exit goes nowhere instead of failing once more.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if self.config.stop_when_closed:
            signal.raise_signal(signal.SIGTERM)

    def _closed_error(self) -> DeliveryError:
        advice = "start emp-pipe again with a reader; what was not printed is in the buffer"
        detail = "the reader of standard output is gone"
        return DeliveryError(ErrorKind.UNREACHABLE, place=self.id, detail=detail, advice=advice, retry=Retry.AFTER_CONFIG_CHANGE)


CONFIG = StdoutConfig
COMPONENT = StdoutExporter

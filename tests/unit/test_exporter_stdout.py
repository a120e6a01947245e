"""Standard output: whole lines, in order, and a clear stop when nobody reads any more. And `error`, which fails as told."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest
from pydantic import ValidationError

from emp_pipe.component import Parcel
from emp_pipe.errors import DeliveryError, ErrorKind, Retry
from emp_pipe.exporters.error import ErrorConfig, ErrorExporter
from emp_pipe.exporters.stdout import StdoutConfig, StdoutExporter
from tests.support.context import make_context
from tests.support.telemetry import log_block, span_block


async def test_each_record_is_one_line_and_flushed(tmp_path: Path) -> None:
    with (tmp_path / "out").open("wb") as stream:
        exporter = StdoutExporter("stdout", StdoutConfig(), make_context(), stream=stream)
        await exporter.open()
        await exporter.send(Parcel(log_block(["a\nb", "c"], codec="none"), 1, 1e9))
        await exporter.send(Parcel(span_block(3, codec="none"), 1, 1e9))
        assert len((tmp_path / "out").read_bytes().splitlines()) == 5


async def test_a_reader_that_goes_away_stops_the_process_and_nothing_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    raised: list[int] = []
    monkeypatch.setattr(signal, "raise_signal", raised.append)
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb", buffering=0) as stream:
        exporter = StdoutExporter("stdout", StdoutConfig(), make_context(), stream=stream)
        await exporter.open()
        for _ in range(2):
            with pytest.raises(DeliveryError) as caught:
                await exporter.send(Parcel(log_block(1, codec="none"), 1, 1e9))
            assert caught.value.retry is Retry.AFTER_CONFIG_CHANGE
            assert "reader of standard output is gone" in str(caught.value)
    assert raised == [signal.SIGTERM]


async def test_the_error_exporter_fails_at_its_rate_and_the_same_way_with_a_seed() -> None:
    async def run() -> list[bool]:
        exporter = ErrorExporter("error", ErrorConfig(kind="throttled", rate=0.3, retry_after_s=4.0, seed=7), make_context())
        parcels = [Parcel(log_block(1), 1, 1e9)] * 500
        results = await asyncio.gather(*(exporter.send(parcel) for parcel in parcels), return_exceptions=True)
        errors = [result for result in results if isinstance(result, DeliveryError)]
        assert {(error.kind, error.retry_after_s) for error in errors} == {(ErrorKind.THROTTLED, 4.0)}
        return [isinstance(result, DeliveryError) for result in results]

    first = await run()
    assert first == await run()
    assert 0.25 < first.count(True) / 500 < 0.35


def test_the_error_exporter_knows_only_errors_of_delivery() -> None:
    with pytest.raises(ValidationError):
        ErrorConfig(kind="log_full")  # type: ignore[arg-type]

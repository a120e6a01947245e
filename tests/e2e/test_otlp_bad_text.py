"""Text that is no UTF-8, through the real sockets of both OTLP receivers: it costs the item that it stands in, and nothing around it.

Each request is sent between two good ones on one connection; both must arrive, and of the request every good item."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.otlp_receiving import SIGNALS, Signal, Transport, among_good, encoded, request

NO_UTF8: dict[Signal, tuple[str, list[str]]] = {
    "logs": ("record 1", ["record 0", "record 2"]),
    "traces": ("span 2", ["span 1", "span 3"]),
    "metrics": ("metric.1", ["metric.0", "metric.2"]),
}


@pytest.mark.parametrize("signal", SIGNALS)
async def test_a_text_that_is_no_utf8_costs_its_record_span_or_metric_alone(tmp_path: Path, transport: Transport, signal: Signal) -> None:
    text, good = NO_UTF8[signal]
    reply, rows, received, invalid = await among_good(tmp_path, transport, signal, broken_text(encoded(request(signal, 3)), text))
    assert (reply.code, reply.rejected, rows, received, invalid) == ("OK", 1, good, 3, 1)
    assert "UTF-8" in reply.message


@pytest.mark.parametrize("signal", SIGNALS)
async def test_a_text_in_json_that_is_no_utf8_costs_its_record_span_or_metric_alone(tmp_path: Path, signal: Signal) -> None:
    text, good = NO_UTF8[signal]
    data = broken_text(encoded(request(signal, 3), "json"), text)
    reply, rows, received, invalid = await among_good(tmp_path, "http", signal, data, encoding="json")
    assert (reply.code, reply.rejected, rows, received, invalid) == ("OK", 1, good, 3, 1)
    assert "UTF-8" in reply.message


async def test_a_text_that_is_no_utf8_in_an_event_costs_its_span_alone(tmp_path: Path, transport: Transport) -> None:
    message = request("traces", 3)
    message.resource_spans[0].scope_spans[0].spans[1].events.add(name="an event")
    reply, rows, received, invalid = await among_good(tmp_path, transport, "traces", broken_text(encoded(message), "an event"))
    assert (reply.code, reply.rejected, rows, received, invalid) == ("OK", 1, ["span 1", "span 3"], 3, 1)
    assert "UTF-8" in reply.message


async def test_a_text_that_is_no_utf8_at_a_data_point_costs_it_alone_and_not_its_metric(tmp_path: Path, transport: Transport) -> None:
    message = request("metrics", 3)
    points = message.resource_metrics[0].scope_metrics[0].metrics[1].gauge.data_points
    points.add(as_double=5).attributes.add(key="a key")
    points.add(as_double=6)
    reply, rows, received, invalid = await among_good(tmp_path, transport, "metrics", broken_text(encoded(message), "a key"))
    assert (reply.code, reply.rejected, received, invalid) == ("OK", 1, 5, 1)
    assert rows == ["metric.0", "metric.1", "metric.2"]
    assert "UTF-8" in reply.message


def broken_text(data: bytes, text: str) -> bytes:
    """Return a request in which one text, of the same length, is no UTF-8 any more."""
    assert data.count(text.encode()) == 1
    return data.replace(text.encode(), text[:-1].encode() + b"\xff")

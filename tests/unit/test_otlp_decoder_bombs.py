"""Requests that are small and would be huge in memory: millions of empty items, resources or scopes are refused or cost little."""

from __future__ import annotations

import gzip
from typing import Any

import pytest

from emp_pipe._core import CoreError, Normalizer, OtlpDecoder
from tests.support.otlp_receiving import SIGNALS, Signal

LIMIT_BYTES = 8 << 20
ENTRIES = LIMIT_BYTES // 32


def decoder(signal: Signal) -> OtlpDecoder:
    return OtlpDecoder(Normalizer(), signal=signal, max_inflated_bytes=LIMIT_BYTES)


def field(number: int, content: bytes) -> bytes:
    length, size = bytearray(), len(content)
    while size > 127:
        length.append(size & 127 | 128)
        size >>= 7
    return bytes([number << 3 | 2, *length, size]) + content


def kind_of(signal: Signal, data: bytes, **how: Any) -> str:
    with pytest.raises(CoreError) as error:
        decoder(signal).decode(data, now_unix_nano=1, **how)
    return error.value.kind


BOMBS = {
    "items": field(1, field(2, b"\x12\x00" * (ENTRIES + 1))),
    "scopes": field(1, b"\x12\x00" * (ENTRIES + 1)),
    "resources": b"\x0a\x00" * (ENTRIES + 1),
}


@pytest.mark.parametrize("bomb", BOMBS)
@pytest.mark.parametrize("signal", SIGNALS)
def test_more_entries_than_the_limit_in_bytes_allows_are_too_large(signal: Signal, bomb: str) -> None:
    data = gzip.compress(BOMBS[bomb])
    assert len(data) < 10_000
    assert kind_of(signal, data, codec="gzip") == "too_large"


@pytest.mark.parametrize("signal", SIGNALS)
def test_as_many_entries_as_the_limit_allows_are_read(signal: Signal) -> None:
    read = decoder(signal).decode(field(1, field(2, b"\x12\x00" * (ENTRIES - 2))), now_unix_nano=1)
    assert read.received == (0 if signal == "metrics" else ENTRIES - 2)


@pytest.mark.parametrize(
    ("signal", "rows", "scopes"),
    [("logs", "resourceLogs", "scopeLogs"), ("traces", "resourceSpans", "scopeSpans"), ("metrics", "resourceMetrics", "scopeMetrics")],
)
def test_more_items_than_the_limit_in_bytes_allows_are_too_large_in_json(signal: Signal, rows: str, scopes: str) -> None:
    of_scope = {"logs": "logRecords", "traces": "spans", "metrics": "metrics"}[signal]
    text = f'{{"{rows}":[{{"{scopes}":[{{"{of_scope}":[{"{}," * ENTRIES}{{}}]}}]}}]}}'
    assert kind_of(signal, text.encode(), encoding="json") == "too_large"


def test_a_hundred_thousand_bad_items_in_json_are_few_pieces_and_all_counted() -> None:
    text = '{"resourceSpans":[{"scopeSpans":[{"spans":[' + '{"kind":{}},' * 100_000 + '{"kind":{}}]}]}]}'
    read = decoder("traces").decode(text.encode(), encoding="json", now_unix_nano=1)
    assert (read.received, read.rejected_items, read.batch) == (100_001, 100_001, None)
    assert sum(one.records for one in read.rejected) == 100_001
    assert len(read.rejected) < 1000
    assert sum(len(one.data) for one in read.rejected) < 4 << 20


def test_a_metric_with_more_bad_points_than_anybody_can_look_at_is_set_aside_as_a_whole() -> None:
    bad_point = field(1, field(5, field(4, b"short")))  # an exemplar with a span id of five bytes
    read = decoder("metrics").decode(field(1, field(2, field(2, field(5, bad_point * 70_000)))), now_unix_nano=1)
    assert (read.received, read.rejected_items, read.batch) == (70_000, 70_000, None)

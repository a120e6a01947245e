"""Blocks written by the first format version must be read by every later one: the files are never written anew."""

from __future__ import annotations

from pathlib import Path

import pytest

from emp_pipe import _core
from tests.support.otlp_rows import NOW, logs_of, plain, plain_attributes

GOLDEN = Path(__file__).parent.parent / "golden"


@pytest.mark.parametrize("codec", ["none", "gzip", "zstd"])
def test_a_block_of_format_version_1_is_read_whole(codec: str) -> None:
    header = (GOLDEN / f"block-v1-{codec}.header.json").read_bytes()
    block = _core.Block(header, (GOLDEN / f"block-v1-{codec}.payload").read_bytes())

    assert (block.codec, block.signal, block.topic, block.block_id) == (codec, "logs", "logs", f"golden-{codec}")
    assert (block.records, block.errors, block.events) == (2, 1, 1)
    assert (block.min_time_unix_nano, block.max_time_unix_nano) == (NOW, NOW + 1)
    assert (block.tags, block.services, block.severities) == (("app", "web.errors"), ("api", "web"), (9, 17))
    assert (block.decided, block.red_done, block.aggregated) == (True, False, False)
    first, second = logs_of(block.decode())
    assert (plain(first.body), first.severity_text, first.observed_time_unix_nano) == ("hello", "INFO", NOW + 9)
    assert (first.trace_id, first.span_id) == (bytes(range(16)), bytes(range(8)))
    assert plain_attributes(first.attributes) == {
        "job_id": "job-1",
        "n": 1,
        "ratio": 0.5,
        "ok": True,
        "raw": b"\x00\xff",
        "nested": {"list": [1, None, "x"]},
    }
    assert (plain(second.body), plain_attributes(second.attributes)) == ("it failed", {"event_type": "job_failed"})
    assert block.header == header, "this version still writes what version 1 wrote; else raise the version and add a fixture"

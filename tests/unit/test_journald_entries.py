"""What an entry of the journal says becomes a record, in whatever form journalctl prints its fields."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emp_pipe.receivers.journald_entries import is_same_entry, missing_between, read_entries
from emp_pipe.receivers.journald_process import LineCutter

CURSOR = "s=a;i=1f;b=c;m=1;t=2;x=3"


def record(**fields: Any) -> dict[str, Any]:
    (entry,), bad = read_entries([json.dumps({"__CURSOR": CURSOR, "__REALTIME_TIMESTAMP": "1764000000000001", **fields}).encode()])
    assert not bad
    return entry.record


def test_time_level_and_names_are_those_of_the_standard_schema() -> None:
    made = record(MESSAGE="hello", PRIORITY="4", _SYSTEMD_UNIT="comfyui@0.service", SYSLOG_FACILITY="3", _PID="9")
    assert (made["message"], made["level"], made["timestamp"]) == ("hello", "warning", 1_764_000_000_000_001_000)
    assert (made["service.name"], made["syslog.facility"], made["process.pid"]) == ("comfyui@0", "daemon", 9)


@pytest.mark.parametrize(
    ("fields", "stream"),
    [
        ({"_TRANSPORT": "kernel", "SYSLOG_FACILITY": "0"}, "kernel"),
        ({"SYSLOG_FACILITY": "4"}, "auth"),
        ({"SYSLOG_FACILITY": "10"}, "auth"),
        ({"SYSLOG_FACILITY": "3"}, None),
        ({"SYSLOG_FACILITY": "0"}, None),
    ],
)
def test_the_streams_of_the_kernel_and_of_logins_are_named(fields: dict[str, str], stream: str | None) -> None:
    assert record(MESSAGE="x", **fields).get("log.stream") == stream


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([104, 105, 255], "hi\ufffd"),
        (["one", "two"], "one\ntwo"),
        (["one", [104, 105]], "one\nhi"),
        (None, ""),
        ([], ""),
        ({"in": 1}, ""),
        (5, "5"),
    ],
)
def test_a_message_may_be_bytes_several_values_or_nothing(value: Any, message: str) -> None:
    assert record(MESSAGE=value)["message"] == message


def test_what_systemd_says_of_a_unit_is_that_units() -> None:
    assert record(MESSAGE="Started", _SYSTEMD_UNIT="init.scope", UNIT="nginx.service")["service.name"] == "nginx"


@pytest.mark.parametrize(
    "lines",
    [
        [b""],
        [b"{"],
        [b"[]"],
        [b"1"],
        [b"{}"],
        [b'{"__CURSOR":5}'],
        [b'{"__CURSOR":""}'],
        [b"\xff"],
        [b"{},{}"],
        [b'{"a":"', b'"}'],
        [b"{}]", b"[{}"],
    ],
)
def test_what_is_no_entry_is_set_aside_and_costs_its_neighbours_nothing(lines: list[bytes]) -> None:
    before, after = (json.dumps({"__CURSOR": cursor, "MESSAGE": cursor}).encode() for cursor in ("before", "after"))
    entries, bad = read_entries([before, *lines, after])
    assert [(entry.cursor, entry.record["message"]) for entry in entries] == [("before", "before"), ("after", "after")]
    assert [line for line, _ in bad] == lines
    assert all(why for _, why in bad)


@pytest.mark.parametrize(
    ("other", "same", "missing"),
    [
        (CURSOR, True, None),
        ("s=a;i=1f;b=c;m=1;t=2;x=4", True, None),
        ("s=other;i=2;b=c;m=1;t=2;x=3", True, None),
        ("s=a;i=20;b=c;m=2;t=3;x=5", False, 0),
        ("s=a;i=25;b=c;m=2;t=3;x=5", False, 5),
        ("s=other;i=25;b=c;m=2;t=3;x=5", False, None),
        ("of another form", False, None),
    ],
)
def test_two_cursors_tell_whether_an_entry_is_the_same_and_how_many_are_missing(other: str, same: bool, missing: int | None) -> None:
    assert is_same_entry(CURSOR, other) is same
    assert missing_between(CURSOR, other) == missing


@given(
    st.dictionaries(
        st.sampled_from(["MESSAGE", "PRIORITY", "_PID", "SYSLOG_FACILITY", "_TRANSPORT", "UNIT"]),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.text(max_size=5), lambda inner: st.lists(inner, max_size=3), max_leaves=6
        ),
    )
)
def test_no_value_of_a_field_can_break_an_entry(fields: dict[str, Any]) -> None:
    record(**fields)


@given(st.lists(st.binary(max_size=30)), st.integers(1, 8))
def test_lines_are_the_same_however_they_are_cut(parts: list[bytes], most_bytes: int) -> None:
    whole, cut = LineCutter(most_bytes), LineCutter(most_bytes)
    at_once = whole.feed(b"".join(parts))
    pieces = [cut.feed(part) for part in parts]
    assert [line for piece in pieces for line in piece.whole] == at_once.whole
    assert [line for piece in pieces for line in piece.too_long] == at_once.too_long
    assert all(len(line) <= most_bytes for line in at_once.whole + at_once.too_long)

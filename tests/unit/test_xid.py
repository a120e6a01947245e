"""NVIDIA's Xid messages: the forms that drivers wrote over the years, and nothing else, become error events."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emp_pipe import xid
from emp_pipe._core import Batch
from emp_pipe.event_records import event_batch

MADE: dict[str, Any] = {"normalizer": None, "tag": "kernel", "now_unix_nano": 1_764_000_000_000_000_000}
FALLEN = "NVRM: Xid (PCI:0000:65:00): 79, pid='<unknown>', name=<unknown>, GPU has fallen off the bus."


def test_a_message_gives_number_address_meaning_and_what_to_do() -> None:
    event = xid.event_of(FALLEN)
    assert event is not None
    assert (event["xid.number"], event["xid.pci_address"]) == (79, "0000:65:00")
    assert (event["level"], event["event_type"]) == ("error", "error_xid")
    assert "fallen off the bus" in event["xid.meaning"]
    assert "power-cycle" in event["xid.action"]
    assert "process.executable.name" not in event


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("NVRM: Xid (0000:01:00): 8, Channel 00000003", {"xid.number": 8, "xid.pci_address": "0000:01:00"}),
        (
            "[ 1234.5] NVRM: Xid (PCI:0000:3B:00): 31, pid=7194, name=python3, Ch 00000008, MMU Fault: ENGINE GRAPHICS",
            {"xid.number": 31, "xid.pci_address": "0000:3b:00", "process.pid": 7194, "process.executable.name": "python3"},
        ),
        ("NVRM: Xid (PCI:0000:0f:00 GPU-I:05): 94, pid='99', name=ComfyUI, Contained", {"xid.number": 94, "xid.mig_instance": "05"}),
        ("NVRM: Xid (PCI:00000000:B3:00.0): 119, Timeout after 6s of waiting for RPC response from GPU1 GSP!", {"xid.number": 119}),
        ("NVRM: Xid (PCI:0000:65:00): 63", {"xid.number": 63}),
        ("NVRM: Xid (PCI:0000:65:00): 9999, something new", {"xid.number": 9999}),
    ],
)
def test_the_forms_that_drivers_write_are_read(message: str, expected: dict[str, object]) -> None:
    event = xid.event_of(message)
    assert event is not None
    assert {key: event[key] for key in expected} == expected
    assert event["xid.meaning"]
    assert event["xid.action"]


@pytest.mark.parametrize(
    "message",
    ["", "NVRM: loading NVIDIA UNIX x86_64 Kernel Module", "NVRM: Xid (", "NVRM: Xid (PCI:nowhere): 79", "Xid (PCI:0000:65:00): 79"],
)
def test_what_is_no_xid_is_left_alone(message: str) -> None:
    assert xid.event_of(message) is None


def test_every_number_that_is_known_says_what_it_means_and_what_helps() -> None:
    assert {13, 31, 43, 45, 48, 63, 64, 74, 79, 92, 94, 95, 119, 120} <= xid.FACTS.keys()
    assert all(len(facts.meaning) > 10 and len(facts.action) > 10 for facts in xid.FACTS.values())


@given(st.text())
def test_no_text_behind_the_mark_can_break_it(text: str) -> None:
    event = xid.event_of(f"NVRM: Xid (PCI:0000:65:00): 79, {text}")
    assert event is not None
    assert event["xid.number"] == 79
    xid.event_of(f"NVRM: Xid ({text}")


def _rows(*messages: str) -> Batch:
    batch = event_batch([{"message": message, "level": "info", "n": n} for n, message in enumerate(messages)], **MADE)
    assert batch is not None
    return batch


def test_rows_of_a_batch_become_error_events_and_their_neighbours_stay_as_they_are() -> None:
    batch = xid.marked(_rows("before", FALLEN, "between", FALLEN.replace("79", "31"), "NVRM: Xid (torn", "behind"))
    rows = [json.loads(line) for line in batch.to_json_lines().splitlines()]
    assert (len(batch), batch.event_count, batch.error_count) == (6, 2, 2)
    assert [row.get("xid.number") for row in rows] == [None, 79, None, 31, None, None]
    assert [row["level"] for row in rows] == ["info", "error", "info", "error", "info", "info"]
    assert [row["n"] for row in rows] == list(range(6))
    assert rows[1]["message"] == FALLEN


def test_a_batch_without_an_xid_is_the_very_batch() -> None:
    batch = _rows("one", "two")
    assert xid.marked(batch) is batch
    assert batch.rows_with(b"") == []


def test_what_begins_in_one_row_and_ends_in_the_next_is_in_neither() -> None:
    batch = _rows("abc", "def")
    assert batch.rows_with(b"abc") == [0]
    assert batch.rows_with(b"abcdef") == []

"""Records that emp-pipe makes itself are normalised as everybody's are, and none of their values can break a batch."""

from __future__ import annotations

import json
from typing import Any

import pytest

from emp_pipe._core import Batch, Normalizer
from emp_pipe.event_records import event_batch

NOW = 1_764_000_000_000_000_000


def rows(batch: Batch | None) -> list[dict[str, Any]]:
    return [] if batch is None else [json.loads(line) for line in batch.to_json_lines().splitlines()]


def made(*records: dict[str, Any], **more: Any) -> Batch | None:
    return event_batch(records, **{"normalizer": None, "tag": "docker.events", "now_unix_nano": NOW, **more})


def test_nothing_makes_no_batch() -> None:
    assert made() is None


def test_an_event_type_makes_the_row_an_event_and_a_level_makes_it_an_error() -> None:
    batch = made(
        {"message": "container web started", "level": "info", "event_type": "service_started"},
        {"message": "out of memory", "level": "error", "event_type": "error_oom"},
    )
    assert batch is not None
    assert (len(batch), batch.event_count, batch.error_count) == (2, 2, 1)
    assert [row["message"] for row in rows(batch)] == ["container web started", "out of memory"]


def test_a_record_keeps_its_own_nanoseconds_and_one_without_a_time_has_that_of_the_call() -> None:
    import pyarrow as pa

    batch = made({"message": "then", "timestamp": NOW - 1_234_567_891}, {"message": "now"})
    assert batch is not None
    assert pa.record_batch(batch.to_arrow(["time_unix_nano"]))["time_unix_nano"].to_pylist() == [NOW - 1_234_567_891, NOW]


def test_a_resource_is_added_where_the_record_and_the_stamp_say_nothing() -> None:
    normalizer = Normalizer(stamp={"machine_id": "gpu-7"})
    batch = made({"message": "x"}, resource={"container.name": "web", "machine_id": "other"}, normalizer=normalizer)
    (row,) = rows(batch)
    assert (row["machine_id"], row["container.name"]) == ("gpu-7", "web")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), b"\xff\x00", {1, 2}, "\udc80 half a pair", None, 2**80])
def test_a_value_that_json_cannot_hold_costs_neither_its_record_nor_its_neighbours(value: Any) -> None:
    batch = made({"message": "before"}, {"message": "odd", "value": value, "in": [value]}, {"message": "after"})
    assert [row["message"] for row in rows(batch)] == ["before", "odd", "after"]


def test_text_with_newlines_stays_one_record() -> None:
    assert [row["message"] for row in rows(made({"message": "one\ntwo\r\nthree"}))] == ["one\ntwo\r\nthree"]


def test_a_record_that_is_nested_too_deep_is_an_error_of_whoever_made_it() -> None:
    deep: dict[str, Any] = {"message": "deep"}
    for _ in range(40):
        deep = {"in": deep}
    with pytest.raises(ValueError, match="cannot be kept"):
        made({"message": "beside it"}, deep)

"""A container's log by the daemon's API: frames become lines however they are cut, and a restart neither repeats nor leaves out."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emp_pipe.receivers.docker_logs import LogCutter, LogLine, NoFrames, Place

ONE, TWO = b"2025-11-24T16:00:00.000000001Z", b"2025-11-24T16:00:00.000000002Z"
FULL = b"x" * 16384


def frame(text: bytes, time: bytes = ONE, stream: int = 1) -> bytes:
    payload = time + b" " + text
    return bytes([stream, 0, 0, 0]) + len(payload).to_bytes(4, "big") + payload


def cut(*pieces: bytes, terminal: bool = False, most_line_bytes: int = 1 << 20) -> list[LogLine]:
    cutter = LogCutter(has_terminal=terminal, most_line_bytes=most_line_bytes)
    return [line for piece in pieces for line in cutter.feed(piece)] + cutter.end()


def test_a_frame_is_a_line_with_its_stream_and_time() -> None:
    assert cut(frame(b"one\n") + frame(b"two\n", TWO, 2)) == [LogLine("stdout", ONE, b"one"), LogLine("stderr", TWO, b"two")]


def test_parts_of_a_line_are_one_line_also_without_the_end_that_the_driver_local_leaves_out() -> None:
    assert [line.text for line in cut(frame(FULL), frame(b"y\n"), frame(b"next\n", TWO))] == [FULL + b"y", b"next"]
    assert [line.text for line in cut(frame(FULL), frame(b"y"), frame(b"next\n", TWO))] == [FULL + b"y", b"next"]
    assert [line.text for line in cut(frame(FULL), frame(b"next\n", TWO))] == [FULL, b"next"]


def test_a_line_whose_end_was_left_out_does_not_wait_for_the_next_line() -> None:
    cutter = LogCutter(has_terminal=False)
    assert [line.text for line in cutter.feed(frame(FULL) + frame(b"y"))] == [FULL + b"y"]
    assert not cutter.pending


def test_parts_of_two_streams_do_not_mix() -> None:
    lines = cut(frame(FULL), frame(b"error\n", ONE, 2), frame(b"y\n"))
    assert [(line.stream, line.text) for line in lines] == [("stderr", b"error"), ("stdout", FULL + b"y")]


def test_while_a_line_waits_for_its_rest_there_is_no_place_behind_it() -> None:
    cutter = LogCutter(has_terminal=False)
    cutter.feed(frame(FULL))
    assert cutter.pending
    cutter.feed(frame(b"y\n"))
    assert not cutter.pending


def test_a_line_over_the_limit_comes_in_marked_parts() -> None:
    lines = cut(frame(b"abcdefgh\n"), most_line_bytes=3)
    assert [(line.text, line.cut) for line in lines] == [(b"abc", True), (b"def", True), (b"gh", False)]


def test_a_terminals_log_is_lines() -> None:
    assert [line.text for line in cut(ONE + b" one\r\n" + TWO, b" two\n", terminal=True)] == [b"one", b"two"]


@pytest.mark.parametrize(
    "data", [b"\x07" * 8, b"\x01\x01\x00\x00\x00\x00\x00\x01", b"\x01\x00\x00\x00\xff\xff\xff\xff", frame(b"x", b"now")]
)
def test_what_is_no_log_is_refused_before_memory_is_taken(data: bytes) -> None:
    with pytest.raises(NoFrames):
        cut(data)


@given(st.lists(st.tuples(st.binary(max_size=20), st.sampled_from([1, 2])), max_size=6), st.lists(st.integers(1, 40), max_size=20))
def test_lines_are_the_same_however_the_answer_is_cut(parts: list[tuple[bytes, int]], sizes: list[int]) -> None:
    data = b"".join(frame(text.replace(b"\n", b"") + b"\n", stream=stream) for text, stream in parts)
    pieces, at = [], 0
    for size in sizes:
        pieces.append(data[at : at + size])
        at += size
    assert cut(*pieces, data[at:]) == cut(data)


@given(st.binary(max_size=200), st.booleans())
def test_no_bytes_can_break_it(data: bytes, terminal: bool) -> None:
    try:
        cut(data, terminal=terminal)
    except NoFrames:
        return


def test_a_place_counts_the_lines_of_its_time() -> None:
    place = Place()
    for line in (LogLine("stdout", ONE, b"a"), LogLine("stdout", ONE, b"b"), LogLine("stdout", TWO, b"c")):
        place = place.behind(line)
    assert place == Place(TWO.decode(), 1)
    assert Place.decode(place.encode()) == place


@pytest.mark.parametrize("value", [None, b"", b"[]", b"{", b'{"time": 5}', b'{"time": "x", "lines": 1}', b'{"time": "", "lines": -1}'])
def test_a_place_that_cannot_be_read_is_the_beginning(value: bytes | None) -> None:
    assert Place.decode(value) == Place()

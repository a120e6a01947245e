"""A tail under pressure: a log that takes nothing, and a noisy file beside quiet ones."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from emp_pipe.component import Arrival
from emp_pipe.errors import ErrorKind, LogError
from emp_pipe.receivers import tail_reader
from emp_pipe.receivers.tail import TailReceiver
from emp_pipe.receivers.tail_reader import ROUND_BYTES
from emp_pipe.receivers.tail_settings import TailConfig
from tests.support.context import make_context
from tests.support.own_reading import KeptIntake, reading
from tests.support.tailing import Tailing, lines, numbered, shift


class FailingIntake(KeptIntake):
    """A log that refuses while `fails` says so, and says how often it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.fails: Callable[[Arrival], ErrorKind | None] = lambda arrival: None
        self.refused = 0
        self.room = asyncio.Event()

    def submit(self, arrival: Arrival) -> asyncio.Future[None]:
        if (kind := self.fails(arrival)) is None:
            return super().submit(arrival)
        self.refused += 1
        self.changed.set()
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        future.set_exception(LogError(kind))
        return future

    async def wait_admitting(self) -> None:
        await self.room.wait()


def a_tail(directory: Path) -> TailReceiver:
    config = TailConfig.model_validate({"include": [str(directory / "*.log")], "poll_interval_s": 0.05})
    return TailReceiver("tail", config, make_context())


def read_bytes(tail: TailReceiver) -> float:
    return tail.context.metrics.registry.get_sample_value("emp_pipe_tail_read_bytes_total", {"component": "tail"}) or 0.0


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("emp_pipe.receivers.tail._AGAIN_S", 0.02)


@pytest.mark.parametrize("kind", [ErrorKind.LOG_FULL, ErrorKind.LOG_IO], ids=["full log", "full file system"])
async def test_a_log_that_refuses_is_offered_the_same_again_and_reading_stops(tmp_path: Path, kind: ErrorKind) -> None:
    big = "".join(f"line {number} {'x' * 1000}\n" for number in range(8 * ROUND_BYTES // 1000))
    (tmp_path / "app.log").write_text(big)
    intake = FailingIntake()
    tail = a_tail(tmp_path)
    async with reading(tail, intake):
        await intake.until(lambda: intake.rows)
        intake.fails = lambda arrival: kind
        (tmp_path / "late.log").write_text(numbered(0, 10))
        await intake.until(lambda: intake.refused >= 10)
        assert read_bytes(tail) <= len("".join(intake.messages())) + len(intake.rows) + 3 * ROUND_BYTES, "no more than is under way"
        intake.fails = lambda arrival: None
        await intake.until(lambda: len(intake.rows) == big.count("\n") + 10)
    assert sorted(intake.messages()) == sorted([*big.splitlines(), *lines(0, 10)])


async def test_a_log_that_does_not_admit_is_not_read_for(tmp_path: Path) -> None:
    (tmp_path / "app.log").write_text(numbered(0, 10))
    intake = FailingIntake()
    intake.admitting = False
    tail = a_tail(tmp_path)
    async with reading(tail, intake):
        await asyncio.sleep(0.2)
        assert read_bytes(tail) == 0
        intake.admitting = True
        intake.room.set()
        await intake.until(lambda: len(intake.rows) == 10)


async def test_a_stop_while_the_log_refuses_loses_nothing_and_repeats_nothing(tmp_path: Path) -> None:
    """Of the two files one is refused: its position must not be told before its rows are there."""
    for name in ("a", "b"):
        (tmp_path / f"{name}.log").write_text("".join(f"{name} {number}\n" for number in range(100)))
    intake = FailingIntake()
    refused = f"tail:file:{tmp_path / 'a.log'}"
    intake.fails = lambda arrival: ErrorKind.LOG_FULL if arrival.batch is not None and refused in arrival.checkpoints else None
    async with reading(a_tail(tmp_path), intake):
        await intake.until(lambda: intake.refused >= 3)
    assert intake.messages() == [f"b {number}" for number in range(100)]
    intake.fails = lambda arrival: None
    async with reading(a_tail(tmp_path), intake):
        await intake.until(lambda: len(intake.rows) >= 200)
    assert sorted(intake.messages()) == sorted(f"{name} {number}" for name in "ab" for number in range(100))


def test_a_noisy_file_does_not_hold_up_quiet_ones(tmp_path: Path) -> None:
    tail = Tailing(tmp_path)
    tail.write("noisy.log", numbered(0, 10))
    quiet = [f"quiet-{number}.log" for number in range(20)]
    for name in quiet:
        tail.write(name, "first\n")
    tail.pump()
    tail.rows.clear()
    tail.write("noisy.log", ("x" * 999 + "\n") * (32 * ROUND_BYTES // 1000))
    tail.now_s += 1
    assert tail.round()
    for name in quiet:
        tail.write(name, "second\n")
    tail.now_s += 1
    for _ in range(3):
        assert tail.round(), "there is much more of the noisy file"
    assert sum(row["message"] == "second" for row in tail.rows) == len(quiet), "each quiet file had its turn"
    noisy = sum(row["file.name"] == "noisy.log" for row in tail.rows)
    assert 0 < noisy * 1000 <= 4 * ROUND_BYTES, "and the noisy one no more than its rounds"


def test_of_files_that_are_all_noisy_each_gets_its_share(tmp_path: Path) -> None:
    tail = Tailing(tmp_path)
    names = [f"worker-{number}.log" for number in range(16)]
    for name in names:
        tail.write(name, ("x" * 999 + "\n") * (ROUND_BYTES // 1000))
    while not tail.rows:
        assert tail.round()
    for _ in range(7):
        assert tail.round()
    shares = [sum(row["file.name"] == name for row in tail.rows) for name in names]
    assert min(shares) > 0
    assert max(shares) <= min(shares) + 2 * (128 << 10) // 1000


@pytest.mark.parametrize("restarts", [False, True], ids=["running", "restarted"])
def test_unfinished_lines_of_many_files_are_kept_within_a_limit_and_none_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, restarts: bool
) -> None:
    monkeypatch.setattr(tail_reader, "_MOST_HELD_BYTES", 1 << 20)
    tail = Tailing(tmp_path, max_open_files=8)
    names = [f"worker-{number}.log" for number in range(40)]
    for name in names:
        tail.write(name, f"whole of {name}\n{name} " + "x" * 100_000)
    tail.pass_s(3)
    assert 0 < tail.reader.held_bytes <= 1 << 20
    assert len(tail.rows) == len(names)
    before = tail.metric("tail_read_bytes")
    tail.pass_s(30)
    assert tail.metric("tail_read_bytes") == before, "nothing is read again and again"
    if restarts:
        tail.restart()
    for part in ("y", "z"):
        for name in names:
            tail.write(name, part)
        tail.pass_s(3)
        assert tail.reader.held_bytes <= 1 << 20
    for name in names[1:]:
        tail.write(name, "\n")
    shift(tail.path(names[0]))
    tail.write(names[0], "next\n")
    expected = [message for name in names for message in (f"whole of {name}", f"{name} {'x' * 100_000}yz")]
    assert sorted(tail.pass_s(12)) == sorted([*expected, "next"])
    assert tail.reader.held_bytes == 0


def test_traces_that_wait_for_their_next_line_are_ended_early_where_there_is_too_much_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tail_reader, "_MOST_HELD_BYTES", 1 << 20)
    tail = Tailing(tmp_path, flush_s=3600.0)
    trace = "Traceback (most recent call last):\n" + '  File "a.py", line 1, in work\n    work()\n' * 2000
    for number in range(40):
        tail.write(f"worker-{number}.log", trace)
    tail.pass_s(3)
    assert tail.reader.held_bytes <= (1 << 20) + len(trace)
    assert sum(str(row.get("exception.stacktrace", row["message"])).count("work()") for row in tail.rows) >= 2000 * 10


async def test_of_the_parts_of_one_files_rows_none_is_passed_by_a_position_that_is_durable_before_it(tmp_path: Path) -> None:
    """Rows that were read before a truncation and after it are two batches: the first is refused while the second would be taken."""
    submitted: list[Arrival] = []

    class Keeping(FailingIntake):
        def submit(self, arrival: Arrival) -> asyncio.Future[None]:
            submitted.append(arrival)
            return super().submit(arrival)

    intake, tail = Keeping(), a_tail(tmp_path)
    rows, position = Arrival("tail", received=1), Arrival("tail", received=1, checkpoints={"tail:file:a": b"2"})
    intake.fails = lambda arrival: ErrorKind.LOG_FULL if arrival is rows and len(submitted) < 4 else None
    intake.room.set()
    assert await tail._hand_over(intake, [[rows, position]])
    assert submitted == [rows] * 4 + [position]

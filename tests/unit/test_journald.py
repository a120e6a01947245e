"""The journal's receiver with a program in the place of journalctl that dies, babbles and hangs as it is told. The real one: tests/e2e."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from emp_pipe.receivers.journald import JournaldConfig, JournaldReceiver
from tests.support.context import make_context
from tests.support.own_reading import KeptIntake, reading

STAND_IN = """#!{python}
import pathlib, sys, time
directory = pathlib.Path({directory!r})
run = len(list(directory.glob("asked.*")))
(directory / f"asked.{{run}}").write_text("\\n".join(sys.argv[1:]))
script = directory / f"says.{{run}}"
exec(script.read_text()) if script.exists() else time.sleep(60)
"""


def entry(number: int, message: str = "", file: str = "f") -> str:
    cursor = f"s={file};i={number:x};b=boot;m={number:x};t={number:x};x={number:x}"
    return json.dumps({"__CURSOR": cursor, "__REALTIME_TIMESTAMP": str(1_764_000_000_000_000 + number), "MESSAGE": message or f"e{number}"})


class StandIn:
    """A program that does at each start what a file says, and keeps how it was asked."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.program = directory / "journalctl"
        self.program.write_text(STAND_IN.format(python=sys.executable, directory=str(directory)))
        self.program.chmod(0o755)
        self._starts = 0

    def says(self, *lines: str, then: str = "time.sleep(60)") -> None:
        """At its next start it prints lines, and goes on so."""
        text = "".join(f"{line}\n" for line in lines)
        (self.directory / f"says.{self._starts}").write_text(f"sys.stdout.write({text!r}); sys.stdout.flush()\n{then}\n")
        self._starts += 1

    def asked(self, start: int) -> list[str]:
        return (self.directory / f"asked.{start}").read_text().split("\n")

    def receiver(self, **settings: Any) -> JournaldReceiver:
        config = JournaldConfig(**{"journalctl": str(self.program), "retry_s": 0.05, **settings})
        return JournaldReceiver("journald", config, make_context())


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StandIn:
    monkeypatch.setattr("emp_pipe.receivers.journald._FIRST_PAUSE_S", 0.01)
    return StandIn(tmp_path)


def counted(receiver: JournaldReceiver, name: str, **labels: str) -> float:
    return receiver.context.metrics.registry.get_sample_value(f"emp_pipe_{name}_total", {"component": "journald", **labels}) or 0.0


async def test_one_that_dies_is_said_and_started_again_at_the_last_durable_entry(
    stand_in: StandIn, caplog: pytest.LogCaptureFixture
) -> None:
    stand_in.says(entry(1), entry(2), then="sys.stderr.write('Failed to read: bad disk'); sys.exit(3)")
    stand_in.says(entry(2), entry(3))
    receiver, intake = stand_in.receiver(), KeptIntake()
    async with reading(receiver, intake):
        await intake.until(lambda: len(intake.rows) == 3)
    assert intake.messages() == ["e1", "e2", "e3"]
    assert "--cursor=s=f;i=2;b=boot;m=2;t=2;x=2" in stand_in.asked(1)
    assert counted(receiver, "source_troubles_times", reason="ended") == 1
    assert "status 3: Failed to read: bad disk" in caplog.text
    assert counted(receiver, "journald_cursors_gone_times") == 0


async def test_one_that_dies_again_and_again_is_said_once_and_counted(stand_in: StandIn, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(4):
        stand_in.says(then="sys.exit(1)")
    stand_in.says(entry(1))
    receiver, intake = stand_in.receiver(), KeptIntake()
    async with reading(receiver, intake):
        await intake.until(lambda: intake.rows)
    assert counted(receiver, "source_troubles_times", reason="ended") == 4
    assert caplog.text.count("journalctl ended") == 1


async def test_an_entry_in_the_place_of_the_checkpoint_is_kept_and_what_is_missing_counted(
    stand_in: StandIn, caplog: pytest.LogCaptureFixture
) -> None:
    stand_in.says(entry(1), then="sys.exit(0)")
    stand_in.says(entry(7))
    receiver, intake = stand_in.receiver(), KeptIntake()
    async with reading(receiver, intake):
        await intake.until(lambda: len(intake.rows) == 2)
    assert intake.messages() == ["e1", "e7"]
    assert counted(receiver, "journald_gone_entries") == 5
    assert counted(receiver, "journald_cursors_gone_times") == 1
    assert "up to 5 entries were gone" in caplog.text


async def test_a_checkpoint_that_only_it_was_removed_of_is_no_loss(stand_in: StandIn) -> None:
    stand_in.says(entry(1), then="sys.exit(0)")
    stand_in.says(entry(2))
    receiver, intake = stand_in.receiver(), KeptIntake()
    async with reading(receiver, intake):
        await intake.until(lambda: len(intake.rows) == 2)
    assert counted(receiver, "journald_cursors_gone_times") == 0


async def test_other_settings_are_no_reason_to_speak_of_a_loss(stand_in: StandIn) -> None:
    stand_in.says(entry(1))
    stand_in.says(entry(9), entry(10))
    intake = KeptIntake()
    async with reading(stand_in.receiver(), intake):
        await intake.until(lambda: intake.rows)
    async with reading(second := stand_in.receiver(units=("other.service",)), intake):
        await intake.until(lambda: len(intake.rows) == 3)
    assert counted(second, "journald_cursors_gone_times") == 0


async def test_a_cursor_that_journalctl_refuses_is_given_up_and_reading_begins_as_set(stand_in: StandIn) -> None:
    stand_in.says(then="sys.stderr.write('Failed to seek to cursor: Invalid argument'); sys.exit(1)")
    stand_in.says(entry(5))
    receiver, intake = stand_in.receiver(), KeptIntake()
    name = receiver.checkpoint_name("cursor")
    intake.checkpoints[name] = json.dumps({"cursor": "rubbish", "selection": ""}).encode()
    async with reading(receiver, intake):
        await intake.until(lambda: intake.rows)
    assert not [word for word in stand_in.asked(1) if word.startswith("--cursor")]
    assert counted(receiver, "journald_cursors_gone_times") == 1


@pytest.mark.parametrize("checkpoint", [b"", b"[]", b"{", b'{"cursor": 5}', b"\xff\xff", b"null"])
async def test_a_checkpoint_that_cannot_be_read_is_none(stand_in: StandIn, checkpoint: bytes) -> None:
    stand_in.says(entry(1))
    receiver, intake = stand_in.receiver(), KeptIntake()
    intake.checkpoints[receiver.checkpoint_name("cursor")] = checkpoint
    async with reading(receiver, intake):
        await intake.until(lambda: intake.rows)


async def test_lines_that_are_no_entries_become_dead_letters_and_the_others_are_kept(stand_in: StandIn) -> None:
    stand_in.says("-- No entries --", entry(1), "garbage", '{"no":"cursor"}', "[" * 5000, entry(2))
    receiver, intake = stand_in.receiver(), KeptIntake()
    async with reading(receiver, intake):
        await intake.until(lambda: len(intake.rows) == 2)
    assert [letter.payload[:8] for letter in intake.dead] == [b"garbage", b'{"no":"c', b"[[[[[[[["]
    assert sum(arrival.received for arrival in intake.arrivals) == 5


async def test_an_entry_that_never_ends_takes_no_more_memory_than_allowed(stand_in: StandIn) -> None:
    stand_in.says(entry(1, "x" * 3_000_000), entry(2))
    receiver, intake = stand_in.receiver(max_entry_bytes=100_000), KeptIntake()
    async with reading(receiver, intake):
        await intake.until(lambda: intake.rows)
    assert intake.messages() == ["e2"]
    assert [len(letter.payload) for letter in intake.dead] == [64 << 10]


async def test_what_the_log_refuses_is_handed_over_again_before_more_is_read(stand_in: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("emp_pipe.own_reading._AGAIN_S", 0.01)
    stand_in.says(entry(1), entry(2))
    receiver, intake = stand_in.receiver(), KeptIntake()
    intake.refusing = 3
    async with reading(receiver, intake):
        await intake.until(lambda: len(intake.rows) == 2)
    assert intake.messages() == ["e1", "e2"]


async def test_a_stop_ends_one_that_does_not_listen_to_sigterm(stand_in: StandIn) -> None:
    ignoring = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); sys.stdout.write('\\n'); sys.stdout.flush(); time.sleep(60)"
    stand_in.says(entry(1), then=ignoring)
    receiver, intake = stand_in.receiver(), KeptIntake()
    async with asyncio.timeout(20), reading(receiver, intake):
        await intake.until(lambda: intake.rows)


async def test_one_that_closes_its_output_and_hangs_is_ended_and_started_again(stand_in: StandIn) -> None:
    stand_in.says(entry(1), then="import os; os.close(1); os.close(2); time.sleep(60)")
    stand_in.says(entry(1), entry(2))
    receiver, intake = stand_in.receiver(), KeptIntake()
    async with reading(receiver, intake):
        await intake.until(lambda: len(intake.rows) == 2)
    assert intake.messages() == ["e1", "e2"]

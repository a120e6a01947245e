"""The real command reads real journal files through the real journalctl: kills, rotation and vacuum lose nothing unsaid, repeat nothing."""

from __future__ import annotations

import contextlib
import signal
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from emp_pipe.receivers.journald import JournaldConfig
from tests.support.command import run, running, until
from tests.support.command_bench import Bench, rows_in
from tests.support.journal import BOOT, Journal

XID = "NVRM: Xid (PCI:0000:65:00): 79, pid=1234, name=python3, GPU has fallen off the bus."


class JournalBench(Bench):
    """A process that reads a directory of journal files."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.journal = Journal(directory / "journal")
        self.read()

    def read(self, settings: str = "from: beginning") -> None:
        self.write(receivers=f'{{journald: {{directory: "{self.journal.directory}", {settings}}}}}')

    def messages(self) -> list[str]:
        return [row["message"] for row in rows_in(self.data_dir)]

    def settled(self) -> None:
        """Wait until the file's writer has said so too: a kill before that writes again."""
        until(lambda: self.groups()["file"]["held_records"] == 0, "nothing held")

    def until_messages(self, *expected: str) -> None:
        until(lambda: sorted(self.messages()) == sorted(expected), f"the messages {expected}, not {self.messages()}")


def children(pid: int) -> str:
    """Return the command lines of a process' children that follow."""
    found = []
    for child in psutil.Process(pid).children():
        with contextlib.suppress(psutil.NoSuchProcess):
            found.append(child.cmdline())
    return " ".join(word for words in found if "--follow" in words for word in words)


@pytest.fixture
def bench(tmp_path: Path) -> JournalBench:
    return JournalBench(tmp_path)


def test_entries_that_are_there_and_that_come_are_read_with_unit_priority_and_boot(bench: JournalBench) -> None:
    bench.journal.add("one", PRIORITY="3", SYSLOG_IDENTIFIER="node", _PID="77", _HOSTNAME="box-1")
    with running(*bench.arguments):
        bench.until_messages("one")
        bench.journal.add("two")
        bench.until_messages("one", "two")
    row = rows_in(bench.data_dir)[0]
    assert (row["level"], row["systemd.unit"], row["service.name"], row["host.name"]) == ("error", "web.service", "web", "box-1")
    assert (row["journald.boot_id"], row["process.pid"], row["syslog.identifier"]) == (BOOT, 77, "node")


def test_a_kill_at_any_moment_loses_and_repeats_nothing(bench: JournalBench) -> None:
    """The file is written at least once; what the log was given exactly once is in its books."""
    everything: list[str] = []
    for number in range(6):
        added = [f"{number}.{entry}" for entry in range(300)]
        bench.journal.add(*added)
        everything += added
        with running(*bench.arguments) as command:
            if number < 5:
                until(lambda first=added[0]: first in bench.messages(), "the first of the new entries")
                command.signal(signal.SIGKILL)
                command.wait()
            else:
                until(lambda wanted=set(everything): set(bench.messages()) == wanted, "all entries")
                assert bench.metric("emp_pipe_receiver_records_total", component="journald", outcome="appended") == len(everything)


def test_a_rotation_while_it_runs_and_one_while_it_is_down_are_not_noticed(bench: JournalBench) -> None:
    bench.journal.add("a")
    with running(*bench.arguments) as command:
        bench.until_messages("a")
        bench.journal.rotate()
        bench.journal.add("b")
        bench.until_messages("a", "b")
        bench.settled()
        command.signal(signal.SIGKILL)
        command.wait()
    bench.journal.add("c")
    bench.journal.rotate()
    bench.journal.add("d")
    with running(*bench.arguments) as command:
        bench.until_messages("a", "b", "c", "d")
        assert bench.metric("emp_pipe_journald_cursors_gone_times_total") == 0
        assert not [message for message in command.messages() if "gone before" in message]


def test_a_vacuum_while_it_is_down_is_said_and_counted_and_what_is_left_is_read(bench: JournalBench) -> None:
    bench.journal.add("a")
    with running(*bench.arguments) as command:
        bench.until_messages("a")
        command.signal(signal.SIGTERM)
        assert command.wait() == 0
    bench.journal.add("never read")
    bench.journal.rotate()
    bench.journal.add("left", "over")
    bench.journal.vacuum()
    with running(*bench.arguments) as command:
        command.wait_for("rotation or vacuum removed the entry of the checkpoint")
        bench.until_messages("a", "left", "over")
        assert bench.metric("emp_pipe_journald_cursors_gone_times_total", component="journald") == 1
        command.signal(signal.SIGTERM)
        assert command.wait() == 0
    with running(*bench.arguments) as command:  # said once, not at every start
        bench.journal.add("later")
        bench.until_messages("a", "left", "over", "later")
        assert bench.metric("emp_pipe_journald_cursors_gone_times_total") == 0


def test_an_xid_that_the_kernel_says_is_an_error_event_and_one_that_a_service_says_is_not(bench: JournalBench) -> None:
    bench.journal.add(XID, _TRANSPORT="kernel", PRIORITY="4", SYSLOG_FACILITY="0")
    bench.journal.add(XID)
    with running(*bench.arguments):
        bench.until_messages(XID, XID)
    event, claimed = rows_in(bench.data_dir)
    assert (event["event_type"], event["level"], event["xid.number"], event["log.stream"]) == ("error_xid", "error", 79, "kernel")
    assert "event_type" not in claimed


def _some_files(bench: JournalBench) -> None:
    bench.journal.add("wanted")
    bench.journal.rotate()
    bench.journal.add("not wanted")
    bench.write(receivers=f'{{journald: {{files: ["{bench.journal.directory}/remote@*.journal"], from: beginning}}}}')


def _wanted_of(settings: str, **fields: str) -> Callable[[JournalBench], None]:
    def prepare(bench: JournalBench) -> None:
        bench.journal.add("not wanted")
        bench.journal.add("wanted", **fields)
        bench.journal.add("not wanted")
        bench.read(f"from: beginning, {settings}")

    return prepare


def _too_long(bench: JournalBench) -> None:
    bench.journal.add("x" * 2000, "wanted")
    bench.read("from: beginning, max_entry_bytes: 1024")


def _by_path(bench: JournalBench) -> None:
    bench.journal.add("wanted")
    program = bench.directory / "my-journalctl"
    program.write_text('#!/bin/sh\nexec journalctl "$@"\n')
    program.chmod(0o755)
    bench.read(f'from: beginning, journalctl: "{program}"')


SETTINGS: dict[str, Callable[[JournalBench], None]] = {
    "directory": _wanted_of("units: [other.service]", _SYSTEMD_UNIT="other.service"),
    "files": _some_files,
    "units": _wanted_of('units: ["oth*.service"]', _SYSTEMD_UNIT="other.service"),
    "streams": _wanted_of("streams: [auth, kernel]", SYSLOG_FACILITY="10"),
    "priority": _wanted_of("priority: err", PRIORITY="3"),
    "max_entry_bytes": _too_long,
    "journalctl": _by_path,
}
SHOWN_ELSEWHERE = {"from_", "retry_s"}


@pytest.mark.parametrize("name", SETTINGS)
def test_each_setting_decides_what_is_read(bench: JournalBench, name: str) -> None:
    SETTINGS[name](bench)
    with running(*bench.arguments):
        bench.until_messages("wanted")


def test_every_setting_has_a_case() -> None:
    assert set(JournaldConfig.model_fields) == SETTINGS.keys() | SHOWN_ELSEWHERE


def test_from_end_reads_what_comes_also_where_a_restart_came_first(bench: JournalBench) -> None:
    bench.journal.add("old")
    bench.read("from: end")
    with running(*bench.arguments) as command:
        until(lambda: str(bench.journal.directory) in children(command.process.pid), "journalctl follows")
        bench.journal.add("new")
        bench.until_messages("new")
        bench.settled()
        command.signal(signal.SIGKILL)
        command.wait()
    bench.journal.add("while down")
    with running(*bench.arguments):
        bench.until_messages("new", "while down")


def test_from_boot_leaves_out_what_an_earlier_boot_said(bench: JournalBench) -> None:
    this_boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip().replace("-", "")
    bench.journal.add("an earlier boot")
    bench.journal.add("this boot", _BOOT_ID=this_boot)
    bench.read("from: boot")
    with running(*bench.arguments):
        bench.until_messages("this boot")


def test_a_machine_without_journalctl_goes_on_with_everything_else(bench: JournalBench) -> None:
    receivers = f'{{journald: {{journalctl: /nowhere/journalctl, retry_s: 0.1}}, http_json: {{listen: "127.0.0.1:{bench.port}"}}}}'
    bench.write(receivers=receivers)
    with running(*bench.arguments) as command:
        command.wait_for("/nowhere/journalctl cannot be started")
        request = urllib.request.Request(f"http://127.0.0.1:{bench.port}/app", b'{"message":"one"}')
        assert urllib.request.urlopen(request, timeout=20).status == 200
        bench.until_messages("one")
        until(lambda: bench.metric("emp_pipe_source_troubles_times_total", reason="missing") > 2, "counted at every try")
        assert len([message for message in command.messages() if "cannot be started" in message]) == 1
        command.signal(signal.SIGTERM)
        assert command.wait() == 0


def test_the_printed_configuration_shows_the_journal(bench: JournalBench) -> None:
    printed: Any = run("run", str(bench.file), "--print-config", "--data-dir", str(bench.data_dir))
    assert printed.returncode == 0, printed.stderr
    assert "journald:" in printed.stdout
    assert str(bench.journal.directory) in printed.stdout

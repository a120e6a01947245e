"""The real command reads the files that syslog writes, the kernel's and that of logins: over rotation, Xid messages as error events."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest

from emp_pipe.receivers.system_logs import SystemLogsConfig
from tests.support.command import run, running, until
from tests.support.command_bench import Bench, rows_in

XID = "NVRM: Xid (PCI:0000:65:00): 79, pid=1234, name=python3, GPU has fallen off the bus."


class SyslogBench(Bench):
    """A process beside a directory in which syslog writes."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.kernel, self.auth = directory / "kern.log", directory / "auth.log"
        self.write(receivers=f'{{system_logs: {{kernel: ["{self.kernel}"], auth: ["{self.auth}"]}}}}')

    @staticmethod
    def append(path: Path, *texts: str) -> None:
        with path.open("a") as file:
            file.writelines(f"Nov 24 16:00:00 box-1 {text}\n" for text in texts)

    def rows(self) -> list[dict[str, Any]]:
        return rows_in(self.data_dir)

    def row_with(self, text: str) -> dict[str, Any]:
        row: dict[str, Any] = until(lambda: next((row for row in self.rows() if text in row["message"]), None), f"a row with {text}")
        return row


@pytest.fixture
def bench(tmp_path: Path) -> SyslogBench:
    return SyslogBench(tmp_path)


def test_the_kernels_messages_and_logins_say_of_which_stream_they_are(bench: SyslogBench) -> None:
    bench.append(bench.kernel, "kernel: [ 12.5] usb 1-1: broke")
    bench.append(bench.auth, "sshd[77]: Accepted publickey for root")
    with running(*bench.arguments):
        assert bench.row_with("usb 1-1: broke")["log.stream"] == "kernel"
        assert bench.row_with("Accepted publickey")["log.stream"] == "auth"
        assert bench.row_with("usb 1-1: broke")["service.name"] == "kernel"


def test_an_xid_in_the_kernels_file_is_an_error_event_and_one_in_another_is_not(bench: SyslogBench) -> None:
    bench.append(bench.kernel, "kernel: before", f"kernel: [ 12.5] {XID}", "kernel: behind")
    bench.append(bench.auth, f"sshd[77]: {XID}")
    with running(*bench.arguments):
        until(lambda: len(bench.rows()) == 4, "four rows")
    (event,) = [row for row in bench.rows() if row.get("event_type")]
    assert (event["event_type"], event["level"], event["xid.number"], event["log.stream"]) == ("error_xid", "error", 79, "kernel")
    assert (event["xid.pci_address"], event["process.pid"]) == ("0000:65:00", 1234)
    assert "fallen off the bus" in event["xid.meaning"]


def test_a_rotation_and_a_kill_lose_and_repeat_nothing(bench: SyslogBench) -> None:
    bench.append(bench.kernel, "kernel: number 1")
    with running(*bench.arguments) as command:
        bench.row_with("number 1")
        until(lambda: bench.groups()["file"]["held_records"] == 0, "nothing held")
        command.signal(signal.SIGKILL)
        command.wait()
    bench.append(bench.kernel, "kernel: number 2")
    bench.kernel.rename(f"{bench.kernel}.1")
    bench.append(bench.kernel, "kernel: number 3")
    with running(*bench.arguments):
        bench.row_with("number 2")
        bench.row_with("number 3")
    assert len(bench.rows()) == 3


@pytest.mark.parametrize("setting", sorted(SystemLogsConfig.model_fields))
def test_each_setting_names_files(bench: SyslogBench, setting: str) -> None:
    other = bench.directory / "other.log"
    bench.append(other, "wanted")
    left_out = {"kernel", "auth"} - {setting}
    bench.write(receivers=f'{{system_logs: {{{setting}: ["{other}"], {left_out.pop()}: []}}}}')
    with running(*bench.arguments):
        assert bench.row_with("wanted")["log.stream"] == setting


def test_the_printed_configuration_shows_the_files(bench: SyslogBench) -> None:
    printed = run("run", str(bench.file), "--print-config", "--data-dir", str(bench.data_dir))
    assert printed.returncode == 0, printed.stderr
    assert str(bench.kernel) in printed.stdout
    assert str(bench.auth) in printed.stdout

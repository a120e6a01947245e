"""The real command reads a kernel's log: this machine's own where it may, and a pipe in its place that overwrites and is refused."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from emp_pipe.receivers.kmsg import KmsgConfig
from tests.support.command import run, running, until
from tests.support.command_bench import Bench, rows_in

XID = "NVRM: Xid (PCI:0000:65:00): 79, pid=1234, name=python3, GPU has fallen off the bus."


class KernelBench(Bench):
    """A process that reads a pipe as the kernel's log."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.device = directory / "kmsg"
        os.mkfifo(self.device)
        self.end = os.open(self.device, os.O_RDWR)
        self.boot_id = directory / "boot_id"
        self.boot_id.write_text("one")
        self.read()

    def read(self, settings: str = "") -> None:
        self.write(receivers=f'{{kmsg: {{path: "{self.device}", boot_id_path: "{self.boot_id}", retry_s: 0.1{settings}}}}}')

    def say(self, *lines: str) -> None:
        os.write(self.end, "".join(f"{line}\n" for line in lines).encode())

    def messages(self) -> list[str]:
        return [row["message"] for row in rows_in(self.data_dir)]

    def until_messages(self, *expected: str) -> None:
        until(lambda: self.messages() == list(expected), f"the messages {expected}, not {self.messages()}")


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[KernelBench]:
    made = KernelBench(tmp_path)
    yield made
    os.close(made.end)


def test_this_machines_kernel_log_is_read_with_its_sequence_numbers(tmp_path: Path) -> None:
    try:
        device = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK)
        first = os.read(device, 16384)
        os.close(device)
    except OSError as error:
        pytest.skip(f"not run: /dev/kmsg cannot be read here ({error.strerror})")
    bench = Bench(tmp_path)
    bench.write(receivers="{kmsg: {}}")
    with running(*bench.arguments):
        rows = until(lambda: rows_in(bench.data_dir), "rows of the kernel's log")
        assert rows[0]["kmsg.sequence"] >= int(first.split(b",")[1])
        assert rows[0]["log.stream"] == "kernel"


def test_a_kill_repeats_nothing_and_an_xid_is_an_error_event(bench: KernelBench) -> None:
    bench.say(f"4,1,1,-;{XID}")
    with running(*bench.arguments) as command:
        bench.until_messages(XID)
        until(lambda: bench.groups()["file"]["held_records"] == 0, "nothing held")
        command.signal(signal.SIGKILL)
        command.wait()
    bench.say(f"4,1,1,-;{XID}", "6,2,2,-;next")
    with running(*bench.arguments):
        bench.until_messages(XID, "next")
    row = rows_in(bench.data_dir)[0]
    assert (row["level"], row["event_type"], row["xid.number"]) == ("error", "error_xid", 79)


def test_what_was_overwritten_is_said_and_counted(bench: KernelBench) -> None:
    with running(*bench.arguments) as command:
        bench.say("6,1,1,-;one", "6,100,2,-;after a flood")
        command.wait_for("the kernel overwrote 98 records")
        bench.until_messages("one", "after a flood")
        assert bench.metric("emp_pipe_kmsg_overwritten_records_total", component="kmsg") == 98


def _elsewhere(bench: KernelBench) -> None:
    bench.say("6,1,1,-;wanted")


def _another_boot(bench: KernelBench) -> None:
    bench.say("6,9,1,-;wanted")
    with running(*bench.arguments) as command:
        bench.until_messages("wanted")
        until(lambda: bench.groups()["file"]["held_records"] == 0, "nothing held")
        command.signal(signal.SIGTERM)
        command.wait()
    bench.say("6,9,1,-;known")
    bench.boot_id.write_text("one")


def _from_the_end(bench: KernelBench) -> None:
    bench.device.unlink()
    bench.device.write_text("6,1,1,-;old\n")
    bench.read(", from: end")
    with running(*bench.arguments) as command:
        until(lambda: bench.metric("emp_pipe_source_troubles_times_total", reason="read"), "the end was read")
        command.signal(signal.SIGKILL)
        command.wait()
    bench.device.write_text("")
    bench.device.unlink()
    os.mkfifo(bench.device)
    os.close(bench.end)
    bench.end = os.open(bench.device, os.O_RDWR)
    bench.read()
    bench.say("6,2,1,-;wanted")


def _not_there_yet(bench: KernelBench) -> None:
    bench.device.rename(bench.directory / "away")
    with running(*bench.arguments) as command:
        command.wait_for("cannot be read")
        (bench.directory / "away").rename(bench.device)
        bench.say("6,1,1,-;wanted")
        bench.until_messages("wanted")
        command.wait_for("can be read again")
        until(lambda: bench.groups()["file"]["held_records"] == 0, "nothing held")


SETTINGS: dict[str, Callable[[KernelBench], None]] = {
    "path": _elsewhere,
    "boot_id_path": _another_boot,
    "from_": _from_the_end,
    "retry_s": _not_there_yet,
}


@pytest.mark.parametrize("name", SETTINGS)
def test_each_setting_decides_what_is_read(bench: KernelBench, name: str) -> None:
    SETTINGS[name](bench)
    with running(*bench.arguments):
        bench.until_messages("wanted")


def test_every_setting_has_a_case() -> None:
    assert set(KmsgConfig.model_fields) == SETTINGS.keys()


def test_the_printed_configuration_shows_the_device(bench: KernelBench) -> None:
    printed = run("run", str(bench.file), "--print-config", "--data-dir", str(bench.data_dir))
    assert printed.returncode == 0, printed.stderr
    assert f"path: {bench.device}" in printed.stdout or f'path: "{bench.device}"' in printed.stdout

"""The kernel's log: each record once, gaps counted, and a device that cannot be read harms nothing. A pipe stands in for the device."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emp_pipe.receivers import kmsg
from emp_pipe.receivers.kmsg import KmsgConfig, KmsgReceiver, read_record
from tests.support.context import make_context
from tests.support.own_reading import KeptIntake, reading

XID = "NVRM: Xid (PCI:0000:65:00): 79, pid=1234, name=python3, GPU has fallen off the bus."


class Device:
    """A pipe in the place of /dev/kmsg, and the boot that the kernel says."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "kmsg"
        os.mkfifo(self.path)
        self._end = os.open(self.path, os.O_RDWR)
        self.boot_id_path = directory / "boot_id"
        self.boot_id_path.write_text("boot-1\n")

    def write(self, *lines: str) -> None:
        os.write(self._end, "".join(f"{line}\n" for line in lines).encode())

    def receiver(self, **settings: Any) -> KmsgReceiver:
        config = KmsgConfig(**{"path": self.path, "boot_id_path": self.boot_id_path, "retry_s": 0.05, **settings})
        return KmsgReceiver("kmsg", config, make_context())

    def close(self) -> None:
        os.close(self._end)


@pytest.fixture
def device(tmp_path: Path) -> Iterator[Device]:
    made = Device(tmp_path)
    yield made
    made.close()


def counted(receiver: KmsgReceiver, name: str, **labels: str) -> float:
    return receiver.context.metrics.registry.get_sample_value(f"emp_pipe_{name}_total", {"component": "kmsg", **labels}) or 0.0


async def test_a_record_has_its_level_time_facility_and_fields(device: Device) -> None:
    receiver, intake = device.receiver(), KeptIntake()
    async with reading(receiver, intake):
        device.write("3,7,5000000,-;usb 1-1: broke", " SUBSYSTEM=usb", " DEVICE=c189:1")
        device.write("30,8,5000001,-;systemd[1]: up")
        await intake.until(lambda: len(intake.rows) == 2)
    first, second = intake.rows
    assert (first["message"], first["level"], first["log.stream"]) == ("usb 1-1: broke", "error", "kernel")
    assert (first["kmsg.subsystem"], first["kmsg.device"], first["kmsg.sequence"]) == ("usb", "c189:1", 7)
    assert first["service.name"] == "kernel"
    assert (second["syslog.facility"], second["level"]) == ("daemon", "info")
    assert first["timestamp"] < second["timestamp"]


async def test_the_sequence_is_the_checkpoint_and_a_restart_repeats_nothing(device: Device) -> None:
    intake = KeptIntake()
    async with reading(device.receiver(), intake):
        device.write("6,1,1,-;one", "6,2,2,-;two")
        await intake.until(lambda: len(intake.rows) == 2)
    async with reading(device.receiver(), intake):
        device.write("6,1,1,-;one", "6,2,2,-;two", "6,3,3,-;three")
        await intake.until(lambda: len(intake.rows) == 3)
    assert intake.messages() == ["one", "two", "three"]
    assert json.loads(intake.checkpoints["kmsg@gpu-test/sequence"]) == {"boot": "boot-1", "sequence": 3}


async def test_after_a_reboot_numbers_begin_anew_and_everything_is_read(device: Device) -> None:
    intake = KeptIntake()
    async with reading(device.receiver(), intake):
        device.write("6,900,1,-;before")
        await intake.until(lambda: intake.rows)
    device.boot_id_path.write_text("boot-2\n")
    async with reading(device.receiver(), intake):
        device.write("6,0,1,-;Linux version", "6,1,2,-;Command line")
        await intake.until(lambda: len(intake.rows) == 3)
    assert intake.messages() == ["before", "Linux version", "Command line"]


async def test_overwritten_records_are_counted_also_those_of_the_time_between_two_runs(device: Device) -> None:
    intake = KeptIntake()
    async with reading(first := device.receiver(), intake):
        device.write("6,10,1,-;a", "6,15,2,-;b")
        await intake.until(lambda: len(intake.rows) == 2)
        assert counted(first, "kmsg_overwritten_records") == 4
    async with reading(second := device.receiver(), intake):
        device.write("6,20,3,-;c")
        await intake.until(lambda: len(intake.rows) == 3)
    assert counted(second, "kmsg_overwritten_records") == 4


async def test_what_came_before_the_first_start_is_no_loss(device: Device) -> None:
    receiver, intake = device.receiver(), KeptIntake()
    async with reading(receiver, intake):
        device.write("6,5000,1,-;the oldest that is there")
        await intake.until(lambda: intake.rows)
    assert counted(receiver, "kmsg_overwritten_records") == 0


async def test_an_xid_is_an_error_event_and_only_the_kernel_itself_can_make_one(device: Device) -> None:
    receiver, intake = device.receiver(), KeptIntake()
    async with reading(receiver, intake):
        device.write(f"4,1,1,-;{XID}", f"12,2,2,-;{XID}")
        await intake.until(lambda: len(intake.rows) == 2)
    event, claimed = intake.rows
    assert (event["level"], event["event_type"], event["xid.number"]) == ("error", "error_xid", 79)
    assert (event["xid.pci_address"], event["process.pid"], event["process.executable.name"]) == ("0000:65:00", 1234, "python3")
    assert event["message"] == XID
    assert "event_type" not in claimed
    batch = intake.arrivals[0].batch
    assert batch is not None
    assert (batch.event_count, batch.error_count) == (1, 1)


async def test_lines_that_are_no_records_become_dead_letters_and_the_others_are_kept(device: Device) -> None:
    receiver, intake = device.receiver(), KeptIntake()
    async with reading(receiver, intake):
        device.write("6,1,1,-;one", "garbage", "6,x,1,-;no number", "6,2,1,-;two")
        await intake.until(lambda: len(intake.rows) == 2)
    assert [letter.payload for letter in intake.dead] == [b"garbage", b"6,x,1,-;no number"]
    arrived = sum(arrival.received for arrival in intake.arrivals)
    assert arrived == len(intake.rows) + len(intake.dead)


async def test_text_that_the_kernel_escaped_is_text_again(device: Device) -> None:
    receiver, intake = device.receiver(), KeptIntake()
    async with reading(receiver, intake):
        device.write("6,1,1,-;" + "".join(f"\\x{byte:02x}" for byte in "温度 high".encode()) + "\\xff")
        await intake.until(lambda: intake.rows)
    assert intake.messages() == ["温度 high\ufffd"]


async def test_rows_that_the_log_refuses_are_handed_over_again_and_not_twice(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("emp_pipe.own_reading._AGAIN_S", 0.01)
    receiver, intake = device.receiver(), KeptIntake()
    intake.refusing = 3
    async with reading(receiver, intake):
        device.write("6,1,1,-;one")
        await intake.until(lambda: intake.rows)
        device.write("6,2,1,-;two")
        await intake.until(lambda: len(intake.rows) == 2)
    assert intake.messages() == ["one", "two"]


@pytest.mark.parametrize(
    ("number", "reason", "advice"),
    [(errno.EPERM, "permission", "CAP_SYSLOG"), (errno.EACCES, "permission", "dmesg_restrict"), (errno.ENOENT, "missing", "")],
)
async def test_a_device_that_may_not_be_read_is_said_once_counted_and_read_once_it_may(
    device: Device, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, number: int, reason: str, advice: str
) -> None:
    refusals = 5
    real_open = os.open

    def refuse(path: Any, *arguments: Any, **more: Any) -> int:
        nonlocal refusals
        if path == device.path and refusals:
            refusals -= 1
            raise OSError(number, os.strerror(number))
        return real_open(path, *arguments, **more)

    caplog.set_level("INFO")
    monkeypatch.setattr(kmsg.os, "open", refuse)
    receiver, intake = device.receiver(retry_s=0.01), KeptIntake()
    device.write("6,1,1,-;there")
    async with reading(receiver, intake):
        await intake.until(lambda: intake.rows)
    said = [record.getMessage() for record in caplog.records if "cannot be read" in record.getMessage()]
    assert len(said) == 1
    assert advice in said[0]
    assert any("can be read again" in record.getMessage() for record in caplog.records)
    assert counted(receiver, "source_troubles_times", reason=reason) == 5


async def test_a_read_that_fails_because_records_were_overwritten_goes_on_behind_them(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    real_read = os.read
    broken = iter([OSError(errno.EPIPE, "overwritten")] * 2)

    def read(descriptor: int, size: int) -> bytes:
        if size == kmsg._READ_BYTES and (error := next(broken, None)):
            raise error
        return real_read(descriptor, size)

    monkeypatch.setattr(kmsg.os, "read", read)
    receiver, intake = device.receiver(), KeptIntake()
    device.write("6,7,1,-;behind")
    async with reading(receiver, intake):
        await intake.until(lambda: intake.rows)
    assert intake.messages() == ["behind"]
    assert counted(receiver, "source_troubles_times", reason="read") == 0


@given(st.binary(max_size=300))
def test_no_bytes_can_break_the_reading_of_a_record(data: bytes) -> None:
    read_record(data)
    read_record(b"6,1,1,-;" + data)

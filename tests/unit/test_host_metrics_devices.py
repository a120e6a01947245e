"""Devices and the system: mounts of every shape, a file system that hangs, counters that waver, kernels that say nothing usable."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from opentelemetry.semconv._incubating.metrics import container_metrics, process_metrics, system_metrics

from emp_pipe.readings import Readings
from emp_pipe.receivers import host_metrics_devices as devices
from emp_pipe.receivers.host_metrics import HostMetricsConfig, HostMetricsReceiver
from emp_pipe.receivers.host_metrics_devices import Mounts, Network, parse_mounts
from emp_pipe.receivers.host_metrics_system import Cpu, OpenFiles, Paging, Pressure, pairs
from tests.support.context import make_context
from tests.support.reading import Kept, of_name, receiving, until
from tests.unit.test_repository import ROOT

NOW = 1_760_000_000_000_000_000


def mount(point: str, type_: str = "ext4", number: str = "8:1", options: str = "rw", root: str = "/", device: str = "/dev/sda1") -> str:
    return f"30 1 {number} {root} {point} {options},relatime shared:1 - {type_} {device} rw\n"


def mounts(tmp_path: Path, *lines: str, types: tuple[str, ...] = (), points: tuple[str, ...] = ()) -> Mounts:
    (tmp_path / "self").mkdir(exist_ok=True)
    (tmp_path / "self/mountinfo").write_text("".join(lines))
    return Mounts(tmp_path, types, points)


def points_of_all(found: Mounts) -> list[str]:
    return [each.point for each in found.find()]


# --- mounts -------------------------------------------------------------------------------------------


def test_each_device_is_read_once_at_its_shortest_path(tmp_path: Path) -> None:
    found = mounts(tmp_path, mount("/etc/hosts", root="/x"), mount("/"), mount("/var/lib/docker"), mount("/data", number="8:2"))
    assert points_of_all(found) == ["/", "/data"]


def test_file_systems_of_the_kernel_are_left_out_and_shared_memory_stays(tmp_path: Path) -> None:
    kernel = [mount(f"/k{at}", type_, f"0:{at}") for at, type_ in enumerate(sorted(devices.PSEUDO_TYPES))]
    found = mounts(tmp_path, *kernel, mount("/run", "tmpfs", "0:90"), mount("/dev/shm", "tmpfs", "0:91"), mount("/", "overlay", "0:92"))
    assert points_of_all(found) == ["/", "/dev/shm"]


def test_network_file_systems_are_read(tmp_path: Path) -> None:
    lines = [mount(f"/mnt/{type_}", type_, f"0:{at}") for at, type_ in enumerate(("nfs4", "cifs", "fuse.mfs", "ceph"), 40)]
    assert len(points_of_all(mounts(tmp_path, *lines))) == 4


def test_names_with_blanks_and_bytes_that_are_no_text_are_read(tmp_path: Path) -> None:
    line = b"30 1 8:1 / /mnt/my\\040disk\\134\\377 rw - ext4 /dev/sd\xff rw\n"
    found = parse_mounts(line)[0]
    assert os.fsencode(found.point) == b"/mnt/my disk\\\xff"
    assert os.fsencode(found.device) == b"/dev/sd\xff"


@pytest.mark.parametrize("text", [b"", b"\n\n", b"garbage", b" - ", b"1 2 3 4 - a b", b"\xff" * 500, b"30 1 8:1 / /x rw - ext4"])
def test_lines_that_are_no_mounts_are_left_out(text: bytes) -> None:
    found = parse_mounts(text + b"\n" + mount("/data").encode())
    assert [each.point for each in found] == ["/data"]


def test_what_is_excluded_and_what_is_too_much_is_left_out(tmp_path: Path) -> None:
    lines = [mount(f"/mnt/{at}", number=f"9:{at}") for at in range(200)]
    assert len(points_of_all(mounts(tmp_path, *lines))) == 64
    assert points_of_all(mounts(tmp_path, mount("/a"), mount("/b", "xfs", "8:2"), types=("x*",))) == ["/a"]
    assert points_of_all(mounts(tmp_path, mount("/a"), mount("/b/c", number="8:2"), points=("/b/*",))) == ["/a"]


def test_read_only_is_told(tmp_path: Path) -> None:
    assert [each.is_read_only for each in parse_mounts((mount("/a", options="ro") + mount("/b")).encode())] == [True, False]


# --- a file system that hangs -------------------------------------------------------------------------


@pytest.fixture
def dead_mount(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """/dev/shm answers nobody before the event is set."""
    back, statvfs = threading.Event(), os.statvfs

    def hanging(path: str) -> os.statvfs_result:
        if path == "/dev/shm":
            back.wait()
        return statvfs(path)

    monkeypatch.setattr(devices.os, "statvfs", hanging)
    yield back
    back.set()


async def test_a_file_system_that_hangs_holds_up_no_other_and_is_read_again_when_it_is_back(
    dead_mount: threading.Event, caplog: pytest.LogCaptureFixture
) -> None:
    kept = Kept()
    config = HostMetricsConfig(interval_s=0.02, timeout_s=0.2, sections=("load", "filesystems"))
    receiver = HostMetricsReceiver("host_metrics", config, make_context())
    begun = threading.active_count()
    async with receiving(receiver, kept):
        await kept.wait_for(5)
        at = {point.attributes["system.filesystem.mountpoint"] for point in of_name(kept.points(), "system.filesystem.usage")}
        assert "/" in at
        assert "/dev/shm" not in at
        assert threading.active_count() <= begun + 8
        dead_mount.set()
        await until(lambda: of_name(kept.points(), "system.filesystem.usage", system__filesystem__mountpoint="/dev/shm"))
    said = [record.getMessage() for record in caplog.records if "/dev/shm" in record.getMessage() and record.levelname == "WARNING"]
    assert len(said) == 1


async def test_a_machine_whose_mounts_cannot_be_listed_is_read_all_the_same(tmp_path: Path) -> None:
    kept = Kept()
    config = HostMetricsConfig(interval_s=0.02, sections=("load", "filesystems", "files"))
    async with receiving(HostMetricsReceiver("host_metrics", config, make_context(), proc=tmp_path), kept):
        await kept.wait_for(2)
    assert {point.name for point in kept.points()} == {
        "system.uptime",
        *(f"system.cpu.load_average.{each}" for each in ("1m", "5m", "15m")),
    }


# --- the system ---------------------------------------------------------------------------------------


def cpu_readings(monkeypatch: pytest.MonkeyPatch, *idle: float) -> list[Readings]:
    values = iter(idle)
    monkeypatch.setattr(psutil, "cpu_times", lambda percpu: [SimpleNamespace(user=10.0, idle=next(values))])
    cpu, found = Cpu(1, True), []
    for _ in idle:
        found.append(Readings(NOW))
        cpu.read(found[-1])
    return found


def test_processor_time_that_wavers_back_stays_and_no_share_is_below_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    found = cpu_readings(monkeypatch, 100.0, 99.5, 101.0, 5.0)
    idle = [
        point.value
        for each in found
        for point in each.points
        if point.name == "system.cpu.time" and ("cpu.mode", "idle") in point.attributes
    ]
    assert idle == [100.0, 100.0, 101.0, 5.0]
    assert all(0 <= point.value <= 1 for each in found for point in each.points if point.name == "system.cpu.utilization")


@pytest.mark.parametrize("text", ["", "some\n", "some avg10=x total=y\n", "none avg10=1.0 total=5\n", "\xff\x00", "some total=-1 avg10=\n"])
def test_pressure_that_is_none_is_left_out(tmp_path: Path, text: str) -> None:
    for name in ("cpu", "memory"):
        (tmp_path / name).write_text(text, encoding="latin-1")
    (tmp_path / "io").write_text("some avg10=50.00 avg60=0.00 avg300=0.00 total=2000000\n")
    readings = Readings(NOW)
    Pressure(tmp_path, 1).read(readings)
    assert {dict(point.attributes)["pressure.resource"] for point in readings.points} == {"io"}
    assert [point.value for point in readings.points if point.name == "system.pressure.stall_time"] == [2.0]


def test_a_kernel_without_pressure_says_nothing(tmp_path: Path) -> None:
    readings = Readings(NOW)
    Pressure(tmp_path / "none", 1).read(readings)
    assert len(readings) == 0


def test_open_files_are_those_in_use(tmp_path: Path) -> None:
    (tmp_path / "sys/fs").mkdir(parents=True)
    (tmp_path / "sys/fs/file-nr").write_text("1500\t100\t9223372036854775807\n")
    readings = Readings(NOW)
    OpenFiles(tmp_path).read(readings)
    assert [point.value for point in readings.points] == [1400, 9223372036854775807]


def test_what_the_kernel_does_not_count_is_not_told(tmp_path: Path) -> None:
    (tmp_path / "vmstat").write_text("pswpin 5\nbroken\npgfault x\n")
    readings = Readings(NOW)
    Paging(tmp_path, 1).read(readings)
    names = [point.name for point in readings.points]
    assert names.count("system.paging.operations") == 1
    assert "system.paging.faults" not in names
    assert pairs(b"a 1\nb\nc -1\nd 2 3\n\xff 7\n") == {"a": 1, "\ufffd": 7}


def test_connections_are_counted_by_state_of_both_families(tmp_path: Path) -> None:
    (tmp_path / "net").mkdir()
    line = " 0: 0100007F:1F90 00000000:0000 {} 00000000:00000000\n"
    (tmp_path / "net/tcp").write_text("head\n" + line.format("0A") + line.format("01") * 3 + "broken\n" + line.format("FF"))
    (tmp_path / "net/tcp6").write_text("head\n" + line.format("01"))
    readings = Readings(NOW)
    Network(tmp_path, ("*",), 1).read(readings)
    counts = {dict(point.attributes)["network.connection.state"]: point.value for point in readings.points}
    assert (counts["established"], counts["listen"], counts["time_wait"]) == (4, 1, 0)


# --- names --------------------------------------------------------------------------------------------


async def test_every_name_and_unit_is_that_of_the_conventions_or_is_told_to_be_ours() -> None:
    known = {
        value: getattr(module, name)
        for module in (system_metrics, process_metrics, container_metrics)
        for name, value in vars(module).items()
        if name.isupper() and isinstance(value, str)
    }
    page = (ROOT / "docs/host.md").read_text()
    kept = Kept()
    receiver = HostMetricsReceiver("host_metrics", HostMetricsConfig(interval_s=0.02, container="always"), make_context())
    async with receiving(receiver, kept):
        await kept.wait_for(2)
    names = {point.name for point in kept.points()}
    assert {name for name in names if f"`{name}`" not in page and f"`.{name.rpartition('.')[2]}`" not in page} == set()
    assert len(names & known.keys()) >= 30
    assert not {name for name in names & known.keys() if "deprecated" in str(known[name]).lower()}

"""`emp-pipe` with host metrics: each thing that is asked of a machine comes out of the real /proc; each setting does what it says."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.support.command import run, running, until
from tests.support.command_bench import Bench
from tests.support.host_processes import comfyui, pm2
from tests.support.reading import Point, of_name, points_of_line


def points_in(bench: Bench) -> list[Point]:
    """Return the points that the `file` exporter has written, but for a line that is being written."""
    found = []
    for path in sorted(bench.data_dir.rglob("metrics*.json*")):
        for line in path.read_bytes().splitlines():
            try:
                found += points_of_line(json.loads(line))
            except ValueError:
                continue
    return found


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], list[Point]]]:
    """A command that reads a machine with a ComfyUI and an app of PM2; what it said of a name, as soon as it did."""
    folder = tmp_path_factory.mktemp("machine")
    bench = Bench(folder)
    bench.write(receivers="{host_metrics: {interval_s: 0.3, named_processes: {sleeper: 'host-metrics-[s]leeper'}}}")
    with comfyui(folder, 18_188, "worker-007"), pm2() as daemon, running(*bench.arguments):

        def said(name: str, **attributes: Any) -> list[Point]:
            found: list[Point] = until(lambda: of_name(points_in(bench), name, **attributes), f"{name} {attributes}")
            return found

        said("process.instances", process__name="api")
        daemon.tell("restart")
        yield said


def test_processor_time_is_told_by_mode_and_core(machine: Any) -> None:
    cores = {point.attributes["cpu.logical_number"] for point in machine("system.cpu.time", cpu__mode="user")}
    assert cores == set(range(psutil.cpu_count() or 0))
    for mode in ("user", "nice", "system", "idle", "iowait", "interrupt", "steal"):
        point = machine("system.cpu.time", cpu__mode=mode)[0]
        assert (point.kind, point.unit) == ("counter", "s")
    assert all(0 <= point.value <= 1 for point in machine("system.cpu.utilization"))


def test_load_is_told(machine: Any) -> None:
    for minutes in ("1m", "5m", "15m"):
        assert machine(f"system.cpu.load_average.{minutes}")[0].value >= 0
    assert machine("system.uptime")[0].value > 0


def test_memory_is_told_by_state_and_the_states_are_the_whole(machine: Any) -> None:
    found = machine("system.memory.usage")
    first = [point.value for point in found if point.time_unix_nano == found[0].time_unix_nano]
    assert len(first) == 4
    assert sum(first) == machine("system.memory.limit")[0].value == psutil.virtual_memory().total


def test_swap_is_told_with_what_goes_in_and_out(machine: Any) -> None:
    for state in ("used", "free"):
        assert machine("system.paging.usage", system__paging__state=state)[0].value >= 0
    for direction in ("in", "out"):
        assert machine("system.paging.operations", system__paging__direction=direction)[0].kind == "counter"
    for kind in ("major", "minor"):
        assert machine("system.paging.faults", system__paging__fault__type=kind)[0].value >= 0


@pytest.mark.skipif(not psutil.disk_io_counters(perdisk=True), reason="this machine shows no disks")
def test_disks_are_told(machine: Any) -> None:
    for name in ("io", "operations", "operation_time", "merged"):
        for direction in ("read", "write"):
            assert machine(f"system.disk.{name}", disk__io__direction=direction)[0].kind == "counter"


def test_file_systems_are_told_with_what_is_used_of_them(machine: Any) -> None:
    root = {"system__filesystem__mountpoint": "/"}
    parts = {
        state: machine("system.filesystem.usage", **root, system__filesystem__state=state)[0].value
        for state in ("used", "free", "reserved")
    }
    assert sum(parts.values()) == machine("system.filesystem.limit", **root)[0].value
    assert 0 < machine("system.filesystem.utilization", **root)[0].value <= 1


def test_the_network_is_told_by_interface_and_direction(machine: Any) -> None:
    assert set(psutil.net_io_counters(pernic=True)) - {"lo"}
    for name in ("io", "packet.count", "packet.dropped", "errors"):
        for direction in ("transmit", "receive"):
            assert machine(f"system.network.{name}", network__io__direction=direction)[0].kind == "counter"
    assert all(point.attributes["network.interface.name"] != "lo" for point in machine("system.network.io"))
    assert machine("system.network.connection.count", network__connection__state="listen")[0].value >= 1


def test_the_processes_that_use_the_most_are_told_by_pid(machine: Any) -> None:
    for name in ("process.cpu.time", "process.memory.usage", "process.thread.count", "process.unix.file_descriptor.count"):
        assert len({point.resource["process.pid"] for point in machine(name)}) >= 5
    assert machine("system.process.count", process__state="running")
    assert machine("process.cpu.utilization")


def test_a_comfyui_is_told_by_its_port_and_worker(machine: Any) -> None:
    assert machine("process.instances", process__name="comfyui-18188")[0].value == 1
    of_it = [point for point in machine("process.memory.usage") if point.resource.get("process.name") == "comfyui-18188"]
    assert of_it[0].resource["worker_id"] == "worker-007"


def test_an_app_of_pm2_is_told_by_its_name_with_its_restarts(machine: Any) -> None:
    restarted = until(lambda: [each for each in machine("process.restarts", process__name="api") if each.value == 1], "one restart")
    assert restarted[0].kind == "counter"
    assert restarted[0].attributes["process.kind"] == "pm2"
    apps = [point for point in machine("process.cpu.time") if point.resource.get("process.name") == "api"]
    assert apps[0].resource["worker_id"] == "worker-001"
    assert "hunter2" not in repr(apps)


def test_a_named_process_that_does_not_run_is_told_as_none(machine: Any) -> None:
    assert machine("process.instances", process__name="sleeper")[0].value == 0


def test_open_files_are_told(machine: Any) -> None:
    assert 0 < machine("system.file_descriptor.count")[0].value <= machine("system.file_descriptor.limit")[0].value


@pytest.mark.skipif(not Path("/proc/pressure/cpu").exists(), reason="this kernel has no pressure stall information")
def test_pressure_is_told(machine: Any) -> None:
    for resource in ("cpu", "memory", "io"):
        of = {"pressure__resource": resource, "pressure__kind": "some"}
        assert machine("system.pressure.stall_time", **of)[0].kind == "counter"
        assert 0 <= machine("system.pressure.utilization", **of, pressure__window="10s")[0].value <= 1


# --- settings -----------------------------------------------------------------------------------------


def test_its_settings_are_shown_and_checked(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.write(receivers="{host_metrics: {interval_s: 5, exclude_interfaces: [eth9]}}")
    shown = run(*bench.arguments, "--print-config")
    assert shown.returncode == 0, shown.stderr
    for text in ("interval_s: 5", "eth9", "top_processes: 5", "named_processes", "per_core: true", "container: auto", "timeout_s: 10"):
        assert text in shown.stdout
    bench.write(receivers="{host_metrics: {named_processes: {x: '('}}}")
    refused = run(*bench.arguments, "--print-config")
    assert refused.returncode != 0
    assert "is no regular expression" in refused.stderr


def test_only_the_sections_that_are_named_are_read_and_cores_can_be_told_together(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.write(receivers="{host_metrics: {interval_s: 0.2, sections: [cpu], per_core: false}}")
    with running(*bench.arguments):
        found = until(lambda: of_name(points_in(bench), "system.cpu.utilization") and points_in(bench), "processor time")
    assert {point.name.rpartition(".")[0] for point in found} == {"system.cpu", "system.cpu.logical", "system.cpu.physical"}
    assert all("cpu.logical_number" not in point.attributes for point in found)


def test_what_is_excluded_is_not_told_and_no_process_where_none_is_asked_for(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    settings = "exclude_disks: ['*'], exclude_mounts: ['/dev/*'], exclude_filesystem_types: [ext4, overlay], exclude_interfaces: ['[!l]*']"
    bench.write(receivers=f"{{host_metrics: {{interval_s: 0.2, {settings}, top_processes: 0, container: always}}}}")
    with running(*bench.arguments):
        found = until(lambda: of_name(points_in(bench), "system.network.io") and points_in(bench), "the network")
    assert {point.attributes["network.interface.name"] for point in found if point.name == "system.network.io"} == {"lo"}
    assert not of_name(found, "system.disk.io")
    assert not [point for point in found if str(point.attributes.get("system.filesystem.mountpoint", "")).startswith("/dev/")]
    assert not [point for point in found if point.attributes.get("system.filesystem.type") in ("ext4", "overlay")]
    assert not [point for point in found if "process.pid" in point.resource and "process.name" not in point.resource]
    assert [point for point in found if point.name.startswith("container.")]

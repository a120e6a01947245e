"""A container's own limits: cgroups of both versions, in every place that a limit may stand, and files that say nothing usable."""

from __future__ import annotations

from pathlib import Path

import pytest

from emp_pipe.readings import Readings
from emp_pipe.receivers.host_metrics_cgroup import Container, container_id, find, is_container

ID = "ab" * 32
NOW = 1_760_000_000_000_000_000
V2_MOUNT = "30 23 0:26 / /sys/fs/cgroup ro,nosuid - cgroup2 cgroup rw\n"


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def values(root: Path) -> dict[str, float]:
    readings = Readings(NOW)
    Container(find(root), 1).read(readings)
    return {point.name + "".join(f" {value}" for _, value in point.attributes): point.value for point in readings.points}


def version_2(root: Path, **more: str) -> Path:
    inside = {
        "cpu.max": "250000 100000\n",
        "cpu.stat": "usage_usec 9000000\nuser_usec 6000000\nsystem_usec 3000000\nnr_periods 10\nnr_throttled 4\nthrottled_usec 1500000\n",
        "memory.current": "4000\n",
        "memory.max": "10000\n",
        "memory.stat": "anon 2500\nfile 1500\ninactive_file 1000\n",
        "memory.events": "low 0\nhigh 0\nmax 7\noom 2\noom_kill 2\n",
        "memory.swap.current": "77\n",
        "pids.current": "12\n",
        "pids.max": "100\n",
        "memory.pressure": "some avg10=2.50 avg60=0.00 avg300=0.00 total=3000000\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=0\n",
    }
    inside |= more
    files = {f"sys/fs/cgroup/{name}": text for name, text in inside.items()}
    return write(root, {"proc/self/cgroup": "0::/\n", "proc/self/mountinfo": V2_MOUNT, **files})


def test_limits_and_use_of_version_2_are_read(tmp_path: Path) -> None:
    found = values(version_2(tmp_path))
    assert found["container.cpu.limit"] == 2.5
    assert (found["container.cpu.time user"], found["container.cpu.time system"]) == (6.0, 3.0)
    assert (found["container.cpu.periods"], found["container.cpu.throttled.periods"], found["container.cpu.throttled.time"]) == (10, 4, 1.5)
    assert (found["container.memory.usage"], found["container.memory.working_set"], found["container.memory.rss"]) == (4000, 3000, 2500)
    assert (found["container.memory.limit"], found["container.memory.available"]) == (10_000, 7000)
    assert (found["container.memory.oom_kills"], found["container.memory.swap.usage"]) == (2, 77)
    assert (found["container.pids.count"], found["container.pids.limit"]) == (12, 100)
    assert found["container.pressure.stall_time some memory"] == 3.0
    assert found["container.pressure.utilization some memory 10s"] == 0.025


def version_1(root: Path, path: str = "/docker/x") -> Path:
    mounts = "".join(f"4{at} 1 0:4{at} {path} /sys/fs/cgroup/{name} ro - cgroup cgroup rw\n" for at, name in enumerate(NAMES))
    lines = "".join(f"{at}:{name}:{path}\n" for at, name in enumerate(NAMES))
    return write(
        root,
        {
            "proc/self/cgroup": lines,
            "proc/self/mountinfo": mounts,
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "50000\n",
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
            "sys/fs/cgroup/cpu,cpuacct/cpu.stat": "nr_periods 9\nnr_throttled 3\nthrottled_time 2000000000\n",
            "sys/fs/cgroup/cpu,cpuacct/cpuacct.stat": "user 250\nsystem 50\n",
            "sys/fs/cgroup/memory/memory.usage_in_bytes": "5000\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "8000\n",
            "sys/fs/cgroup/memory/memory.stat": "rss 1\ntotal_rss 2000\ntotal_inactive_file 500\n",
            "sys/fs/cgroup/memory/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 1\n",
            "sys/fs/cgroup/pids/pids.current": "3\n",
            "sys/fs/cgroup/pids/pids.max": "max\n",
        },
    )


NAMES = ("cpu,cpuacct", "memory", "pids")


def test_limits_and_use_of_version_1_are_read(tmp_path: Path) -> None:
    found = values(version_1(tmp_path))
    assert found["container.cpu.limit"] == 0.5
    assert (found["container.cpu.time user"], found["container.cpu.time system"]) == (2.5, 0.5)
    assert (found["container.cpu.throttled.time"], found["container.cpu.throttled.periods"]) == (2.0, 3)
    assert (found["container.memory.usage"], found["container.memory.working_set"], found["container.memory.rss"]) == (5000, 4500, 2000)
    assert (found["container.memory.limit"], found["container.memory.available"], found["container.memory.oom_kills"]) == (8000, 3500, 1)
    assert found["container.pids.count"] == 3
    assert "container.pids.limit" not in found


def test_where_nothing_limits_no_limit_is_told(tmp_path: Path) -> None:
    root = version_2(tmp_path / "2", **{"cpu.max": "max 100000\n", "memory.max": "max\n", "pids.max": "max\n"})
    assert not {name for name in values(root) if name.endswith((".limit", ".available"))}
    root = version_1(tmp_path / "1")
    write(root, {"sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "-1\n"})
    write(root, {"sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n"})
    assert not {name for name in values(root) if name.endswith((".limit", ".available"))}


def test_the_least_limit_of_all_above_counts(tmp_path: Path) -> None:
    below = "sys/fs/cgroup/kubepods/pod1/c1"
    files = {
        "proc/self/cgroup": "0::/kubepods/pod1/c1\n",
        "proc/self/mountinfo": V2_MOUNT,
        f"{below}/memory.current": "10\n",
        f"{below}/memory.max": "9000\n",
        f"{below}/cpu.max": "400000 100000\n",
        "sys/fs/cgroup/kubepods/pod1/memory.max": "500\n",
        "sys/fs/cgroup/kubepods/pod1/cpu.max": "150000 100000\n",
        "sys/fs/cgroup/kubepods/memory.max": "max\n",
    }
    found = values(write(tmp_path, files))
    assert (found["container.memory.limit"], found["container.cpu.limit"]) == (500, 1.5)


@pytest.mark.parametrize("text", ["", "garbage", "-5\n", "9" * 400, "\xff\x00", "max max max\n", "100000 0\n", "1e9 1e5\n", "١٢٣ 100\n"])
def test_files_that_say_nothing_usable_are_left_out_and_the_others_are_read(tmp_path: Path, text: str) -> None:
    broken = {name: text for name in ("cpu.max", "cpu.stat", "memory.max", "memory.stat", "memory.events", "memory.pressure")}
    found = values(version_2(tmp_path, **broken))
    assert found["container.memory.usage"] == 4000
    assert "container.cpu.limit" not in found
    assert "container.memory.limit" not in found


def test_a_container_is_told_from_a_machine(tmp_path: Path) -> None:
    machine = write(tmp_path / "machine", {"proc/self/cgroup": "0::/system.slice/emp-pipe.service\n", "proc/self/mountinfo": V2_MOUNT})
    (machine / "sys/fs/cgroup/system.slice/emp-pipe.service").mkdir(parents=True)
    assert not is_container(find(machine), {}, machine)
    assert is_container(find(machine), {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, machine)
    write(machine, {".dockerenv": ""})
    assert is_container(find(machine), {}, machine)
    own_namespace = version_2(tmp_path / "namespace")
    assert is_container(find(own_namespace), {}, own_namespace)
    docker = version_1(tmp_path / "docker")
    assert is_container(find(docker), {}, docker)


def test_the_containers_id_is_found_in_its_cgroup_or_among_its_mounts(tmp_path: Path) -> None:
    assert container_id(write(tmp_path / "1", {"proc/self/cgroup": f"4:memory:/docker/{ID}\n"})) == ID
    mounts = f"9 1 8:1 /var/lib/docker/containers/{ID}/hostname /etc/hostname rw - ext4 /dev/sda rw\n"
    assert container_id(write(tmp_path / "2", {"proc/self/cgroup": "0::/\n", "proc/self/mountinfo": mounts})) == ID
    assert container_id(write(tmp_path / "3", {"proc/self/cgroup": "0::/\n"})) == ""


def test_without_cgroups_nothing_is_told(tmp_path: Path) -> None:
    assert values(write(tmp_path, {"proc/self/cgroup": "", "proc/self/mountinfo": ""})) == {}

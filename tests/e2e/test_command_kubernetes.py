"""The real command on a node: logs of pods where kubelet puts them, in CRI's format, over rotations and kills."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest

from emp_pipe.receivers.container_files import resource_of_pod_log
from emp_pipe.receivers.kubernetes import KubernetesConfig
from tests.support.command import run, running, until
from tests.support.command_bench import Bench, rows_in

UID = "0b5c3f1e-8a52-4c6e-9d53-8f2f4f7f1a11"


class NodeBench(Bench):
    """A process beside a directory of pods."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.pods = directory / "pods"
        self.log = self.pods / f"gpu-jobs_comfy-7d9f_{UID}" / "worker" / "0.log"
        self.log.parent.mkdir(parents=True)
        self.write(receivers=f'{{kubernetes: {{include: ["{self.pods}/*/*/*.log"]}}}}')

    def append(self, *texts: str) -> None:
        with self.log.open("a") as file:
            file.writelines(f"2025-11-24T16:00:00.123456789Z stdout F {text}\n" for text in texts)

    def rows(self) -> list[dict[str, Any]]:
        return rows_in(self.data_dir)

    def until_messages(self, *expected: str) -> None:
        until(lambda: sorted(row["message"] for row in self.rows()) == sorted(expected), f"the messages {expected}")


@pytest.fixture
def bench(tmp_path: Path) -> NodeBench:
    return NodeBench(tmp_path)


def test_the_path_says_namespace_pod_container_and_restarts(bench: NodeBench) -> None:
    bench.append("hello")
    with running(*bench.arguments):
        bench.until_messages("hello")
    (row,) = bench.rows()
    assert {key: value for key, value in row.items() if key.startswith("k8s.")} == {
        "k8s.namespace.name": "gpu-jobs",
        "k8s.pod.name": "comfy-7d9f",
        "k8s.pod.uid": UID,
        "k8s.container.name": "worker",
        "k8s.container.restart_count": "0",
    }
    assert (row["service.name"], row["service.namespace"]) == ("worker", "gpu-jobs")


def test_a_rotation_by_kubelet_and_a_kill_lose_and_repeat_nothing(bench: NodeBench) -> None:
    bench.append("a")
    with running(*bench.arguments) as command:
        bench.until_messages("a")
        until(lambda: bench.groups()["file"]["held_records"] == 0, "nothing held")
        command.signal(signal.SIGKILL)
        command.wait()
    bench.append("b")
    bench.log.rename(bench.log.parent / "0.log.20251124-160000")
    bench.append("c")
    with running(*bench.arguments):
        bench.until_messages("a", "b", "c")


def test_a_restarted_container_has_a_file_and_a_number_of_its_own(bench: NodeBench) -> None:
    bench.append("first")
    with running(*bench.arguments):
        bench.until_messages("first")
        bench.log = bench.log.parent / "1.log"
        bench.append("second")
        bench.until_messages("first", "second")
    assert [row["k8s.container.restart_count"] for row in bench.rows()] == ["0", "1"]


@pytest.mark.parametrize(
    "path",
    [
        "",
        "0.log",
        "/a/b/c.log",
        "/var/log/pods/no_pod/c/0.log",
        f"/var/log/pods/UPPER_pod_{UID}/c/0.log",
        f"/var/log/pods/n_p_{UID}//0.log",
    ],
)
def test_a_path_of_another_form_says_nothing(path: str) -> None:
    assert resource_of_pod_log(path) == {}


def test_every_setting_has_a_case() -> None:
    assert set(KubernetesConfig.model_fields) == {"include"}  # all tests above set it


def test_the_printed_configuration_shows_the_pods(bench: NodeBench) -> None:
    printed = run("run", str(bench.file), "--print-config", "--data-dir", str(bench.data_dir))
    assert printed.returncode == 0, printed.stderr
    assert f"{bench.pods}/*/*/*.log" in printed.stdout

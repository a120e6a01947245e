"""`make demo` is the first thing that somebody sees: it must tell the truth about what arrived, and leave nothing behind when stopped."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from demo.arrivals import SCHEMA_NAMES, differences
from demo.otlp_endpoint import LogRow, OtlpEndpoint
from demo.story import Entry, Machine, machine_entries

ROOT = Path(__file__).resolve().parents[2]
MACHINE = Machine("gpu-7f3a", "comfyui", ("worker-001", "worker-002"))
IDENTITY = ("machine_id", "worker_id", "service_type")
SEVERITY = {"debug": 5, "info": 9, "warn": 13, "error": 17}


def arrived(entry: Entry) -> LogRow:
    """Return the row that a perfect pipeline makes of an entry."""
    resource = {key: entry.fields[key] for key in IDENTITY}
    attributes = {SCHEMA_NAMES.get(key, key): value for key, value in entry.fields.items() if key not in IDENTITY}
    return LogRow(1, SEVERITY[entry.level], entry.level, entry.message, resource, attributes)


@pytest.fixture
def sent() -> dict[str, Entry]:
    return {entry.fields["demo_id"]: entry for entry in machine_entries(MACHINE, jobs_per_worker=5, seed=1)}


@pytest.fixture
def rows(sent: dict[str, Entry]) -> list[LogRow]:
    return [arrived(entry) for entry in sent.values()]


def test_the_check_is_content_when_all_arrived_once(sent: dict[str, Entry], rows: list[LogRow]) -> None:
    assert differences(sent, rows) == []


def test_the_check_names_a_lost_record(sent: dict[str, Entry], rows: list[LogRow]) -> None:
    lost = rows.pop(7)
    assert [line for line in differences(sent, rows) if "lost" in line and lost.attributes["demo_id"] in line]


def test_the_check_names_a_repeated_record(sent: dict[str, Entry], rows: list[LogRow]) -> None:
    rows.append(rows[3])
    assert [line for line in differences(sent, rows) if "2 times" in line and rows[3].attributes["demo_id"] in line]


def test_the_check_names_a_record_that_nobody_sent(sent: dict[str, Entry], rows: list[LogRow]) -> None:
    del sent[rows[0].attributes["demo_id"]]
    assert [line for line in differences(sent, rows) if "never sent" in line]


@pytest.mark.parametrize("change", ["body", "severity", "attribute", "identity"])
def test_the_check_names_a_changed_record(sent: dict[str, Entry], rows: list[LogRow], change: str) -> None:
    row = rows[0]
    rows[0] = LogRow(
        row.time_unix_nano,
        1 if change == "severity" else row.severity_number,
        row.severity_text,
        "changed" if change == "body" else row.body,
        {**row.resource, "worker_id": "worker-999"} if change == "identity" else row.resource,
        {**row.attributes, "job_id": "changed"} if change == "attribute" else row.attributes,
    )
    assert [line for line in differences(sent, rows) if "changed" in line]


@pytest.fixture
def environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("DASH0_")}


@pytest.fixture
def demo(tmp_path: Path, environment: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "demo", "--jobs", "2", "--python-only", "--keep", str(tmp_path)],
        cwd=ROOT,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    yield process
    process.kill()
    process.wait()


def test_the_demo_ends_well_and_says_that_all_arrived_exactly_once(demo: subprocess.Popen[str]) -> None:
    output, _ = demo.communicate(timeout=100)
    assert demo.returncode == 0, output
    assert "arrived exactly once" in output
    for word in ("railway-abc123", "gpu-7f3a", "worker-002", "Job received for", "error"):
        assert word in output


@pytest.fixture
def stand_in_for_dash0(environment: dict[str, str]) -> Iterator[OtlpEndpoint]:
    endpoint = OtlpEndpoint()
    environment |= {"DASH0_AUTH_TOKEN": "token-of-the-test", "DASH0_DATASET": "demo", "DASH0_ENDPOINT": endpoint.url}
    yield endpoint
    endpoint.close()


def test_with_a_dash0_token_the_demo_sends_there_and_says_what_was_taken(
    stand_in_for_dash0: OtlpEndpoint, demo: subprocess.Popen[str]
) -> None:
    output, _ = demo.communicate(timeout=100)
    assert demo.returncode == 0, output
    count = len(stand_in_for_dash0.received.rows)
    assert count > 20
    assert f"Dash0 has taken all {count} records" in output
    assert "token-of-the-test" not in output


def test_ctrl_c_ends_the_demo_and_both_processes(demo: subprocess.Popen[str]) -> None:
    assert demo.stdout is not None
    children: list[psutil.Process] = []
    for line in demo.stdout:
        if "Clients log jobs" in line:
            children = psutil.Process(demo.pid).children(recursive=True)
            demo.send_signal(signal.SIGINT)
            break
    output, _ = demo.communicate(timeout=100)
    assert len(children) >= 2
    assert demo.returncode == 130, output
    assert psutil.wait_procs(children, timeout=10)[1] == []

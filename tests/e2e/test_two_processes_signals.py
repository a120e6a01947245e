"""Two real processes, one behind the other: logs, traces and metrics pass with every field, with a shared key and without one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from emp_pipe import control
from tests.support.command import Running, free_port, running, until
from tests.support.otlp_endpoint import OtlpEndpoint
from tests.support.otlp_post import post
from tests.support.otlp_samples import METRIC_KINDS, rich_logs, rich_metric, rich_spans
from tests.support.otlp_strict import in_a_thread


def write(path: Path, *, receivers: str, exporters: str) -> tuple[str, ...]:
    """Write a process's file and return its arguments."""
    path.mkdir()
    file = path / "emp.yaml"
    file.write_text(f'http: {{listen: "127.0.0.1:{free_port()}"}}\nbuffer: sqlite\nreceivers: {receivers}\nexporters: {exporters}\n')
    return ("run", str(file), "--data-dir", str(path / "data"))


@contextmanager
def two_processes(
    directory: Path, first_exporters: str, second_receivers: str, ports: dict[str, int]
) -> Iterator[tuple[OtlpEndpoint, Running]]:
    """OTLP/HTTP into the first, on to the second as given, and by OTLP/HTTP to a strict endpoint. Yields it and the first process."""
    with in_a_thread(OtlpEndpoint()) as endpoint:
        second = write(directory / "second", receivers=second_receivers, exporters=f'{{otlp_http: {{endpoint: "{endpoint.url}"}}}}')
        first = write(directory / "first", receivers=f'{{otlp_http: {{listen: "127.0.0.1:{ports["in"]}"}}}}', exporters=first_exporters)
        with running(*second), running(*first) as process:
            yield endpoint, process
        assert not endpoint.violations


def sent_to(port: int) -> dict[str, list[Any]]:
    """Send a request of each kind; return them by signal."""
    requests: dict[str, list[Any]] = {"traces": [rich_spans()], "metrics": [rich_metric(kind) for kind in METRIC_KINDS]}
    for request in (rich_logs(), *requests["traces"], *requests["metrics"]):
        assert post(port, request) == 200
    return requests


def metrics_of(messages: list[Any]) -> list[Any]:
    """Return metrics in the order of their names: small blocks may be merged on the way, in the order of the log."""
    found = [metric for message in messages for of in message.resource_metrics for scope in of.scope_metrics for metric in scope.metrics]
    return sorted(found, key=lambda metric: str(metric.name))


def assert_all_arrived(endpoint: OtlpEndpoint, sent: dict[str, list[Any]]) -> None:
    until(lambda: len(endpoint.records("metrics")) == len(METRIC_KINDS), "every metric")
    until(lambda: endpoint.records("traces") and endpoint.records("logs"), "the span and the log record")
    assert endpoint.messages("traces") == sent["traces"]
    assert metrics_of(endpoint.messages("metrics")) == metrics_of(sent["metrics"])
    (log,) = endpoint.records("logs")
    assert (log.event_name, log.severity_text, log.trace_id.hex()) == ("job.failed", "ERROR", "0af7651916cd43dd8448eb211c80319c")


def test_with_a_shared_key_all_signals_go_by_forward_as_they_lie(tmp_path: Path) -> None:
    ports = {"in": free_port(), "between": free_port()}
    first = f'{{forward: {{endpoint: "127.0.0.1:{ports["between"]}", shared_key: k}}}}'
    second = f'{{forward: {{listen: "127.0.0.1:{ports["between"]}", shared_key: k}}}}'
    with two_processes(tmp_path, first, second, ports) as (endpoint, _):
        assert_all_arrived(endpoint, sent_to(ports["in"]))


@pytest.mark.parametrize("protocol", ["otlp_http", "otlp_grpc"])
def test_without_one_logs_go_by_forward_and_the_rest_by_otlp(tmp_path: Path, protocol: str) -> None:
    ports = {"in": free_port(), "forward": free_port(), "otlp": free_port()}
    first = (
        f'{{forward: {{endpoint: "127.0.0.1:{ports["forward"]}"}},'
        f' {protocol}: {{endpoint: "http://127.0.0.1:{ports["otlp"]}", only: {{signals: [traces, metrics]}}}}}}'
    )
    second = f'{{forward: {{listen: "127.0.0.1:{ports["forward"]}"}}, {protocol}: {{listen: "127.0.0.1:{ports["otlp"]}"}}}}'
    with two_processes(tmp_path, first, second, ports) as (endpoint, process):
        process.wait_for("forward: sends logs only, for it has no `shared_key`")
        assert_all_arrived(endpoint, sent_to(ports["in"]))
        rows = map(json.loads, control.ask(tmp_path / "first" / "data", {"ask": "groups list"}))
        assert {row["group"]: row["topics"] for row in rows} == {"forward": ["logs"], protocol: ["metrics", "traces"]}

"""The OpenTelemetry Collector, unmodified, before and behind ours: all three signals in both protocols, compared field by field.

as a client:  requests ─▶ Collector ─▶ our receiver ─▶ our exporter ─▶ a strict endpoint
as a server:  requests ─▶ our receiver ─▶ our exporter ─▶ Collector ─▶ a strict endpoint
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from bench.subjects import free_ports
from tests.interop import counterparts
from tests.support.command import PATIENCE_S, Running, running
from tests.support.otlp_endpoint import PROTOBUF, Answer, OtlpEndpoint
from tests.support.otlp_rich import rich_request
from tests.support.otlp_seen import mapping
from tests.support.telemetry import span_request

SIGNALS = ("logs", "traces", "metrics")
WAYS = [("grpc", "none"), ("grpc", "gzip"), ("http", "none"), ("http", "gzip"), ("http", "zstd")]


@pytest.fixture(scope="module")
def program() -> Path:
    try:
        return counterparts.collector()
    except counterparts.Absent as reason:
        pytest.skip(str(reason))


@contextmanager
def collector(program: Path, directory: Path, receiver: dict[str, Any], exporter: dict[str, Any]) -> Iterator[None]:
    """Run a Collector that passes all signals on. `receiver`: the protocols of its otlp receiver."""
    pipeline = {"receivers": ["otlp"], "exporters": list(exporter)}
    config = {
        "receivers": {"otlp": {"protocols": receiver}},
        "exporters": exporter,
        "service": {
            "telemetry": {"metrics": {"level": "none"}, "logs": {"level": "debug"}},
            "pipelines": dict.fromkeys(SIGNALS, pipeline),
        },
    }
    config_file = directory / "collector.json"
    config_file.write_text(json.dumps(config))
    with (directory / "collector.log").open("wb") as log:
        process = subprocess.Popen([program, "--config", config_file], stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + PATIENCE_S
        while "Everything is ready" not in (directory / "collector.log").read_text():
            assert process.poll() is None, (directory / "collector.log").read_text()[-2000:]
            assert time.monotonic() < deadline, "the Collector did not start"
            time.sleep(0.05)
        yield
    finally:
        process.terminate()
        process.wait(PATIENCE_S)


def to(protocol: str, port: int, compression: str = "none", **more: Any) -> dict[str, Any]:
    """The Collector's exporter to a port of loopback."""
    if protocol == "grpc":
        return {"otlp_grpc": {"endpoint": f"127.0.0.1:{port}", "tls": {"insecure": True}, "compression": compression, **more}}
    return {"otlp_http": {"endpoint": f"http://127.0.0.1:{port}", "compression": compression, **more}}


@contextmanager
def emp_pipe(
    directory: Path, receivers: dict[str, Any], exporters: dict[str, Any], buffer: dict[str, Any] | str = "sqlite"
) -> Iterator[tuple[Running, int]]:
    """Run emp-pipe without processors; yields it and its HTTP port."""
    (http_port,) = free_ports(1)
    config = {
        "data_dir": str(directory / "data"),
        "machine_id": "gpu-ours",
        "http": {"listen": f"127.0.0.1:{http_port}"},
        "buffer": buffer,
        "receivers": receivers,
        "processors": [],
        "exporters": exporters,
    }
    config_file = directory / "emp-pipe.json"
    config_file.write_text(json.dumps(config))
    with running("run", str(config_file)) as command:
        yield command, http_port


async def post(port: int, signal: str, message: Any) -> None:
    async with (
        aiohttp.ClientSession() as session,
        session.post(
            f"http://127.0.0.1:{port}/v1/{signal}", data=message.SerializeToString(), headers={"Content-Type": PROTOBUF}
        ) as answer,
    ):
        assert answer.status == 200, await answer.text()


async def metric(http_port: int, name: str, **labels: str) -> float:
    """Return the sum of a metric's values that have these labels; 0 where there is none yet."""
    async with aiohttp.ClientSession() as session, session.get(f"http://127.0.0.1:{http_port}/metrics") as answer:
        lines = (await answer.text()).splitlines()
    lines = [line for line in lines if line.startswith(f"emp_pipe_{name}")]
    wanted = [f'{key}="{value}"' for key, value in labels.items()]
    return sum(
        float(line.rpartition(" ")[2]) for line in lines if line.startswith(f"emp_pipe_{name}") and all(label in line for label in wanted)
    )


async def until_metric(http_port: int, name: str, at_least: int, **labels: str) -> None:
    """Return when a metric, which is published once a second, is so large."""
    value = 0.0
    for _ in range(int(PATIENCE_S * 10)):
        value = await metric(http_port, name, **labels)
        if value >= at_least:
            return
        await asyncio.sleep(0.1)
    pytest.fail(f"{name} stayed {value}")


def flat(signal: str, message: Any) -> list[tuple[dict[str, Any], str, Any, str, Any]]:
    """Return (resource attributes, resource schema, scope, scope schema, row) of each row, in a fixed order."""
    groups = {"logs": "resource_logs", "traces": "resource_spans", "metrics": "resource_metrics"}[signal]
    rows = {"logs": "log_records", "traces": "spans", "metrics": "metrics"}[signal]
    found = [
        (mapping(group.resource.attributes), group.schema_url, scoped.scope, scoped.schema_url, row)
        for group in getattr(message, groups)
        for scoped in getattr(group, groups.replace("resource", "scope"))
        for row in getattr(scoped, rows)
    ]
    return sorted(found, key=lambda item: item[4].SerializeToString(deterministic=True))


def assert_came_through(endpoint: OtlpEndpoint, sent: dict[str, Any]) -> None:
    """Every row once, equal in every field; a resource may have more than was sent, what a receiver stamps on it."""
    assert endpoint.violations == []
    for signal, message in sent.items():
        expected = flat(signal, message)
        arrived = [row for one in endpoint.messages(signal) for row in flat(signal, one)]
        arrived.sort(key=lambda item: item[4].SerializeToString(deterministic=True))
        assert len(arrived) == len(expected), signal
        for (resource, *rest), (came_resource, *came_rest) in zip(expected, arrived, strict=True):
            assert came_resource | resource == came_resource, signal
            assert came_rest == rest, signal


async def all_rows(endpoint: OtlpEndpoint, sent: dict[str, Any]) -> None:
    for signal, message in sent.items():
        await endpoint.wait_records(signal, len(flat(signal, message)), PATIENCE_S)
    await asyncio.sleep(0.3)  # a repeat would come now


@pytest.mark.parametrize(("protocol", "compression"), WAYS)
async def test_all_three_signals_of_the_collector_arrive_field_by_field(
    protocol: str, compression: str, program: Path, tmp_path: Path
) -> None:
    collector_port, our_port = free_ports(2)
    sent = {signal: rich_request(signal) for signal in SIGNALS}
    async with OtlpEndpoint() as endpoint:
        ours = emp_pipe(tmp_path, {f"otlp_{protocol}": {"listen": f"127.0.0.1:{our_port}"}}, {"otlp_http": {"endpoint": endpoint.url}})
        theirs = {"http": {"endpoint": f"127.0.0.1:{collector_port}"}}
        with ours as (_, http_port), collector(program, tmp_path, theirs, to(protocol, our_port, compression)):
            for signal, message in sent.items():
                await post(collector_port, signal, message)
            await all_rows(endpoint, sent)
            await until_metric(http_port, "otlp_received_items_total", sum(len(flat(signal, sent[signal])) for signal in SIGNALS))
            assert await metric(http_port, "otlp_rejected_items_total") == 0
    assert_came_through(endpoint, sent)


@pytest.mark.parametrize(("protocol", "compression"), WAYS)
async def test_the_collector_takes_all_three_signals_of_ours_field_by_field(
    protocol: str, compression: str, program: Path, tmp_path: Path
) -> None:
    collector_port, our_port = free_ports(2)
    sent = {signal: rich_request(signal) for signal in SIGNALS}
    async with OtlpEndpoint() as endpoint:
        exporter = {f"otlp_{protocol}": {"endpoint": f"http://127.0.0.1:{collector_port}", "compression": compression}}
        theirs = {protocol: {"endpoint": f"127.0.0.1:{collector_port}"}}
        ours = emp_pipe(tmp_path, {"otlp_http": {"listen": f"127.0.0.1:{our_port}"}}, exporter)
        with collector(program, tmp_path, theirs, to("http", endpoint.port)), ours:
            for signal, message in sent.items():
                await post(our_port, signal, message)
            await all_rows(endpoint, sent)
    assert_came_through(endpoint, sent)


@pytest.mark.parametrize("protocol", ["grpc", "http"])
async def test_the_collector_sends_again_what_we_had_no_room_for_and_nothing_is_lost_or_repeated(
    protocol: str, program: Path, tmp_path: Path
) -> None:
    collector_port, our_port = free_ports(2)
    requests = [span_request(200, service=f"service-{number}") for number in range(40)]
    for span in (one for message in requests for one in message.resource_spans[0].scope_spans[0].spans):
        span.trace_id, span.span_id = os.urandom(16), os.urandom(8)  # compressed they still fill the buffer, however they are merged
    async with OtlpEndpoint() as endpoint:
        endpoint.always(Answer(status=503, retry_after="1"))
        ours = emp_pipe(
            tmp_path,
            {f"otlp_{protocol}": {"listen": f"127.0.0.1:{our_port}"}},
            {"otlp_http": {"endpoint": endpoint.url, "retry_initial_s": 0.2, "retry_max_s": 1}},
            {"type": "memory", "max_bytes": 65_536},
        )
        retry = {"retry_on_failure": {"initial_interval": "100ms", "max_interval": "1s"}}
        theirs = {"http": {"endpoint": f"127.0.0.1:{collector_port}"}}
        with ours as (_, http_port), collector(program, tmp_path, theirs, to(protocol, our_port, **retry)):
            for message in requests:
                await post(collector_port, "traces", message)
            await until_metric(http_port, "otlp_received_requests_total", 1, code="UNAVAILABLE")
            endpoint.always(None)
            await endpoint.wait_records("traces", 200 * len(requests), PATIENCE_S)
            await asyncio.sleep(1)
    accepted = [flat("traces", message) for message in endpoint.messages("traces")]
    names = sorted(resource["service.name"] for rows in accepted for resource, *_ in rows)
    assert names == sorted(f"service-{number}" for number in range(40) for _ in range(200))


@pytest.mark.parametrize("protocol", ["grpc", "http"])
async def test_what_we_refuse_of_a_request_the_collector_does_not_send_again(protocol: str, program: Path, tmp_path: Path) -> None:
    collector_port, our_port = free_ports(2)
    message = span_request(3)
    message.resource_spans[0].scope_spans[0].spans[1].ClearField("trace_id")
    async with OtlpEndpoint() as endpoint:
        ours = emp_pipe(tmp_path, {f"otlp_{protocol}": {"listen": f"127.0.0.1:{our_port}"}}, {"otlp_http": {"endpoint": endpoint.url}})
        theirs = {"http": {"endpoint": f"127.0.0.1:{collector_port}"}}
        with ours as (_, http_port), collector(program, tmp_path, theirs, to(protocol, our_port)):
            await post(collector_port, "traces", message)
            await endpoint.wait_records("traces", 2, PATIENCE_S)
            await until_metric(http_port, "otlp_rejected_items_total", 1, signal="traces")
            await asyncio.sleep(1.5)  # a request sent again would come, and be counted, now
            assert await metric(http_port, "otlp_received_requests_total", signal="traces") == 1
    assert [row.name for row in endpoint.records("traces")] == ["span 1", "span 3"]
    assert "rejected_spans" in (tmp_path / "collector.log").read_text() or "artial success" in (tmp_path / "collector.log").read_text()


@pytest.mark.parametrize("protocol", ["grpc", "http"])
async def test_what_the_collector_cannot_pass_on_now_we_send_again_until_it_can(protocol: str, program: Path, tmp_path: Path) -> None:
    collector_port, our_port = free_ports(2)
    sent = {signal: rich_request(signal) for signal in SIGNALS}
    async with OtlpEndpoint() as endpoint:
        endpoint.always(Answer(status=503))
        exporter = {f"otlp_{protocol}": {"endpoint": f"http://127.0.0.1:{collector_port}", "retry_initial_s": 0.2, "retry_max_s": 1}}
        theirs = {protocol: {"endpoint": f"127.0.0.1:{collector_port}"}}
        straight = {"sending_queue": {"enabled": False}, "retry_on_failure": {"enabled": False}}
        ours = emp_pipe(tmp_path, {"otlp_http": {"listen": f"127.0.0.1:{our_port}"}}, exporter)
        with collector(program, tmp_path, theirs, to("http", endpoint.port, **straight)), ours:
            for signal, message in sent.items():
                await post(our_port, signal, message)
            await endpoint.wait_until(lambda: endpoint.requests >= 6, PATIENCE_S)
            endpoint.always(None)
            await all_rows(endpoint, sent)
    assert_came_through(endpoint, sent)

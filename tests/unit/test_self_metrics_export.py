"""Own metrics as OTLP: a valid request in the protocol's JSON form, failures counted, never through the pipeline."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from aiohttp import web
from google.protobuf.json_format import ParseDict
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

from emp_pipe.clock import SystemClock
from emp_pipe.component import Context
from emp_pipe.config import SelfMetricsConfig
from emp_pipe.self_metrics import Metrics
from emp_pipe.self_metrics_export import SelfMetricsExport


async def nothing() -> None:
    return


def export_to(url: str, metrics: Metrics, tmp_path: Path, **more: Any) -> SelfMetricsExport:
    settings = SelfMetricsConfig.model_validate({"otlp_endpoint": url, "interval_s": 0.01, **more})
    return SelfMetricsExport(settings, Context(SystemClock(), metrics, tmp_path, "gpu-1", "edge"), nothing)


def test_the_request_holds_every_metric_with_its_labels_and_kind(tmp_path: Path) -> None:
    metrics = Metrics()
    metrics.counter("sent", unit="records", help="Sent.", labels=["component"]).labels("otlp_http").inc(3)
    metrics.gauge("held", unit="bytes", help="Held.").set(7)
    histogram = metrics.histogram("late", unit="seconds", help="Late.", buckets=(0.1, 1.0))
    for value in (0.05, 0.5, 0.6, 9.0):
        histogram.observe(value)
    request = ParseDict(export_to("http://x", metrics, tmp_path).request(), ExportMetricsServiceRequest())
    found = {metric.name: metric for metric in request.resource_metrics[0].scope_metrics[0].metrics}
    sent = found["emp_pipe_sent_records"].sum
    assert sent.is_monotonic
    assert sent.data_points[0].as_double == 3
    assert sent.data_points[0].attributes[0].value.string_value == "otlp_http"
    assert found["emp_pipe_held_bytes"].gauge.data_points[0].as_double == 7
    point = found["emp_pipe_late_seconds"].histogram.data_points[0]
    assert (point.count, list(point.bucket_counts), list(point.explicit_bounds)) == (4, [1, 2, 1], [0.1, 1.0])
    identity = {each.key: each.value.string_value for each in request.resource_metrics[0].resource.attributes}
    assert identity["machine_id"] == "gpu-1"


async def test_exports_go_to_the_endpoint_and_failures_are_counted(tmp_path: Path) -> None:
    statuses = [200, 503, 200]
    bodies: list[Any] = []
    done = asyncio.Event()

    async def take(request: web.Request) -> web.Response:
        bodies.append((request.headers.get("X-Key"), await request.json()))
        if len(bodies) == len(statuses):
            done.set()
        return web.json_response({}, status=statuses[len(bodies) - 1] if len(bodies) <= len(statuses) else 200)

    app = web.Application()
    app.router.add_post("/v1/metrics", take)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    metrics = Metrics()
    export = export_to(f"http://127.0.0.1:{runner.addresses[0][1]}/", metrics, tmp_path, headers={"X-Key": "k"})
    running = asyncio.ensure_future(export.run())
    await asyncio.wait_for(done.wait(), 20)
    running.cancel()
    await asyncio.wait([running])
    await runner.cleanup()
    assert bodies[0][0] == "k"
    assert metrics.registry.get_sample_value("emp_pipe_self_metrics_exports_requests_total", {"outcome": "failure"}) == 1

"""emp-pipe's own metrics as OTLP/HTTP JSON to a destination of their own: no group, no buffer, no loop through the pipeline.

An export that fails is counted and forgotten; the next one carries the totals again. Not here: declaring metrics (`self_metrics.py`).
"""

from __future__ import annotations

import asyncio
import json
import math
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from prometheus_client.core import Metric

from emp_pipe import __version__
from emp_pipe.component import Context
from emp_pipe.config import SelfMetricsConfig
from emp_pipe.delivery.http_client import HttpClient, Target
from emp_pipe.errors import EmpPipeError
from emp_pipe.logs import RateLimitedLogger, get_logger
from emp_pipe.tls import TlsClientConfig, WatchedContext

_CUMULATIVE = 2
_TIMEOUT_S = 10.0


class SelfMetricsExport:
    """Posts the metrics every `interval_s` seconds."""

    def __init__(self, settings: SelfMetricsConfig, context: Context, refresh: Callable[[], Awaitable[None]]) -> None:
        base = (settings.otlp_endpoint or "").rstrip("/")
        self._url = base if base.endswith("/v1/metrics") else f"{base}/v1/metrics"
        headers = {name: value.reveal(f"self_metrics.headers.{name}") for name, value in settings.headers.items()}
        self._target = Target.of(self._url, {**headers, "Content-Type": "application/json"}, "self_metrics")
        self._interval_s = settings.interval_s
        self._context = context
        self._refresh = refresh
        self._started_unix_nano = context.clock.unix_nano()
        self._logger = RateLimitedLogger(get_logger("self_metrics"))
        exports = context.metrics.counter(
            "self_metrics_exports", unit="requests", help="Exports of own metrics, by outcome.", labels=["outcome"]
        )
        self._succeeded, self._failed = exports.labels("success"), exports.labels("failure")

    async def run(self) -> None:
        tls = WatchedContext.of_client(TlsClientConfig.model_validate({}), self._context.clock, "self_metrics")
        client = HttpClient("self_metrics", self._context, max_connections=1, tls=tls)
        try:
            while True:
                await self._context.clock.sleep(self._interval_s)
                try:
                    await self._refresh()
                    body = json.dumps(self.request()).encode()
                    async with asyncio.timeout(_TIMEOUT_S):
                        reply = await client.post(self._target, memoryview(body))
                    if reply.status >= 300:
                        raise OSError(f"HTTP {reply.status}")
                    self._succeeded.inc()
                except (OSError, TimeoutError, EmpPipeError) as error:
                    self._failed.inc()
                    self._logger.warning("failed", "own metrics were not delivered to %s (%s)", self._url, error)
        finally:
            await client.close()

    def request(self) -> dict[str, Any]:
        """Return the ExportMetricsServiceRequest, in OTLP's JSON form, of all metrics as they are now."""
        identity = {
            "service.name": "emp-pipe",
            "service.version": __version__,
            "machine_id": self._context.machine_id,
            "service.instance.id": f"machine-{self._context.machine_id}.emp-pipe-{self._context.role}",
        }
        now, since = self._context.clock.unix_nano(), self._started_unix_nano
        metrics = [made for family in self._context.metrics.registry.collect() if (made := otlp_metric(family, since, now))]
        return {
            "resourceMetrics": [
                {
                    "resource": {"attributes": _attributes(identity)},
                    "scopeMetrics": [{"scope": {"name": "emp_pipe", "version": __version__}, "metrics": metrics}],
                }
            ]
        }


def otlp_metric(family: Metric, since_unix_nano: int, now_unix_nano: int) -> dict[str, Any] | None:
    """Return one family in OTLP's JSON form: counters as cumulative monotonic sums, gauges, histograms. None without a sample."""
    times = {"startTimeUnixNano": str(since_unix_nano), "timeUnixNano": str(now_unix_nano)}
    head = {"name": family.name, "description": family.documentation, "unit": {"seconds": "s", "bytes": "By"}.get(family.unit, "")}
    if family.type == "histogram":
        points = _histogram_points(family, times)
        return {**head, "histogram": {"dataPoints": points, "aggregationTemporality": _CUMULATIVE}} if points else None
    points = [
        {"attributes": _attributes(sample.labels), "asDouble": sample.value, **times}
        for sample in family.samples
        if not sample.name.endswith("_created") and math.isfinite(sample.value)
    ]
    if not points:
        return None
    if family.type == "counter":
        return {**head, "sum": {"dataPoints": points, "aggregationTemporality": _CUMULATIVE, "isMonotonic": True}}
    return {**head, "gauge": {"dataPoints": points}}


def _histogram_points(family: Metric, times: dict[str, str]) -> list[dict[str, Any]]:
    series: dict[tuple[tuple[str, str], ...], dict[str, Any]] = defaultdict(lambda: {"buckets": []})
    for sample in family.samples:
        labels = tuple(sorted((key, value) for key, value in sample.labels.items() if key != "le"))
        if sample.name.endswith("_bucket"):
            series[labels]["buckets"].append((float(sample.labels["le"]), sample.value))
        elif sample.name.endswith("_sum"):
            series[labels]["sum"] = sample.value
    points = []
    for labels, found in series.items():
        buckets = sorted(found["buckets"])
        cumulative = [int(count) for _, count in buckets]
        points.append(
            {
                "attributes": _attributes(dict(labels)),
                "count": str(cumulative[-1] if cumulative else 0),
                "sum": found.get("sum", 0.0),
                "bucketCounts": [str(count - before) for before, count in zip([0, *cumulative], cumulative, strict=False)],
                "explicitBounds": [bound for bound, _ in buckets if math.isfinite(bound)],
                **times,
            }
        )
    return points


def _attributes(values: dict[str, str]) -> list[dict[str, Any]]:
    return [{"key": key, "value": {"stringValue": value}} for key, value in _sorted(values.items())]


def _sorted(items: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    return sorted((key, value) for key, value in items if value != "")

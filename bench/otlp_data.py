"""Fresh OTLP requests of logs, spans and data points, as an SDK sends them, built from a seed.

`OtlpData` is a recipe: the load generator and the sink, two processes, both build the same requests from it, so that the sink knows every
row that was sent. Every row has a `job_id` attribute of `job-` and 32 hex digits of its own, by which it is found again. A new seed for
each run: nothing that a run sees was seen before. A log record is what the fleet's loggers say as an OpenTelemetry SDK sends it: eight
attributes, about 380 bytes. A span has about 195.
"""

from __future__ import annotations

import random
import time
from dataclasses import dataclass, field, replace
from typing import Literal

from bench.records import WORDS
from bench.wire import attribute, attributes, delimited, double, fixed32, fixed64, number

Signal = Literal["logs", "traces", "metrics"]
Row = tuple[bytes, int]
"""A row's encoded message, and which of the resources it belongs to."""
SERVICES = 40
_TEMPLATES = 64
_LEVELS = ((9, "INFO"), (9, "INFO"), (9, "INFO"), (5, "DEBUG"), (13, "WARN"), (17, "ERROR"))
_ROUTES = ("/v1/jobs", "/v1/jobs/{id}", "/v1/models", "/v1/queue", "/v1/files/{id}", "/healthz", "/v1/sessions", "/v1/uploads")
_BOUNDS = (5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0, 1000.0)
_HEX = b"0" * 32


@dataclass(frozen=True, slots=True)
class OtlpData:
    """What to send: `items` rows (data points for metrics) in requests of `per_request`.

    Spans: `spans_per_trace` of them have one trace id, and lie scattered over `scatter` requests; of the traces, `error_share` has one span
    with an error. Data points: every one is a stream of its own; the same recipe with `later_ns` gives the streams' next points."""

    signal: Signal
    items: int
    per_request: int
    seed: int = field(default_factory=lambda: random.SystemRandom().getrandbits(60))
    base_unix_nano: int = field(default_factory=time.time_ns)
    spans_per_trace: int = 5
    scatter: int = 10
    error_share: float = 0.01
    later_ns: int = 0


@dataclass(slots=True)
class Built:
    """The requests, and of each row (in the order of sending) its id, its encoded message and its resource."""

    requests: list[bytes] = field(default_factory=list)
    ids: list[bytes] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    resources: list[bytes] = field(default_factory=list)
    trace_of: list[int] = field(default_factory=list)
    """Spans: which trace each row belongs to."""
    error_traces: set[int] = field(default_factory=set)


def fresh(data: OtlpData, items: int) -> OtlpData:
    """Return the same recipe for so many other rows, dated now."""
    return replace(data, items=items, seed=random.SystemRandom().getrandbits(60), base_unix_nano=time.time_ns())


def build(data: OtlpData) -> Built:
    rng = random.Random(data.seed)
    built = Built(resources=[_resource(rng, index) for index in range(SERVICES)])
    {"logs": _logs, "traces": _spans, "metrics": _points}[data.signal](rng, data, built)
    return built


def _resource(rng: random.Random, index: int) -> bytes:
    """The encoded fields of a Resource."""
    return attributes(
        1,
        (
            ("service.name", f"renderer-{index:02d}"),
            ("service.version", "2.31.0"),
            ("service.instance.id", f"{rng.getrandbits(128):032x}"),
            ("machine_id", f"gpu-{rng.getrandbits(32):08x}"),
            ("worker_id", f"worker-{rng.randrange(4):03d}"),
            ("service_type", "comfyui"),
            ("telemetry.sdk.language", "python"),
            ("telemetry.sdk.name", "opentelemetry"),
            ("telemetry.sdk.version", "1.43.0"),
        ),
    )


def _request(resource: bytes, rows: bytes) -> bytes:
    scope = delimited(1, delimited(1, b"renderer.pipeline") + delimited(2, b"1.4.2"))
    return delimited(1, delimited(1, resource) + delimited(2, scope + rows))


def _template(encoded: bytes) -> tuple[bytes, bytes]:
    """What stands before and after the 32 hex digits of the id."""
    before, after = encoded.split(_HEX)
    return before, after


def _logs(rng: random.Random, data: OtlpData, built: Built) -> None:
    templates = []
    for _ in range(_TEMPLATES):
        severity, text = rng.choice(_LEVELS)
        body = f"{' '.join(rng.choices(WORDS, k=6))} took {rng.randrange(10**6)} us on stage {rng.randrange(100)}"
        encoded = (
            number(2, severity)
            + delimited(3, text.encode())
            + delimited(5, delimited(1, body.encode()))
            + attributes(
                6,
                (
                    ("job_id", "job-" + _HEX.decode()),
                    ("connector_id", f"comfyui-gpu{rng.randrange(8)}"),
                    ("event_type", "job_progress"),
                    ("job_status", "processing"),
                    ("progress", rng.randrange(101)),
                    ("duration_ms", rng.randrange(60_000) / 8),
                    ("queue_position", rng.randrange(200)),
                    ("code.function.name", f"{rng.choice(WORDS)}_{rng.choice(WORDS)}"),
                ),
            )
            + fixed32(8, 1)
        )
        templates.append(_template(encoded))
    for first in range(0, data.items, data.per_request):
        resource = rng.randrange(SERVICES)
        parts = []
        for index in range(first, min(first + data.per_request, data.items)):
            before, after = templates[rng.randrange(_TEMPLATES)]
            random_bytes = rng.randbytes(40)
            unique = random_bytes[:16].hex().encode()
            at = data.base_unix_nano + index * 1000
            row = b"".join(
                (
                    fixed64(1, at),
                    before,
                    unique,
                    after,
                    b"\x4a\x10",
                    random_bytes[16:32],
                    b"\x52\x08",
                    random_bytes[32:],
                    fixed64(11, at + 350),
                )
            )
            built.ids.append(unique)
            built.rows.append((row, resource))
            parts.append(delimited(2, row))
        built.requests.append(_request(built.resources[resource], b"".join(parts)))


def _spans(rng: random.Random, data: OtlpData, built: Built) -> None:
    templates = []
    for _ in range(_TEMPLATES):
        route = rng.choice(_ROUTES)
        encoded = (
            attribute(9, "job_id", "job-" + _HEX.decode())
            + attribute(9, "http.route", route)
            + attribute(9, "http.response.status_code", 200)
        )
        head = delimited(5, f"{rng.choice(('GET', 'POST'))} {route}".encode()) + number(6, rng.choice((1, 2, 3)))
        templates.append((head, *_template(encoded)))
    error = delimited(15, delimited(2, b"timed out") + number(3, 2))
    group_traces = data.per_request * data.scatter // data.spans_per_trace
    traces = -(-data.items // data.spans_per_trace)
    for first_trace in range(0, traces, group_traces):
        spans: list[tuple[int, bytes, bytes]] = []
        for trace in range(first_trace, min(first_trace + group_traces, traces)):
            trace_id = rng.randbytes(16)
            ids = [rng.randbytes(8) for _ in range(data.spans_per_trace)]
            failed = rng.randrange(data.spans_per_trace) if rng.random() < data.error_share else -1
            if failed >= 0:
                built.error_traces.add(trace)
            for position, span_id in enumerate(ids):
                head, before, after = templates[rng.randrange(_TEMPLATES)]
                unique = rng.randbytes(16).hex().encode()
                at = data.base_unix_nano + trace * 1000
                parent = b"\x22\x08" + ids[rng.randrange(position)] if position else b""
                row = b"".join(
                    (
                        b"\x0a\x10",
                        trace_id,
                        b"\x12\x08",
                        span_id,
                        parent,
                        head,
                        fixed64(7, at),
                        fixed64(8, at + rng.getrandbits(28)),
                        before,
                        unique,
                        after,
                        error if position == failed else b"\x7a\x00",
                        fixed32(16, 1),
                    )
                )
                spans.append((trace, unique, row))
        if data.scatter > 1:
            rng.shuffle(spans)
        for first in range(0, len(spans), data.per_request):
            resource = rng.randrange(SERVICES)
            chosen = spans[first : first + data.per_request]
            built.ids.extend(unique for _, unique, _ in chosen)
            built.rows.extend((row, resource) for _, _, row in chosen)
            built.trace_of.extend(trace for trace, _, _ in chosen)
            built.requests.append(_request(built.resources[resource], b"".join(delimited(2, row) for _, _, row in chosen)))


def _points(rng: random.Random, data: OtlpData, built: Built) -> None:
    """Gauges, cumulative sums and delta histograms in turn, 20 points a metric; every point is a stream of its own by its `job_id`."""
    for first in range(0, data.items, data.per_request):
        resource = first // data.per_request % SERVICES  # a metric of a resource has a limit of streams
        metrics = []
        for start in range(first, min(first + data.per_request, data.items), 20):
            kind, points = (start // 20) % 3, []
            for index in range(start, min(start + 20, first + data.per_request, data.items)):
                unique = rng.randbytes(16).hex().encode()
                point = _point(rng, kind, data.base_unix_nano + index * 1000, data.later_ns, unique.decode())
                built.ids.append(unique)
                built.rows.append((point, resource))
                points.append(delimited(1, point))
            body = b"".join(points)
            name, unit = (("queue.depth", "{job}"), ("jobs.finished", "{job}"), ("job.duration", "ms"))[kind]
            value = (
                delimited(5, body),
                delimited(7, body + number(2, 2) + number(3, 1)),
                delimited(9, body + number(2, 1)),
            )[kind]
            metrics.append(delimited(2, delimited(1, name.encode()) + delimited(3, unit.encode()) + value))
        built.requests.append(_request(built.resources[resource], b"".join(metrics)))


def _point(rng: random.Random, kind: int, first_at: int, later_ns: int, unique: str) -> bytes:
    labels = (("job_id", f"job-{unique}"), ("gpu", rng.randrange(128, 200)))
    is_delta = kind == 2
    start = first_at if is_delta and later_ns else first_at - 30_000_000_000
    times = fixed64(2, start) + fixed64(3, first_at + later_ns)
    if kind == 0:
        return times + double(4, rng.random() * 100) + attributes(7, labels)
    if kind == 1:
        return times + fixed64(6, rng.getrandbits(20)) + attributes(7, labels)
    counts = [rng.randrange(20) for _ in range(len(_BOUNDS) + 1)]
    packed = b"".join(count.to_bytes(8, "little") for count in counts)
    bounds = b"".join(double(1, bound)[1:] for bound in _BOUNDS)
    head = times + fixed64(4, sum(counts)) + double(5, rng.random() * 1000)
    return head + delimited(6, packed) + delimited(7, bounds) + attributes(9, labels)

"""Metrics as protobuf messages, as blocks, and read back: what tests of the aggregator say and see."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from itertools import count
from typing import Any

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import KeyValue
from opentelemetry.proto.metrics.v1.metrics_pb2 import (
    AggregationTemporality,
    Exemplar,
    ExponentialHistogramDataPoint,
    HistogramDataPoint,
    Metric,
    NumberDataPoint,
    SummaryDataPoint,
)

from emp_pipe._core import Aggregator, Batch, Block

DELTA = AggregationTemporality.AGGREGATION_TEMPORALITY_DELTA
CUMULATIVE = AggregationTemporality.AGGREGATION_TEMPORALITY_CUMULATIVE
SECOND = 1_000_000_000
T0 = 1_760_000_000 * SECOND
NO_RECORDED_VALUE = 1

_ids = count(1)


def attributes(values: Mapping[str, Any]) -> list[KeyValue]:
    """Return attributes in the mapping's order."""
    found = []
    for key, value in values.items():
        attribute = KeyValue(key=key)
        field = {str: "string_value", bool: "bool_value", int: "int_value", float: "double_value"}[type(value)]
        setattr(attribute.value, field, value)
        found.append(attribute)
    return found


def point(value: float | None, *, at: float = 0, start: float | None = None, **labels: Any) -> NumberDataPoint:
    """Return a number's point: an int stays one. `at` and `start` are seconds after T0; no start: not set."""
    found = NumberDataPoint(time_unix_nano=T0 + int(at * SECOND), attributes=attributes(labels))
    if start is not None:
        found.start_time_unix_nano = T0 + int(start * SECOND)
    if isinstance(value, int):
        found.as_int = value
    elif value is not None:
        found.as_double = value
    return found


def gauge(name: str, *points: NumberDataPoint, **fields: Any) -> Metric:
    metric = Metric(name=name, **fields)
    metric.gauge.data_points.extend(points)
    metric.gauge.SetInParent()
    return metric


def sum_of(name: str, *points: NumberDataPoint, temporality: Any = DELTA, monotonic: bool = True, **fields: Any) -> Metric:
    metric = Metric(name=name, **fields)
    metric.sum.data_points.extend(points)
    metric.sum.aggregation_temporality = temporality
    metric.sum.is_monotonic = monotonic
    return metric


def request(
    *metrics: Metric, resource: Mapping[str, Any] | None = None, scope: str = "test", resource_schema: str = "", scope_schema: str = ""
) -> ExportMetricsServiceRequest:
    found = ExportMetricsServiceRequest()
    resource_metrics = found.resource_metrics.add(schema_url=resource_schema)
    resource_metrics.resource.attributes.extend(attributes({"service.name": "shop"} if resource is None else resource))
    scope_metrics = resource_metrics.scope_metrics.add(schema_url=scope_schema)
    scope_metrics.scope.name = scope
    scope_metrics.metrics.extend(metrics)
    return found


def block_of(*requests: ExportMetricsServiceRequest, topic: str = "metrics.in", codec: Any = "none") -> Block:
    merged = ExportMetricsServiceRequest()
    for one in requests:
        merged.MergeFrom(one)
    batch = Batch.from_otlp(merged.SerializeToString(), signal="metrics")
    return batch.to_block(codec, topic=topic, block_id=f"metrics-{next(_ids)}")


def requests_in(blocks: Iterable[Block]) -> ExportMetricsServiceRequest:
    """Return all that blocks hold as one request, read by the official classes."""
    merged = ExportMetricsServiceRequest()
    for block in blocks:
        merged.MergeFrom(ExportMetricsServiceRequest.FromString(block.payload("none")))
    return merged


def metrics_in(blocks: Iterable[Block]) -> list[Metric]:
    found = requests_in(blocks)
    return [metric for resource in found.resource_metrics for scope in resource.scope_metrics for metric in scope.metrics]


def points_in(blocks: Iterable[Block], name: str | None = None) -> list[Any]:
    """Return the points of all metrics (of a name), in order."""
    found: list[Any] = []
    for metric in metrics_in(blocks):
        if name is None or metric.name == name:
            kind = metric.WhichOneof("data")
            found += getattr(metric, kind).data_points if kind else ()
    return found


def labels_of(point: Any) -> dict[str, Any]:
    """Return a point's attributes."""
    return {attribute.key: getattr(attribute.value, attribute.value.WhichOneof("value")) for attribute in point.attributes}


def value_of(point: NumberDataPoint) -> float | None:
    kind = point.WhichOneof("value")
    return None if kind is None else getattr(point, kind)


def histogram_point(
    *values: float,
    bounds: Iterable[float] = (1.0, 2.0, 5.0),
    at: float = 0,
    start: float | None = None,
    extremes: bool = True,
    **labels: Any,
) -> HistogramDataPoint:
    """Return a point that has counted these values."""
    bounds = list(bounds)
    counts = [0] * (len(bounds) + 1)
    for value in values:
        counts[sum(bound < value for bound in bounds)] += 1
    found = HistogramDataPoint(
        time_unix_nano=T0 + int(at * SECOND),
        attributes=attributes(labels),
        count=len(values),
        sum=float(sum(values)),
        explicit_bounds=bounds,
        bucket_counts=counts,
    )
    if extremes and values:
        found.min, found.max = min(values), max(values)
    if start is not None:
        found.start_time_unix_nano = T0 + int(start * SECOND)
    return found


def histogram(name: str, *points: HistogramDataPoint, temporality: Any = DELTA, **fields: Any) -> Metric:
    metric = Metric(name=name, **fields)
    metric.histogram.data_points.extend(points)
    metric.histogram.aggregation_temporality = temporality
    return metric


def bucket_of(value: float, scale: int) -> int:
    """Return the index of the bucket (base^i, base^(i+1)] that holds a value, for values that are no power of the base."""
    return math.ceil(math.log2(value) * 2.0**scale) - 1


def exponential_point(
    *values: float, scale: int = 3, zero_threshold: float = 0.0, at: float = 0, start: float | None = None, **labels: Any
) -> ExponentialHistogramDataPoint:
    """Return a point that has counted these values, negative ones and zeros among them."""
    found = ExponentialHistogramDataPoint(
        time_unix_nano=T0 + int(at * SECOND),
        attributes=attributes(labels),
        count=len(values),
        sum=float(sum(values)),
        scale=scale,
        zero_threshold=zero_threshold,
        zero_count=sum(abs(value) <= zero_threshold for value in values),
    )
    for buckets, sign in ((found.positive, 1), (found.negative, -1)):
        indices = [bucket_of(value * sign, scale) for value in values if value * sign > zero_threshold]
        if indices:
            buckets.offset = min(indices)
            buckets.bucket_counts.extend(indices.count(index) for index in range(min(indices), max(indices) + 1))
    if values:
        found.min, found.max = min(values), max(values)
    if start is not None:
        found.start_time_unix_nano = T0 + int(start * SECOND)
    return found


def exponential(name: str, *points: ExponentialHistogramDataPoint, temporality: Any = DELTA, **fields: Any) -> Metric:
    metric = Metric(name=name, **fields)
    metric.exponential_histogram.data_points.extend(points)
    metric.exponential_histogram.aggregation_temporality = temporality
    return metric


def summary(name: str, *points: SummaryDataPoint, **fields: Any) -> Metric:
    metric = Metric(name=name, **fields)
    metric.summary.data_points.extend(points)
    return metric


def buckets_of(point: ExponentialHistogramDataPoint) -> dict[int, int]:
    """Return the positive buckets that are not empty, by index."""
    return {point.positive.offset + at: count for at, count in enumerate(point.positive.bucket_counts) if count}


def varint(value: int) -> bytes:
    """Return a number as protobuf writes it."""
    out = b""
    while value >= 0x80:
        out += bytes([value & 0x7F | 0x80])
        value >>= 7
    return out + bytes([value])


def unknown_field(number: int, payload: bytes) -> bytes:
    """Return a field that no message of OTLP has."""
    return varint(number << 3 | 2) + varint(len(payload)) + payload


def flush(aggregator: Aggregator) -> list[Block]:
    return aggregator.flush("none", topic="metrics", block_prefix="b-").blocks


def aggregated(*metrics: Metric, **settings: Any) -> list[Block]:
    """Return what becomes of metrics: each in a block of its own, then one flush."""
    aggregator = Aggregator(**settings)
    for metric in metrics:
        aggregator.take(block_of(request(metric)))
    return flush(aggregator)


def with_exemplars(found: Any, *numbers: int, traced: bool = True) -> Any:
    """Return a point with exemplars whose value and time are these numbers."""
    for number in numbers:
        exemplar = Exemplar(time_unix_nano=T0 + number, as_double=number)
        if traced:
            exemplar.trace_id, exemplar.span_id = bytes([number + 1]) * 16, bytes([number + 1]) * 8
        found.exemplars.append(exemplar)
    return found

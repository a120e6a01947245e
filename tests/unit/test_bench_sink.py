"""The benchmarks' sink is what makes a figure a result: it must notice every record that is lost, repeated, foreign or changed."""

from __future__ import annotations

import gzip
import http.client
from collections.abc import Callable, Iterator

import pytest
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest

from bench.proof import Verdict
from bench.records import TAG, Pool, decode_entry, make_pool
from bench.sink import Sink

COUNT = 60


@pytest.fixture(scope="module")
def pool() -> Pool:
    return make_pool(COUNT + 1, seed=7)


@pytest.fixture(scope="module")
def sink(pool: Pool, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sink]:
    file = tmp_path_factory.mktemp("bench") / "pool"
    pool.save(file)
    sink = Sink(file)
    yield sink
    sink.close()


def request_of(pool: Pool) -> ExportLogsServiceRequest:
    """The first COUNT records as emp-pipe would send them: ids and severity in their fields, the rest attributes."""
    request = ExportLogsServiceRequest()
    scope_logs = request.resource_logs.add().scope_logs.add()
    scope_logs.scope.attributes.add(key="fluent.tag").value.string_value = TAG
    for entry in pool.entries[:COUNT]:
        time_unix_nano, sent = decode_entry(entry)
        record = scope_logs.log_records.add(time_unix_nano=time_unix_nano, severity_text=sent.pop("level"))
        record.trace_id = bytes.fromhex(sent.pop("trace_id"))
        record.span_id = bytes.fromhex(sent.pop("span_id"))
        record.body.string_value = sent.pop("message")
        del sent["timestamp"]
        for key, value in sent.items():
            attribute = record.attributes.add(key=key)
            field = {str: "string_value", int: "int_value", float: "double_value"}[type(value)]
            setattr(attribute.value, field, value)
    return request


def post(sink: Sink, request: ExportLogsServiceRequest) -> Verdict:
    sink.reset()
    connection = http.client.HTTPConnection("127.0.0.1", sink.port)
    connection.request("POST", "/v1/logs", gzip.compress(request.SerializeToString()), {"Content-Encoding": "gzip"})
    response = connection.getresponse()
    assert response.status == 200
    response.read()
    while sink.count() == 0:
        pass  # the body is filed just after the answer
    connection.close()
    return sink.verify(0, COUNT)


def test_records_that_arrive_once_and_unchanged_are_right(sink: Sink, pool: Pool) -> None:
    verdict = post(sink, request_of(pool))
    assert verdict.right
    assert (verdict.records, verdict.requests) == (COUNT, 1)
    assert verdict.compared > 0


def lose_one(request: ExportLogsServiceRequest) -> None:
    del request.resource_logs[0].scope_logs[0].log_records[5]


def repeat_one(request: ExportLogsServiceRequest) -> None:
    records = request.resource_logs[0].scope_logs[0].log_records
    records.add().CopyFrom(records[3])


def change_all(request: ExportLogsServiceRequest, key: str) -> None:
    for record in request.resource_logs[0].scope_logs[0].log_records:
        for attribute in record.attributes:
            if attribute.key == key:
                attribute.value.string_value = "changed"


def clear_trace_ids(request: ExportLogsServiceRequest) -> None:
    for record in request.resource_logs[0].scope_logs[0].log_records:
        record.trace_id = b""


@pytest.mark.parametrize(
    ("spoil", "seen"),
    [
        (lose_one, "lost"),
        (repeat_one, "repeated"),
        (lambda request: change_all(request, "machine_id"), "differences"),
        (lambda request: change_all(request, "progress"), "differences"),
        (clear_trace_ids, "differences"),
    ],
    ids=["lost", "repeated", "changed text", "changed number", "missing trace id"],
)
def test_a_run_that_lost_repeated_or_changed_a_record_is_not_a_result(
    sink: Sink, pool: Pool, spoil: Callable[[ExportLogsServiceRequest], None], seen: str
) -> None:
    request = request_of(pool)
    spoil(request)
    verdict = post(sink, request)
    assert not verdict.right
    assert getattr(verdict, seen)


def test_a_record_that_was_not_sent_is_noticed(sink: Sink, pool: Pool) -> None:
    request = request_of(pool)
    job_id = next(a for a in request.resource_logs[0].scope_logs[0].log_records[0].attributes if a.key == "job_id")
    job_id.value.string_value = "job-" + pool.ids[COUNT].decode()
    verdict = post(sink, request)
    assert (verdict.foreign, verdict.lost) == (1, 1)

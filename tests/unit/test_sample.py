"""The processor `sample`: what is left out, that it is the same everywhere, and that errors, events and metrics are not touched."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status
from pydantic import ValidationError

from emp_pipe._core import Batch
from emp_pipe.component import Arrival, Wiring
from emp_pipe.errors import ConfigError, EmpPipeError
from emp_pipe.intake import GuardedProcessor, PipelineIntake
from emp_pipe.processors.sample import Sample, SampleConfig
from emp_pipe.registry import Kind, find
from emp_pipe.taps import Taps
from tests.support.command import ROOT
from tests.support.context import make_context
from tests.support.otlp_rows import log, log_batch, logs_of, metric_batch, plain_attributes, span_batch, spans_of
from tests.support.telemetry import metric_request

ERROR = Status(code=Status.STATUS_CODE_ERROR)
HIGH, LOW = b"\x01" * 9 + b"\xf0" * 7, b"\x01" * 9 + b"\x10" * 7
"""Trace ids whose randomness 10 % keep, and do not keep."""


def sampler(wiring: Wiring | None = None, **settings: Any) -> Sample:
    context = replace(make_context(), wiring=wiring or Wiring())
    processor = Sample("sample", SampleConfig.model_validate(settings), context)
    processor.context = context  # type: ignore[attr-defined] # for `dropped`
    return processor


def dropped(processor: Sample, reason: str) -> float:
    registry = processor.context.metrics.registry  # type: ignore[attr-defined] # set above
    value = registry.get_sample_value("emp_pipe_sample_dropped_records_total", {"component": "sample", "reason": reason})
    assert value is not None, f"there is no reason {reason}"
    return float(value)


def span(trace: bytes = HIGH, *, name: str = "s", **more: Any) -> Span:
    return Span(trace_id=trace, span_id=b"12345678", name=name, start_time_unix_nano=5, end_time_unix_nano=6, **more)


def logs(count: int, **more: Any) -> list[LogRecord]:
    return [log(f"record {number}", **more) for number in range(count)]


def names(batch: Batch | None) -> list[str]:
    return [found.name for found in spans_of(batch)]


def random_traces(count: int, seed: int = 1) -> list[bytes]:
    chance = random.Random(seed)
    return [chance.randbytes(16) for _ in range(count)]


# traces


def test_by_default_a_tenth_of_traces_and_every_error_span_and_all_logs_are_kept() -> None:
    processor = sampler()
    traces = random_traces(5000)
    kept = spans_of(processor.process(span_batch(*(span(trace) for trace in traces))))
    assert 410 < len(kept) < 590
    assert {found.trace_state for found in kept} == {"ot=th:e666"}
    assert dropped(processor, "traces_percent") == 5000 - len(kept)
    errors = spans_of(processor.process(span_batch(*(span(trace, status=ERROR) for trace in traces[:50]))))
    assert [found.trace_state for found in errors] == ["ot=th:0"] * 50
    batch = log_batch(*logs(100))
    assert processor.process(batch) is batch


def test_what_tail_sampling_keeps_by_chance_is_what_is_kept_here() -> None:
    kept = spans_of(sampler().process(span_batch(*(span(trace) for trace in random_traces(2000)))))
    assert {found.trace_id for found in kept} == {
        trace for trace in random_traces(2000) if int.from_bytes(trace[9:], "big") >= 0xE666_0000_0000_00
    }


@given(percents=st.tuples(st.floats(0, 100), st.floats(0, 100)), seed=st.integers())
def test_the_smaller_percentage_keeps_a_part_of_what_the_larger_one_keeps(percents: tuple[float, float], seed: int) -> None:
    batch = span_batch(*(span(trace) for trace in random_traces(40, seed)))
    smaller, larger = (
        {found.trace_id for found in spans_of(sampler(traces_percent=percent).process(batch))} for percent in sorted(percents)
    )
    assert smaller <= larger


def test_a_spans_rv_goes_before_its_trace_id_and_a_higher_threshold_stays() -> None:
    batch = span_batch(
        span(LOW, name="kept by rv", trace_state="ot=rv:ffffffffffffff"),
        span(HIGH, name="dropped by rv", trace_state="ot=rv:00000000000000"),
        span(HIGH, name="sampled before", trace_state="a=b,ot=th:f"),
        span(HIGH, name="malformed", trace_state="ot=th:?"),
    )
    kept = {found.name: found.trace_state for found in spans_of(sampler().process(batch))}
    assert kept == {
        "kept by rv": "ot=th:e666;rv:ffffffffffffff",
        "sampled before": "a=b,ot=th:f",
        "malformed": "ot=th:?",
    }


def test_everything_but_the_tracestate_of_a_span_is_as_it_came() -> None:
    given = span(attributes=plain_to_pairs({"a": 1}), trace_state="x=y", flags=0x101, kind=Span.SPAN_KIND_CLIENT)
    given.events.add(name="e")
    (kept,) = spans_of(sampler().process(span_batch(given)))
    given.trace_state = "ot=th:e666,x=y"
    assert kept == given


def plain_to_pairs(values: dict[str, Any]) -> Any:
    from tests.support.otlp_rows import attributes

    return attributes(values)


@pytest.mark.parametrize("wiring", [Wiring(tail_samples=True), Wiring(red_runs=True)])
def test_traces_are_left_to_what_samples_or_counts_them_after_the_log(wiring: Wiring) -> None:
    batch = span_batch(span(LOW))
    assert sampler(wiring).process(batch) is batch
    assert len(logs_of(sampler(wiring, logs_percent=0).process(log_batch(*logs(5))))) == 0
    for settings in ({"traces_percent": 50}, {"services": {"a": {"traces_percent": 5}}}, {"rules": [{"signal": "traces", "percent": 5}]}):
        with pytest.raises(ConfigError, match="tail_sample"):
            sampler(wiring, **settings)


# logs


def test_logs_are_sampled_where_asked_and_errors_and_events_are_kept() -> None:
    processor = sampler(logs_percent=0)
    batch = log_batch(
        log("plain"), log("error", severity=17), log("event", attrs={"event_type": "job_started"}), log("named", event_name="x")
    )
    kept = logs_of(processor.process(batch))
    assert [found.body.string_value for found in kept] == ["error", "event", "named"]
    assert all("sampling.threshold" not in plain_attributes(found.attributes) for found in kept)
    assert dropped(processor, "logs_percent") == 1


def test_a_log_with_a_trace_id_is_kept_with_its_trace() -> None:
    batch = log_batch(*(log(trace.hex(), trace_id=trace, span_id=b"12345678") for trace in random_traces(2000)))
    kept = logs_of(sampler(logs_percent=10).process(batch))
    with_spans = spans_of(sampler(traces_percent=10).process(span_batch(*(span(trace) for trace in random_traces(2000)))))
    assert {found.trace_id for found in kept} == {found.trace_id for found in with_spans}
    assert [plain_attributes(found.attributes)["sampling.threshold"] for found in kept] == ["e666"] * len(kept)
    assert all("sampling.randomness" not in plain_attributes(found.attributes) for found in kept)


def test_logs_without_a_trace_id_are_kept_by_their_own_bytes_whenever_they_come() -> None:
    first = logs_of(sampler(logs_percent=25).process(log_batch(*logs(4000, observed_time_unix_nano=1))))
    again = logs_of(sampler(logs_percent=25).process(log_batch(*logs(4000, observed_time_unix_nano=2))))
    assert 880 < len(first) < 1120
    assert [found.body for found in first] == [found.body for found in again]


def test_what_an_edge_sampled_a_central_with_the_same_or_a_larger_percentage_keeps() -> None:
    edge = sampler(logs_percent=10).process(log_batch(*logs(2000)))
    assert edge is not None
    for percent in (10, 50):
        assert sampler(logs_percent=percent).process(edge) is edge
    fewer = logs_of(sampler(logs_percent=5).process(edge))
    assert {found.body.string_value for found in fewer} == {
        found.body.string_value for found in logs_of(sampler(logs_percent=5).process(log_batch(*logs(2000))))
    }
    for found in fewer:
        assert [pair.value.string_value for pair in found.attributes if pair.key == "sampling.threshold"] == ["f3333"]


# rules


def services(percent: Callable[[str], float | None], batch_of: Callable[[str], Batch], **settings: Any) -> None:
    processor = sampler(**settings)
    for service in ("api", "comfyui-gpu0", "comfyui-gpu1", "webhook", ""):
        kept = processor.process(batch_of(service))
        share = 0 if kept is None else len(kept) / 1000
        wanted = (percent(service) or 0) / 100
        assert abs(share - wanted) < 0.07, f"{service}: {share}"


@pytest.mark.parametrize("signal", ["logs", "traces"])
def test_services_have_percentages_of_their_own(signal: str) -> None:
    def batch_of(service: str) -> Batch:
        resource = {"service.name": service} if service else {}
        rows = [span(trace) for trace in random_traces(1000)]
        return log_batch(*logs(1000), resource=resource) if signal == "logs" else span_batch(*rows, resource=resource)

    key = f"{signal}_percent"
    settings: dict[str, Any] = {"services": {"api": {key: 100}, "comfyui-*": {key: 20}}, key: 50}
    services(lambda service: 100 if service == "api" else 20 if service.startswith("comfy") else 50, batch_of, **settings)
    settings["rules"] = [{"signal": signal, "services": ["*-gpu1", "webhook"], "percent": 0}]
    services(
        lambda service: {"api": 100, "comfyui-gpu0": 20, "": 50}.get(service, 0),
        batch_of,
        **settings,
    )


def test_a_rule_can_be_for_low_levels_alone() -> None:
    processor = sampler(rules=[{"name": "chatter", "signal": "logs", "max_severity": "debug", "percent": 0}])
    batch = log_batch(*(log(str(severity), severity=severity) for severity in (0, 1, 5, 8, 9, 13)))
    kept = logs_of(processor.process(batch))
    assert [found.body.string_value for found in kept] == ["0", "9", "13"]
    assert dropped(processor, "chatter") == 3


def test_a_rule_without_a_signal_is_for_both() -> None:
    processor = sampler(rules=[{"services": ["test"], "percent": 0}])
    resource = {"service.name": "test"}
    assert processor.process(log_batch(*logs(3), resource=resource)) is None
    assert processor.process(span_batch(span(HIGH), resource=resource)) is None
    assert dropped(processor, "rules[0]") == 4


# metrics


def test_metrics_are_not_touched() -> None:
    batch = Batch.from_otlp(metric_request(5).SerializeToString(), signal="metrics")
    assert sampler(logs_percent=0, traces_percent=0, rules=[{"percent": 0}]).process(batch) is batch
    assert len(metric_batch()) == 0


@pytest.mark.parametrize(
    "settings", [{"metrics_percent": 10}, {"services": {"a": {"metrics_percent": 1}}}, {"rules": [{"signal": "metrics", "percent": 1}]}]
)
def test_metrics_are_refused_with_advice(settings: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=r"metrics are never sampled.*aggregate"):
        SampleConfig.model_validate(settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"logs_percent": 101},
        {"traces_percent": -1},
        {"logs_percent": float("nan")},
        {"rules": [{}]},
        {"rules": [{"percent": 1, "signal": "traces", "max_severity": "info"}]},
        {"sample": 1},
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        SampleConfig.model_validate(settings)


def test_a_level_that_is_none_is_refused_by_name() -> None:
    with pytest.raises(ConfigError) as raised:
        sampler(rules=[{"percent": 1, "max_severity": "loud"}])
    assert 'processors.sample: max_severity: "loud" is no level' in str(raised.value)


def test_the_examples_of_the_page_about_sampling_can_be_used() -> None:
    page = (ROOT / "docs" / "sampling.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    seen = set()
    for block in blocks:
        for name, settings in yaml.safe_load(block)["processors"].items():
            kind = find(Kind.PROCESSORS, name)
            kind.component(name, kind.config.model_validate(settings), make_context())
            seen.add(name)
    assert seen == {"sample", "tail_sample"}


# in the pipeline


class Writer:
    admitting = True

    def __init__(self) -> None:
        self.arrivals: list[Arrival] = []

    def submit(self, arrival: Arrival) -> Any:
        self.arrivals.append(arrival)

    async def wait_admitting(self) -> None: ...


def through_the_intake(processor: Sample, arrival: Arrival) -> Arrival:
    writer = Writer()
    failures: list[EmpPipeError] = []
    intake = PipelineIntake(writer, Taps(make_context().clock), failures.append)
    intake.set_processors([GuardedProcessor("sample", processor, "stop", make_context().metrics)])
    intake.submit(arrival)
    assert failures == []
    return writer.arrivals[0]


def test_what_is_left_out_counts_as_dropped_by_rule() -> None:
    rows: Sequence[Span] = [span(HIGH), span(LOW), span(LOW)]
    done = through_the_intake(sampler(), Arrival("otlp_http", batch=span_batch(*rows), received=3))
    assert done.batch is not None
    assert (len(done.batch), done.dropped) == (1, 2)


@pytest.mark.parametrize("decided", [True, False])
def test_blocks_of_another_emp_pipe_that_are_decided_pass_as_they_are(decided: bool) -> None:
    block = span_batch(span(LOW)).to_block("none", topic="traces", block_id="b").with_flags(decided=decided)
    done = through_the_intake(sampler(), Arrival("forward", blocks=[block], received=1))
    assert (list(done.blocks), done.dropped) == (([block], 0) if decided else ([], 1))

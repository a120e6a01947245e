"""The real command with processors that derive: started, seen, drained at a stop, swapped by a reload, refused where they make no sense."""

from __future__ import annotations

import json
import signal
import socket
import threading
import time
from collections import Counter
from pathlib import Path
from random import Random

import pytest

from emp_pipe import control
from tests.support.command import free_port, run, running, until
from tests.support.command_bench import Bench
from tests.support.otlp_post import calls_in, post, span_names, spans

PASSING = "tests.support.deriver:Passing"


class TracesBench(Bench):
    """A process that takes traces by OTLP/HTTP and has a deriver before its `file` exporter."""

    def __init__(self, directory: Path) -> None:
        self.otlp_port = free_port()
        self._chance = Random(7)
        self._sent = 0
        super().__init__(directory)
        self.write(processors=f'{{"{PASSING}": }}')

    def write(self, **parts: str) -> None:  # type: ignore[override]
        super().write(receivers=f'{{otlp_http: {{listen: "127.0.0.1:{self.otlp_port}"}}}}', **parts)  # type: ignore[arg-type]

    def send(self, count: int) -> None:
        for _ in range(count):
            assert post(self.otlp_port, spans([f"span {self._sent}"], self._chance, now_unix_nano=time.time_ns())) == 200
            self._sent += 1

    def wait_for_spans(self, count: int) -> None:
        """Return when so many spans are in the files; fail when one is there twice."""
        until(lambda: len(span_names(self.data_dir)) >= count, f"{count} spans in {self.data_dir}, {len(span_names(self.data_dir))} are")
        assert Counter(span_names(self.data_dir)) == Counter(f"span {number}" for number in range(count))


@pytest.fixture
def bench(tmp_path: Path) -> TracesBench:
    return TracesBench(tmp_path)


def test_a_deriver_stands_between_receivers_and_exporters_and_is_seen_as_a_group(bench: TracesBench) -> None:
    with running(*bench.arguments) as process:
        bench.send(20)
        bench.wait_for_spans(20)
        groups = until(lambda: (found := bench.groups()) and not found["file"]["held_records"] and found, "everything is delivered")
        assert set(groups) == {PASSING, "file"}
        assert groups[PASSING]["topics"] == ["traces.in"]
        assert groups[PASSING]["required"] is True
        assert groups[PASSING]["state"] == "idle"
        assert groups["file"]["topics"] == ["logs", "metrics", "traces"]
        assert bench.get("/readyz")[0] == 200
        assert bench.metric("emp_pipe_deriver_output_records_total", component=PASSING, topic="traces") == 20
        assert bench.metric("emp_pipe_group_records_total", topic="traces.in", group=PASSING, outcome="acked") == 20
        assert bench.metric("emp_pipe_group_records_total", topic="traces", group="file", outcome="acked") == 20
        assert bench.metric("emp_pipe_group_records_total", topic="traces", group=PASSING, outcome="appended") == 0
        process.signal(signal.SIGTERM)
        assert process.wait() == 0


def test_a_stop_drains_derivers_before_exporters(bench: TracesBench) -> None:
    bench.write(processors=f'{{"{PASSING}": {{tick_s: 3600}}}}')
    with running(*bench.arguments) as process:
        bench.send(20)
        assert span_names(bench.data_dir) == []
        process.signal(signal.SIGTERM)
        assert process.wait() == 0
        assert not [message for message in process.messages() if "stay in the buffer" in message]
    bench.wait_for_spans(20)


def test_what_a_deriver_cannot_end_at_a_stop_is_said_and_comes_after_the_next_start(bench: TracesBench) -> None:
    bench.write(processors=f'{{"{PASSING}": {{tick_s: 3600, keep: 5}}}}')
    with running(*bench.arguments) as process:
        bench.send(20)
        process.signal(signal.SIGTERM)
        process.wait_for(f"{PASSING}: 5 records stay in the buffer for the next start")
        assert process.wait() == 0
    bench.wait_for_spans(15)
    bench.write(processors=f'{{"{PASSING}": }}')
    with running(*bench.arguments):
        bench.wait_for_spans(20)


def test_a_killed_process_loses_and_doubles_nothing_that_was_held(bench: TracesBench) -> None:
    bench.write(processors=f'{{"{PASSING}": {{tick_s: 0.2, keep: 7}}}}')
    with running(*bench.arguments) as process:
        bench.send(20)
        bench.wait_for_spans(13)
        acked = {"topic": "traces", "group": "file", "outcome": "acked"}  # or the files would have some of them twice
        until(lambda: bench.metric("emp_pipe_group_records_total", **acked) == 13, "what is in the files is acked")
        process.signal(signal.SIGKILL)
        process.wait()
    bench.write(processors=f'{{"{PASSING}": }}')
    with running(*bench.arguments):
        bench.wait_for_spans(20)
        until(lambda: bench.metric("emp_pipe_group_records_total", topic="traces.in", group=PASSING, outcome="acked") == 20, "all is acked")


def test_sighup_adds_a_deriver_changes_it_and_takes_it_out_while_traces_come(bench: TracesBench) -> None:
    bench.write(processors="{}")
    stop = threading.Event()

    def send() -> None:
        while not stop.is_set():
            bench.send(1)

    with running(*bench.arguments) as process:
        sender = threading.Thread(target=send)
        sender.start()
        try:
            for processors, words in (
                (f'{{"{PASSING}": {{keep: 3}}}}', f"started {PASSING}"),
                (f'{{"{PASSING}": {{keep: 2, tick_s: 0.1}}}}', f"changed {PASSING}"),
                (f'{{"{PASSING}/other": {{keep: 4}}}}', f"started {PASSING}/other; stopped {PASSING}"),
                ("{}", f"stopped {PASSING}/other"),
            ):
                said = len(process.messages())
                before = bench._sent
                bench.write(processors=processors)
                process.signal(signal.SIGHUP)
                process.wait_for(f"reloaded: {words}", after=said)
                until(lambda before=before: bench._sent > before + 20, "traces come after the reload")  # type: ignore[misc]
        finally:
            stop.set()
            sender.join(20)
        process.wait_for("handed on")
        assert not [message for message in process.messages() if "given up" in message], "all of it went on"
        bench.wait_for_spans(bench._sent)
        assert set(bench.groups()) == {"file"}
        assert bench.metric("emp_pipe_receiver_records_total", component="otlp_http", outcome="appended") == bench._sent
        assert bench.metric("emp_pipe_group_records_total", outcome="dead") == 0


ALL_KEPT = "tail_sample: {policies: [{type: always}], decision_wait_s: 0.3}"
RED = "red_metrics: {interval_s: 0.1}"
MERGE = "aggregate: {interval_s: 0.2}"


def test_sighup_swaps_red_sampling_and_merging_under_traffic_and_each_span_is_kept_and_counted_once(bench: TracesBench) -> None:
    bench.write(processors=f"{{{RED}}}")
    stop = threading.Event()

    def send() -> None:
        while not stop.is_set():
            bench.send(1)

    with running(*bench.arguments) as process:
        sender = threading.Thread(target=send)
        sender.start()
        try:
            for processors in (
                f"{{{RED}, {MERGE}}}",
                f"{{{ALL_KEPT}, {MERGE}, {RED}}}",
                f"{{{ALL_KEPT}, {RED}}}",
                f"{{{RED}, {MERGE}, tail_sample/other: {{policies: [{{type: always}}], decision_wait_s: 0.2}}}}",
                f"{{{RED}}}",
            ):
                said = len(process.messages())
                before = bench._sent
                bench.write(processors=processors)
                process.signal(signal.SIGHUP)
                reloaded = process.wait_for("reloaded: ", after=said)
                assert "red_metrics" in reloaded or "tail_sample/other" in reloaded, "it was not told what else runs now"
                until(lambda before=before: bench._sent > before + 20, "traces come after the reload")  # type: ignore[misc]
        finally:
            stop.set()
            sender.join(20)
        bench.wait_for_spans(bench._sent)
        until(lambda: calls_in(bench.data_dir) >= bench._sent, f"{bench._sent} calls counted, {calls_in(bench.data_dir)} are")
        process.signal(signal.SIGTERM)
        assert process.wait() == 0
    assert calls_in(bench.data_dir) == bench._sent
    assert Counter(span_names(bench.data_dir)) == Counter(f"span {number}" for number in range(bench._sent))


@pytest.mark.parametrize("then", ["{}", "{tail_sample/other: {policies: [{type: always}], decision_wait_s: 0.1}}"])
def test_a_sampler_that_leaves_decides_what_it_was_waiting_for(then: str, bench: TracesBench) -> None:
    bench.write(processors="{tail_sample: {policies: [{type: error}], decision_wait_s: 3600}}")
    request = spans(["waiting", "failed"], Random(3), now_unix_nano=time.time_ns())  # two traces in one block
    request.resource_spans[0].scope_spans[0].spans[1].status.code = 2  # type: ignore[assignment]  # STATUS_CODE_ERROR
    with running(*bench.arguments) as process:
        assert post(bench.otlp_port, request) == 200
        until(lambda: bench.metric("emp_pipe_tail_sample_open_traces", component="tail_sample") == 1, "one is decided, the other not")
        bench.write(processors=then)
        process.signal(signal.SIGHUP)
        process.wait_for("reloaded: ")
        assert post(bench.otlp_port, spans(["after"], Random(4), now_unix_nano=time.time_ns())) == 200
        until(lambda: "after" in span_names(bench.data_dir), "traces go on")
        process.signal(signal.SIGTERM)
        assert process.wait() == 0
    assert sorted(span_names(bench.data_dir)) == ["after", "failed"]


def test_outputs_of_a_deriver_can_be_tapped(bench: TracesBench) -> None:
    with running(*bench.arguments):
        lines = control.ask(bench.data_dir, {"ask": "tap", "component": PASSING})
        assert json.loads(next(lines)) == {"tapped": PASSING}
        bench.send(1)
        assert b"span 0" in next(lines)


def test_a_group_of_a_deriver_cannot_be_dropped_while_it_runs(bench: TracesBench) -> None:
    with running(*bench.arguments):
        result = run("groups", "drop", PASSING, "--data-dir", str(bench.data_dir))
        assert result.returncode != 0
        assert "a processor of this configuration reads this group" in result.stderr


def test_a_deriver_whose_output_nobody_reads_is_refused_at_the_start(bench: TracesBench) -> None:
    bench.write(processors=f'{{"{PASSING}": }}', exporters="{file: {only: {signals: [logs]}}}")
    with running(*bench.arguments, ready="") as process:
        assert process.wait() == 2
        assert (
            f"processors.{PASSING}: it makes traces, and nothing here takes traces; add an exporter that takes traces" in process.lines[-1]
        )


def test_derivers_that_read_what_they_write_in_a_circle_are_refused(bench: TracesBench) -> None:
    bench.write(processors=f'{{"{PASSING}/a": {{writes: metrics.in}}, "{PASSING}/b": {{reads: metrics.in, writes: traces.in}}}}')
    with running(*bench.arguments, ready="") as process:
        assert process.wait() == 2
        assert "read what they write, in a circle" in process.lines[-1]


def test_derivers_in_a_row_drain_in_that_order_whatever_the_order_of_the_file(bench: TracesBench) -> None:
    bench.write(
        processors=f'{{"{PASSING}/second": {{reads: metrics.in, tick_s: 3600}}, "{PASSING}/first": {{writes: metrics.in, tick_s: 3600}}}}'
    )
    with running(*bench.arguments) as process:
        bench.send(20)
        process.signal(signal.SIGTERM)
        assert process.wait() == 0
    bench.wait_for_spans(20)


@pytest.mark.parametrize(
    ("variable", "other"), [("EMP_OTLP_GRPC_LISTEN", "EMP_OTLP_HTTP_LISTEN"), ("EMP_OTLP_HTTP_LISTEN", "EMP_OTLP_GRPC_LISTEN")]
)
def test_an_old_collector_on_an_otlp_port_is_an_error_that_says_what_to_do(variable: str, other: str, tmp_path: Path) -> None:
    with socket.socket() as collector:
        collector.bind(("127.0.0.1", 0))
        collector.listen()
        variables = {variable: f"127.0.0.1:{collector.getsockname()[1]}", other: "127.0.0.1:0"}
        settings = ("--set", f"http.listen=127.0.0.1:{free_port()}", "--set", "receivers.forward.listen=127.0.0.1:0")
        with running("edge", "--data-dir", str(tmp_path), *settings, ready="", **variables) as process:
            assert process.wait() == 2
            said = process.lines[-1]
    assert f"127.0.0.1:{collector_port(variables[variable])}" in said
    assert "if that is an OpenTelemetry Collector, stop it: emp-pipe takes its place" in said
    assert f"{variable}=off" in said


def collector_port(address: str) -> str:
    return address.rpartition(":")[2]

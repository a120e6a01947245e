"""SIGKILL of edge and central under OTLP traffic of all three signals: nothing acknowledged is lost, nothing is derived twice.

    OTLP clients → edge (merges metrics) → central (RED, tail sampling, merging) → a last emp-pipe → a strict OTLP endpoint

The last one is not killed and knows repeats by their block ids, so what arrives at the endpoint is what central sent, each block once.
Each round kills one process at a place where order is a promise (`failpoints.py`), or at a random moment.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.chaos.fleet import ANYWHERE, EXTRA_ROUNDS, KEY, PATIENCE_S, Books, Member, kill_in_traffic, member, seeded, write_certificates
from tests.support.command import free_port
from tests.support.otlp_endpoint import OtlpEndpoint, Received
from tests.support.otlp_sender import HALF, SIGNALS, OtlpSender

POINTS = ("log.append", "log.commit", "delivery.send", "pipeline.drain", "derive.commit", "derive.committed")


class Sink:
    """What arrived, and how often."""

    def __init__(self) -> None:
        self.spans: Counter[tuple[bytes, bytes]] = Counter()
        self.logs: Counter[int] = Counter()
        self.streams: Counter[int] = Counter()
        self.calls = 0

    def take(self, received: Received) -> None:
        assert received.status == 200
        message: Any = received.message
        if received.signal == "traces":
            rows = [span for resource in message.resource_spans for scope in resource.scope_spans for span in scope.spans]
            self.spans.update((span.trace_id, span.span_id) for span in rows)
        elif received.signal == "logs":
            rows = [row for resource in message.resource_logs for scope in resource.scope_logs for row in scope.log_records]
            self.logs.update(pair.value.int_value for row in rows for pair in row.attributes if pair.key == "sequence")
        else:
            for metric in (one for resource in message.resource_metrics for scope in resource.scope_metrics for one in scope.metrics):
                for point in metric.sum.data_points:
                    if metric.name == "chaos.done":
                        self.streams[next(pair.value.int_value for pair in point.attributes if pair.key == "stream")] += point.as_int
                    elif metric.name == "traces.span.metrics.calls":
                        self.calls += point.as_int


@dataclass
class Chain:
    """The three processes, and the edge's ports by signal."""

    edge: Member
    central: Member
    last: Member
    ports: dict[str, int]
    grpc_port: int

    @classmethod
    def configure(cls, directory: Path, sink_url: str) -> Chain:
        write_certificates(directory)
        ports, grpc_port = {signal: free_port() for signal in SIGNALS}, free_port()
        central_port, last_port = free_port(), free_port()
        tls = {"cert_file": str(directory / "cert.pem"), "key_file": str(directory / "key.pem")}
        quick = {"retry_initial_s": 0.05, "retry_max_s": 0.5}

        def secure(port: int) -> dict[str, Any]:
            return {"forward/secure": {"listen": f"127.0.0.1:{port}", "tls": tls, "shared_key": KEY}}

        def onward(port: int) -> dict[str, Any]:
            endpoint = {"endpoint": f"127.0.0.1:{port}", "tls": {"ca_file": str(directory / "ca.pem")}, "shared_key": KEY}
            return {"forward/onward": {**endpoint, **quick}}

        edge = {
            "receivers": {
                **{f"otlp_http/{signal}": {"listen": f"127.0.0.1:{port}"} for signal, port in ports.items()},
                "otlp_grpc/traces": {"listen": f"127.0.0.1:{grpc_port}"},
            },
            "processors": {"aggregate": {"interval_s": 0.3}},
            "exporters": onward(central_port),
        }
        central = {
            "receivers": secure(central_port),
            "processors": {
                "red_metrics": {"interval_s": 0.2},
                "tail_sample": {
                    "decision_wait_s": 0.8,
                    "policies": [{"type": "error"}, {"type": "probability", "percent": 50}],
                },
                "aggregate": {"interval_s": 0.3},
            },
            "exporters": onward(last_port),
        }
        last = {"receivers": secure(last_port), "exporters": {"otlp_http/sink": {"endpoint": sink_url, **quick}}}
        members = [member(directory, name, parts) for name, parts in (("edge", edge), ("central", central), ("last", last))]
        return cls(*members, ports, grpc_port)

    @property
    def members(self) -> tuple[Member, Member, Member]:
        return self.edge, self.central, self.last


def of_receivers(books: Books, signal: str) -> int:
    """Return how many records of a signal the edge's receivers appended: each has its own."""
    return sum(terms["appended"] for name, terms in books.receivers.items() if name.endswith(f"/{signal}"))


async def test_sigkill_under_otlp_traffic_loses_nothing_acknowledged_and_derives_nothing_twice(tmp_path: Path) -> None:
    chance, sink = seeded(), Sink()
    async with OtlpEndpoint(keep=False, on_received=sink.take) as endpoint:
        chain = Chain.configure(tmp_path, endpoint.url)
        sender = OtlpSender(chain.ports, chain.grpc_port, chance.getrandbits(32))
        rounds = [(member, point) for member in (chain.edge, chain.central) for point in (*POINTS, ANYWHERE)]
        rounds += [(chance.choice((chain.edge, chain.central)), chance.choice((*POINTS, ANYWHERE))) for _ in range(EXTRA_ROUNDS)]
        chance.shuffle(rounds)
        try:
            for one in reversed(chain.members):
                await one.start()
            for one in chain.members:
                await one.wait_ready()
            async with asyncio.TaskGroup() as tasks:
                sending = tasks.create_task(sender.run())
                await sender.wait_acked(200)
                for victim, point in rounds:
                    print(f"kill {victim.name} at {point}: {sender.acked_records} acked, {sender.unacked_records} in flight")
                    await kill_in_traffic(victim, point, sender, chance, before=chain.edge if victim is chain.central else None)
                    # Something must get through between two kills, or they all hit the same few records.
                    await sender.wait_acked(sender.acked_records + 100)
                sender.stop_sending()
                async with asyncio.timeout(PATIENCE_S):
                    await sending
            edge, central, last = [await one.drained_books() for one in chain.members]
            for one in chain.members:
                await one.stop()
        finally:
            for one in chain.members:
                await one.end()
        assert not endpoint.violations, endpoint.violations[:3]
        for books in (edge, central, last):
            books.assert_balanced()
        _assert_logs(sender, sink, of_receivers(edge, "logs"))
        _assert_metrics(sender, sink, of_receivers(edge, "metrics"))
        _assert_traces(sender, sink, of_receivers(edge, "traces"), central)
        print(f"{sender.acked_records} acked, {len(sender.repeated)} requests sent again, {sink.spans.total()} of {sink.calls} spans kept")


def _assert_logs(sender: OtlpSender, sink: Sink, appended: int) -> None:
    acked = sender.keys("logs")
    lost = acked.keys() - sink.logs.keys()
    assert not lost, f"{len(lost)} acknowledged logs never arrived, such as {sorted(lost)[:5]}"
    assert sink.logs.total() == appended, "edge → central → backend repeated or lost a log"


def _assert_metrics(sender: OtlpSender, sink: Sink, appended: int) -> None:
    assert sink.streams.total() == appended, "the deltas that arrived are not the sum of those that the edge took"
    for stream, least in sender.keys("metrics").items():
        assert sink.streams[stream] >= least, f"stream {stream}: {least} acknowledged, {sink.streams[stream]} arrived"


def _assert_traces(sender: OtlpSender, sink: Sink, appended: int, central: Books) -> None:
    assert sink.calls == appended, "RED counted other spans than the edge took"
    kept = {key: _is_kept(*key) for key in sender.keys("traces")}
    lost = [key for key, keep in kept.items() if keep and not sink.spans[key[:2]]]
    assert not lost, f"{len(lost)} acknowledged spans of kept traces never arrived"
    strange = [key for key, keep in kept.items() if not keep and sink.spans[key[:2]]]
    assert not strange, f"{len(strange)} spans of dropped traces arrived"
    twice = [key for key in sender.keys("traces", once=True) if sink.spans[key[:2]] > 1]
    assert not twice, f"{len(twice)} spans were sent twice"
    assert {True, False} == set(kept.values())
    sampled = central.groups["traces.in", "tail_sample"]
    assert sampled["appended"] == central.groups["traces.in", "red_metrics"]["acked"] == appended
    assert sink.spans.total() == sampled["acked"] == appended - sampled["skipped"], "the sampler's books do not say what it sent"


def _is_kept(trace_id: bytes, span_id: bytes, failed: bool) -> bool:
    return failed or int.from_bytes(trace_id[-7:], "big") >= HALF

"""SIGKILL of edge and central under OTLP traffic of all three signals: nothing acknowledged is lost, nothing is derived twice.

    OTLP clients → edge (merges metrics) → central (RED, tail sampling, merging) → a last emp-pipe → a strict OTLP endpoint

The last one is not killed and knows repeats by their block ids, so what arrives at the endpoint is what central sent, each block once.
Each round kills one process at a place where order is a promise (`failpoints.py`), or at a random moment.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.chaos.fleet import ANYWHERE, EXTRA_ROUNDS, KEY, PATIENCE_S, Member, kill_in_traffic, member, seeded, write_certificates
from tests.chaos.witness import Sink, assert_logs, assert_metrics, assert_traces, of_receivers
from tests.support.command import free_port
from tests.support.otlp_endpoint import OtlpEndpoint
from tests.support.otlp_sender import SIGNALS, OtlpSender

POINTS = ("log.append", "log.commit", "delivery.send", "pipeline.drain", "derive.commit", "derive.committed")


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
        assert_logs(sender, sink, of_receivers(edge, "logs"))
        assert_metrics(sender, sink, of_receivers(edge, "metrics"))
        assert_traces(sender, sink, of_receivers(edge, "traces"), central)
        print(f"{sender.acked_records} acked, {len(sender.repeated)} requests sent again, {sink.spans.total()} of {sink.calls} spans kept")

"""One process with everything that derives, and a last one behind it that knows repeats:

    OTLP clients → hub (RED, tail sampling, merging) → last → a strict OTLP endpoint

What arrives at the endpoint is what the hub sent, each block once, whatever becomes of the hub.
"""

from __future__ import annotations

import asyncio
import urllib.error
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.chaos.fleet import KEY, PATIENCE_S, Member, member, write_certificates
from tests.chaos.witness import Sink, assert_logs, assert_metrics, assert_traces, of_receivers
from tests.support.command import free_port
from tests.support.otlp_endpoint import OtlpEndpoint
from tests.support.otlp_sender import SIGNALS, OtlpSender

QUICK = {"retry_initial_s": 0.05, "retry_max_s": 0.5}


@dataclass
class Hub:
    """The two processes, and where to send to."""

    hub: Member
    last: Member
    ports: dict[str, int]
    grpc_port: int
    data_dir: Path

    @classmethod
    def configure(
        cls, directory: Path, data_dir: Path, sink_url: str, buffer: dict[str, Any], exporter: dict[str, Any] | None = None
    ) -> Hub:
        """`data_dir`: the hub's. `exporter`: more of its settings for the way on."""
        write_certificates(directory)
        ports, grpc_port, last_port = {signal: free_port() for signal in SIGNALS}, free_port(), free_port()
        onward = {"endpoint": f"127.0.0.1:{last_port}", "tls": {"ca_file": str(directory / "ca.pem")}, "shared_key": KEY}
        parts = {
            "data_dir": str(data_dir),
            "receivers": {
                **{f"otlp_http/{signal}": {"listen": f"127.0.0.1:{port}"} for signal, port in ports.items()},
                "otlp_grpc/traces": {"listen": f"127.0.0.1:{grpc_port}"},
            },
            "processors": {
                "red_metrics": {"interval_s": 0.2},
                "tail_sample": {"decision_wait_s": 0.8, "policies": [{"type": "error"}, {"type": "probability", "percent": 50}]},
                "aggregate": {"interval_s": 0.3},
            },
            "exporters": {"forward/onward": {**onward, **QUICK, **(exporter or {})}},
        }
        tls = {"cert_file": str(directory / "cert.pem"), "key_file": str(directory / "key.pem")}
        last = {
            "receivers": {"forward/secure": {"listen": f"127.0.0.1:{last_port}", "tls": tls, "shared_key": KEY}},
            "exporters": {"otlp_http/sink": {"endpoint": sink_url, **QUICK}},
        }
        return cls(member(directory, "hub", parts, buffer), member(directory, "last", last), ports, grpc_port, data_dir)

    def sender(self, seed: int, **settings: Any) -> OtlpSender:
        return OtlpSender(self.ports, self.grpc_port, seed, **settings)

    async def readiness(self) -> str:
        """Return "" when the hub takes records, else what it says."""
        try:
            await asyncio.to_thread(self.hub._get, "/readyz")
        except urllib.error.HTTPError as error:
            return error.read().decode()
        except OSError as error:
            return f"it does not serve: {error}"
        return ""

    async def wait_refusing(self, *whys: str) -> None:
        """Return when receivers wait, for one of the reasons given."""
        said = ""
        try:
            async with asyncio.timeout(PATIENCE_S):
                while not any(why in said for why in whys):
                    assert self.hub.process is not None
                    assert self.hub.process.returncode is None, f"it ended:\n{self.hub.tail()}"
                    await asyncio.sleep(0.05)
                    said = await self.readiness()
        except TimeoutError:
            raise AssertionError(f"not refused for {whys}; /readyz says {said!r}\n{self.hub.tail()}") from None

    async def wait_admitting(self) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while await self.readiness():  # noqa: ASYNC110 (another process)
                await asyncio.sleep(0.05)

    async def check(self, sender: OtlpSender, sink: Sink, endpoint: OtlpEndpoint) -> None:
        """Wait until all has drained; then every acknowledged record has arrived, what is derived is right, and the books balance."""
        hub, last = [await one.drained_books() for one in (self.hub, self.last)]
        assert not endpoint.violations, endpoint.violations[:3]
        hub.assert_balanced()
        last.assert_balanced()
        assert_logs(sender, sink, of_receivers(hub, "logs"))
        assert_metrics(sender, sink, of_receivers(hub, "metrics"))
        assert_traces(sender, sink, of_receivers(hub, "traces"), hub)
        print(f"{sender.acked_records} acked, {len(sender.repeated)} requests sent again, {sink.spans.total()} of {sink.calls} spans kept")

    async def stop(self) -> None:
        for one in (self.hub, self.last):
            await one.stop()


@asynccontextmanager
async def cleaned_up(hub: Hub) -> AsyncIterator[None]:
    """Let no process outlive the test."""
    try:
        yield
    finally:
        for one in (hub.hub, hub.last):
            if one.process is not None and one.process.returncode is None:
                one.kill()
                await one.process.wait()

"""Several OTLP destinations of one process: each has its own group, requests, headers, compression and TLS, and waits for no other."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import grpc
import pytest
import trustme

from emp_pipe.buffers.memory import MemoryConfig, MemoryLog
from emp_pipe.delivery.loop import DeliveryLoop
from emp_pipe.log.protocol import Append, GroupBooks, GroupSpec, Topic
from tests.support.context import make_context
from tests.support.otlp_destinations import SIGNALS, OtlpDestination, block_of
from tests.support.otlp_endpoint import Answer, OtlpEndpoint
from tests.support.otlp_grpc_endpoint import GrpcAnswer, OtlpGrpcEndpoint

NAMES = {f"{block}.{row}" for block in range(40) for row in range(10)}


class SideBySide:
    """A log with a group and a loop for each exporter."""

    def __init__(self, exporters: Mapping[str, Any]) -> None:
        self.context = make_context()
        self.log = MemoryLog("memory", MemoryConfig(), self.context)
        self.loops = {name: DeliveryLoop(exporter, self.log, name, self.context) for name, exporter in exporters.items()}

    def held(self, group: str) -> int:
        return next(usage.held_records for usage in self.log.usage().groups if usage.spec.name == group)

    async def until_delivered(self, *groups: str) -> None:
        async with asyncio.timeout(20):
            while any(self.held(group) for group in groups):  # noqa: ASYNC110
                await asyncio.sleep(0.002)

    async def books(self, group: str) -> list[GroupBooks]:
        return [books for books in await self.log.group_books() if books.group == group]


@contextlib.asynccontextmanager
async def side_by_side(**exporters: Any) -> AsyncIterator[SideBySide]:
    subject = SideBySide(exporters)
    await subject.log.open([GroupSpec(name, frozenset(Topic)) for name in exporters])
    async with asyncio.TaskGroup() as tasks:
        for loop in subject.loops.values():
            tasks.create_task(loop.run())
        try:
            yield subject
        finally:
            deadline_s = subject.context.clock.monotonic_s() + 1.0
            await asyncio.gather(*(loop.stop(deadline_s) for loop in subject.loops.values()))


async def append_everything(subject: SideBySide) -> None:
    for block in range(40):
        blocks = [block_of(signal, [f"{block}.{row}" for row in range(10)], codec="zstd") for signal in SIGNALS]
        await subject.log.append(Append(blocks=blocks))


def assert_has_everything(destination: OtlpDestination) -> None:
    assert not destination.endpoint.violations
    for signal in SIGNALS:
        assert destination.arrived(signal) == Counter(NAMES)


TROUBLE = {
    "closed": {},
    "black hole": {"never": True},
    "slow": {"delay_s": 5.0},
    "unavailable": {"code": "UNAVAILABLE", "status": 503},
    "asks for a minute": {"code": "UNAVAILABLE", "status": 503, "wait_s": 60.0},
    "refuses the key": {"code": "UNAUTHENTICATED", "status": 401},
}


@pytest.mark.parametrize("protocol", ["http", "grpc"])
@pytest.mark.parametrize("trouble", list(TROUBLE))
async def test_a_destination_in_trouble_delays_no_other_and_keeps_what_is_its_own(protocol: str, trouble: str) -> None:
    what: dict[str, Any] = TROUBLE[trouble]
    endpoint: Any = OtlpGrpcEndpoint() if protocol == "grpc" else OtlpEndpoint()
    async with contextlib.AsyncExitStack() as stack:
        if trouble != "closed":
            await stack.enter_async_context(endpoint)
        else:
            endpoint.port = 9
        wait_s = what.get("wait_s")
        if protocol == "grpc":
            answer: Any = GrpcAnswer(what.get("code", "OK"), "no", wait_s, never=what.get("never", False), delay_s=what.get("delay_s", 0.0))
        else:
            delay_s = 600.0 if what.get("never") else what.get("delay_s", 0.0)
            answer = Answer(what.get("status", 200), "no", None if wait_s is None else f"{wait_s:g}", delay_s=delay_s)
        endpoint.always(answer)
        http = OtlpDestination(await stack.enter_async_context(OtlpEndpoint()))
        by_grpc = OtlpDestination(await stack.enter_async_context(OtlpGrpcEndpoint()))
        troubled = OtlpDestination(endpoint).exporter(timeout_s=1.0)
        subject = await stack.enter_async_context(side_by_side(http=http.exporter(), grpc=by_grpc.exporter(), troubled=troubled))
        await append_everything(subject)
        await subject.until_delivered("http", "grpc")
        assert_has_everything(http)
        assert_has_everything(by_grpc)
        assert subject.held("troubled") == 1200
        async with asyncio.timeout(20):  # its last task ends a moment after the last block was delivered
            while any(subject.loops[loop].status().state != "idle" for loop in ("http", "grpc")):  # noqa: ASYNC110 — nobody tells
                await asyncio.sleep(0.01)
        assert all(books.dead == 0 for books in await subject.books("troubled"))


async def test_each_destination_has_its_own_headers_compression_concurrency_and_tls(tmp_path: Path) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    certificate = authority.issue_cert("otlp.example")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate.configure_cert(context)
    pair = (certificate.private_key_pem.bytes(), b"".join(one.bytes() for one in certificate.cert_chain_pems))
    credentials = grpc.ssl_server_credentials([pair])
    tls = {"ca_file": tmp_path / "ca.pem", "server_name": "otlp.example"}
    async with (
        OtlpEndpoint(token="a", required_headers={"X-Team": "one"}) as plain_http,
        OtlpEndpoint(token="b", tls=context) as secure_http,
        OtlpGrpcEndpoint(token="c", required_headers={"x-team": "three"}) as plain_grpc,
        OtlpGrpcEndpoint(token="d", credentials=credentials) as secure_grpc,
    ):
        destinations = {
            "http/one": (plain_http, {"token": "a", "headers": {"X-Team": "one"}, "compression": "zstd", "max_concurrency": 1}),
            "http/two": (secure_http, {"token": "b", "tls": tls, "compression": "none"}),
            "grpc/three": (plain_grpc, {"token": "c", "headers": {"X-Team": "three"}, "max_concurrency": 1}),
            "grpc/four": (secure_grpc, {"token": "d", "tls": tls, "compression": "gzip"}),
        }
        made = {name: OtlpDestination(endpoint) for name, (endpoint, _) in destinations.items()}
        exporters = {name: made[name].exporter(**settings) for name, (_, settings) in destinations.items()}
        async with side_by_side(**exporters) as subject:
            await append_everything(subject)
            await subject.until_delivered(*destinations)
            for name, destination in made.items():
                assert_has_everything(destination)
                assert all(books.dead == 0 for books in await subject.books(name))
        assert {request.headers.get("Content-Encoding") for request in plain_http.received} == {"zstd"}
        assert {request.headers.get("Content-Encoding") for request in secure_http.received} == {None}
        assert (plain_http.most_in_flight, plain_grpc.most_in_flight) == (1, 1)

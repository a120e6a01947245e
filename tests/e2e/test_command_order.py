"""The real command with `in_order`: a foreign peer that writes entries down as they come gets them as they came, over lost acks too."""

from __future__ import annotations

import contextlib
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest

from tests.support.command import running, until
from tests.support.command_bench import Bench, send
from tests.support.forward_peers import ForeignServer
from tests.support.otlp_strict import in_a_thread

RECORDS = 300


class _Peer:
    """A strict stand-in for fluentd, for a test that blocks."""

    def __init__(self) -> None:
        self.server = ForeignServer("fluentd", close_before_ack_of=2)
        self._serving: AbstractAsyncContextManager[ForeignServer] = contextlib.nullcontext(self.server)

    async def __aenter__(self) -> _Peer:
        self._serving = self.server.serving()
        await self._serving.__aenter__()
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self._serving.__aexit__(None, None, None)


@pytest.mark.parametrize("in_order", [True, False])
def test_a_foreign_peer_gets_entries_in_the_order_of_their_source_where_it_is_asked_for(tmp_path: Path, in_order: bool) -> None:
    bench = Bench(tmp_path)
    with in_a_thread(_Peer()) as peer:  # type: ignore[type-var]  # an endpoint of another protocol
        server = peer.server
        settings = f"endpoint: '127.0.0.1:{server.port}', shared_key: s3cret, in_order: {str(in_order).lower()}, retry_initial_s: 3"
        bench.write(exporters=f"{{forward: {{{settings}}}}}")
        with running(*bench.arguments):
            for start in range(0, RECORDS, 10):
                send(bench.port, 10, start=start)
            until(lambda: bench.groups()["forward"]["held_records"] == 0 and len(server.entries) >= RECORDS, "all is acknowledged")
    numbers = [int(record["message"].split()[1]) for _, record in server.entries]
    assert set(numbers) == set(range(RECORDS)), "an entry is missing"
    assert len(numbers) > RECORDS, "no chunk came twice: its ack was not lost"
    assert server.complaints == []
    if in_order:
        assert list(dict.fromkeys(numbers)) == list(range(RECORDS)), "an entry came before an earlier one"
        assert list(dict.fromkeys(reversed(numbers))) == list(range(RECORDS))[::-1], "the chunk whose ack was lost was overtaken by others"

"""The event loops of the end-to-end tests: receivers run on uvloop as in the product, their promises hold on asyncio's own too. And the
ways in of OTLP: what a test promises of `transport` holds for both."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
import uvloop

from tests.support.otlp_receiving import Transport

_ON_BOTH_LOOPS = (
    "test_accepting",
    "test_http_client",
    "test_forward_receiver",
    "test_forward_pressure",
    "test_forward_http",
    "test_otlp_receivers",
    "test_otlp_http_receiver",
    "test_otlp_pressure",
)


def pytest_asyncio_loop_factories(config: pytest.Config, item: pytest.Item) -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    module = item.path.stem
    loops: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {}
    if module.startswith(_ON_BOTH_LOOPS) or not module.startswith(("test_forward", "test_otlp")):
        loops["asyncio"] = asyncio.new_event_loop
    if module.startswith(("test_accepting", "test_forward", "test_http", "test_otlp", "test_syslog")):
        loops["uvloop"] = uvloop.new_event_loop
    return loops


@pytest.fixture(params=["http", "grpc"])
def transport(request: pytest.FixtureRequest) -> Transport:
    name: Transport = request.param
    return name

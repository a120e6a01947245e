"""The event loops of the end-to-end tests: Forward runs on uvloop as in the product, the receiver's promises hold on asyncio's own too."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
import uvloop


def pytest_asyncio_loop_factories(config: pytest.Config, item: pytest.Item) -> dict[str, Callable[[], asyncio.AbstractEventLoop]] | None:
    module = item.path.stem
    loops: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {}
    if module == "test_forward_receiver":
        loops["asyncio"] = asyncio.new_event_loop
    if module.startswith("test_forward"):
        loops["uvloop"] = uvloop.new_event_loop
    return loops or None

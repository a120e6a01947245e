"""Strangers at a Forward receiver: slow ones, floods, wrong keys. Every good record arrives, memory and connections stay bounded, and who
is turned away is counted. What throughput good clients keep is a figure of `bench/cases_security.py`."""

from __future__ import annotations

import asyncio
import json
import os
import re
import ssl
from pathlib import Path
from typing import Any

import pytest

from bench.strangers import KINDS, GoodClient, attack
from tests.chaos.fleet import seeded
from tests.support.command import Running, running, until
from tests.support.forward import Certificates
from tests.support.strangers import get, health, listening, metric

SECONDS = 3.0 if "CHAOS_ROUNDS" not in os.environ else 30.0
"""The long form is `make chaos`."""
KEY = "the key of the fleet"
OF_ONE_ADDRESS = 100
MOST_GROWTH_KB = 65_536
COUNTED = {
    "slowloris": [
        ("cut_connections_total", {"reason": "too_many_from_address"}),
        ("forward_refused_handshakes_total", {"reason": "timed_out"}),
    ],
    "connections": [("forward_received_connections_total", {})],
    "tls_handshakes": [("cut_connections_total", {"reason": "refused_too_often"})],
    "wrong_keys": [
        ("forward_refused_handshakes_total", {"reason": "shared_key"}),
        ("cut_connections_total", {"reason": "refused_too_often"}),
    ],
}


def resident_kb(command: Running) -> int:
    found = re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{command.process.pid}/status").read_text())
    assert found is not None
    return int(found[1])


def arrived(directory: Path) -> set[int]:
    lines = [line for path in directory.rglob("*.jsonl") for line in path.read_text().splitlines()]
    return {int(number) for line in lines for number in re.findall(r'"sequence": ?"?(\d+)', line)}


@pytest.mark.parametrize("kind", KINDS)
async def test_under_strangers_every_good_record_arrives_and_what_they_take_is_bounded_and_counted(tmp_path: Path, kind: str) -> None:
    chance = seeded()
    certificates = Certificates(tmp_path)
    cert, key = map(str, certificates.issue("server"))
    by_tls = kind == "tls_handshakes"
    receiver: dict[str, Any] = {
        "listen": "127.0.0.1:0",
        "shared_key": {"env": "KEY"},
        "max_connections_per_address": OF_ONE_ADDRESS,
        "handshake_timeout_s": 1,
    }
    if by_tls:
        receiver["tls"] = {"cert_file": cert, "key_file": key}
    config = {
        "data_dir": str(tmp_path / "data"),
        "http": {"listen": "127.0.0.1:0"},
        "receivers": {"forward": receiver},
        "exporters": {"file": {}},
    }
    (tmp_path / "emp.yaml").write_text(json.dumps(config))
    with running("run", str(tmp_path / "emp.yaml"), KEY=KEY) as command:
        port, metrics = listening(command, "forward"), f"{health(command)}/metrics"
        context = ssl.create_default_context(cafile=str(certificates.ca_file)) if by_tls else None
        good = GoodClient(port, KEY, context)
        await good.run(1.0)
        before_kb = resident_kb(command)
        most_open = 0

        async def watch() -> None:
            nonlocal most_open
            while True:
                text = (await asyncio.to_thread(get, metrics))[1]
                most_open = max(most_open, int(metric(text, "forward_open_connections", component="forward")))
                await asyncio.sleep(0.2)

        watching = asyncio.create_task(watch())
        came, _ = await asyncio.gather(attack(kind, port, chance.uniform(300, 1000), SECONDS), good.run(SECONDS))
        watching.cancel()
        text = get(metrics)[1]
        growth_kb = resident_kb(command) - before_kb
        until(lambda: arrived(tmp_path / "data") >= set(good.acked), "every acknowledged record is at the destination")
        assert came > 100, "strangers came"
        assert good.acked
        assert most_open <= OF_ONE_ADDRESS + good.connections, "no more strangers are open than an address may have"
        assert growth_kb < MOST_GROWTH_KB
        for name, labels in COUNTED[kind]:
            assert metric(text, name, component="forward", **labels) > 0, (name, labels)
        until(lambda: metric(get(metrics)[1], "forward_open_connections", component="forward") == 0, "nobody is left")

"""What strangers cost: good clients under attack against good clients alone, and many silent TLS connections on one central.

Strangers are a process of their own, yet share the machine's cores with emp-pipe: what the attack itself burns counts against us.
"""

from __future__ import annotations

import asyncio
import json
import re
import resource
import ssl
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from bench.figures import Figure, percentile, quartiles
from bench.runs import VoidRun
from bench.strangers import GoodClient
from bench.subjects import REPOSITORY

_KEY = "the key of the bench"
_ATTACKS = {
    "slowloris": ("plain", 500.0),
    "connections": ("plain", 1000.0),
    "tls_handshakes": ("tls", 300.0),
    "wrong_keys": ("plain", 1000.0),
}
_SECONDS = 4.0
_WANTED = 0.8
_FEW, _MANY = 1_000, 10_000
_SLOPE_AIM_KB = 64.0
_OPEN_FILES = 16_000
_PATIENCE_S = 240.0


class Central(NamedTuple):
    process: subprocess.Popen[str]
    ports: dict[str, int]
    ca_file: Path

    def resident_kb(self) -> int:
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+)", text)[1])  # type: ignore[index]


@contextmanager
def _central() -> Iterator[Central]:
    """Run a central with Forward behind a key, plain and by TLS."""
    import trustme

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < _OPEN_FILES:
        raise VoidRun(f"needs {_OPEN_FILES} open files, the limit is {hard}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, _OPEN_FILES), hard))
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        authority = trustme.CA()
        authority.cert_pem.write_to_path(directory / "ca.pem")
        issued = authority.issue_cert("localhost")
        issued.private_key_pem.write_to_path(directory / "key.pem")
        issued.cert_chain_pems[0].write_to_path(directory / "cert.pem")
        behind_a_key = {"listen": "127.0.0.1:0", "shared_key": {"env": "KEY"}, "udp_heartbeat": False}
        tls = {"cert_file": str(directory / "cert.pem"), "key_file": str(directory / "key.pem")}
        many = {"max_connections": _MANY + 500, "max_connections_per_address": _MANY + 500, "handshake_timeout_s": 600}
        receivers = {
            "forward/plain": behind_a_key,
            "forward/tls": behind_a_key | {"tls": tls},
            "forward/many": {"listen": "127.0.0.1:0", "udp_heartbeat": False, "tls": tls, **many},
        }
        config = {"data_dir": str(directory / "data"), "http": {"enabled": False}, "receivers": receivers, "exporters": {"noop": {}}}
        (directory / "emp.yaml").write_text(json.dumps(config))
        process = subprocess.Popen(
            [sys.executable, "-m", "emp_pipe", "run", str(directory / "emp.yaml")],
            env={"PYTHONPATH": str(REPOSITORY / "python"), "PATH": "/usr/bin:/bin", "KEY": _KEY},
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            yield Central(process, _ports(process, len(receivers)), directory / "ca.pem")
        finally:
            process.kill()
            process.wait()


def _ports(process: subprocess.Popen[str], count: int) -> dict[str, int]:
    assert process.stderr is not None
    ports: dict[str, int] = {}
    for line in process.stderr:
        if found := re.search(r'"source": ?"([^"]+)".*listening on 127\.0\.0\.1:(\d+)', line):
            ports[found[1]] = int(found[2])
        elif found := re.search(r'listening on 127\.0\.0\.1:(\d+).*"source": ?"([^"]+)"', line):
            ports[found[2]] = int(found[1])
        if len(ports) == count:
            return ports
    raise VoidRun("the central did not start")


def run_attacks(pairs: int, say: Callable[[str], None]) -> list[Figure]:
    """Return for each attack what throughput good clients keep, of what they have alone; both measured in turns."""
    figures = []
    with _central() as central:
        _drain(central)
        for kind, (way, per_s) in _ATTACKS.items():
            alone: list[float] = []
            attacked: list[float] = []
            port = central.ports[f"forward/{way}"]
            context = ssl.create_default_context(cafile=str(central.ca_file)) if way == "tls" else None
            asyncio.run(GoodClient(port, _KEY, context).run(1.0))
            for _ in range(pairs):
                alone.append(asyncio.run(GoodClient(port, _KEY, context).run(_SECONDS)))
                with _strangers(kind, port, per_s, _SECONDS + 1.0) as strangers:
                    time.sleep(0.5)
                    attacked.append(asyncio.run(GoodClient(port, _KEY, context).run(_SECONDS)))
                    came = int(strangers.communicate(timeout=_PATIENCE_S)[0])
            ratios = [under / free for under, free in zip(attacked, alone, strict=True)]
            figure = Figure(f"good_clients_under_{kind}", statistics.median(attacked), "records/s", pairs=pairs, bar=_WANTED)
            figure.reference, figure.ratio = statistics.median(alone), statistics.median(ratios)
            figure.value_quartiles, figure.reference_quartiles, figure.ratio_quartiles = map(quartiles, (attacked, alone, ratios))
            figure.note = f"share kept of the throughput without strangers; they came {came / (_SECONDS + 1.0):.0f} times a second"
            figure.more = {"resident_kb": central.resident_kb()}
            say(f"{figure.name}: {figure.value:.0f} of {figure.reference:.0f} records/s, {figure.ratio:.2f} kept ({figure.note})")
            figures.append(figure)
    return figures


@contextmanager
def _strangers(*arguments: object) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "bench.strangers", "attack", *map(str, arguments)],
        env={"PYTHONPATH": f"{REPOSITORY}:{REPOSITORY / 'python'}", "PATH": "/usr/bin:/bin"},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def _drain(central: Central) -> None:
    """Read on what the central logs, or its pipe fills."""
    import threading

    assert central.process.stderr is not None
    threading.Thread(target=central.process.stderr.read, daemon=True).start()


def run_idle_tls(say: Callable[[str], None]) -> list[Figure]:
    """Return what a silent TLS connection takes of memory, and how long an ack takes beside a thousand and ten thousand of them."""
    with _central() as central:
        _drain(central)
        port = central.ports["forward/many"]
        traffic = central.ports["forward/tls"]
        context = ssl.create_default_context(cafile=str(central.ca_file))
        asyncio.run(GoodClient(traffic, _KEY, context).run(1.0))
        idle = subprocess.Popen(
            [sys.executable, "-m", "bench.strangers", "idle", str(port), str(central.ca_file)],
            env={"PYTHONPATH": f"{REPOSITORY}:{REPOSITORY / 'python'}", "PATH": "/usr/bin:/bin"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            resident_kb, p99_ms, rates = {}, {}, {}
            for count in (_FEW, _MANY):
                assert idle.stdin is not None
                assert idle.stdout is not None
                idle.stdin.write(f"{count}\n")
                idle.stdin.flush()
                said = idle.stdout.readline()
                if said.strip() != str(count):
                    raise VoidRun(f"{count} connections were wanted, {said.strip() or 'none'} are open")
                time.sleep(3.0)  # a connection that is silent gives its buffers back after a sweep
                resident_kb[count] = central.resident_kb()
                client = GoodClient(traffic, _KEY, context, records_per_chunk=20)
                rates[count] = asyncio.run(client.run(10.0))
                p99_ms[count] = percentile(client.latencies_s, 99) * 1000
                say(f"{count} idle TLS connections: {resident_kb[count]:,} KB resident, ack p99 {p99_ms[count]:.1f} ms")
        finally:
            idle.kill()
            idle.wait()
    slope_kb = (resident_kb[_MANY] - resident_kb[_FEW]) / (_MANY - _FEW)
    note = f"{resident_kb[_FEW]:,} KB with {_FEW:,} connections, {resident_kb[_MANY]:,} KB with {_MANY:,}"
    latency = f"beside {_MANY:,} idle TLS connections, at {rates[_MANY]:.0f} records/s; beside {_FEW:,}: {p99_ms[_FEW]:.1f} ms"
    return [
        Figure("idle_tls_connection_resident", slope_kb, "KB", aim=_SLOPE_AIM_KB, note=note),
        Figure("ack_p99_beside_idle_tls", p99_ms[_MANY], "ms", note=latency),
    ]

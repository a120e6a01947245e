"""An edge and a central as real processes on loopback, killed and started again; and the books, read from their own metrics."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
import urllib.request
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import trustme
import yaml
from prometheus_client.parser import text_string_to_metric_families

from tests.support.command import ROOT, environment, free_port

PATIENCE_S = 60.0
KEY = "chaos-key"
ANYWHERE = "anywhere"
EXTRA_ROUNDS = int(os.environ.get("CHAOS_ROUNDS", "0"))


@dataclass
class Member:
    """One `emp-pipe run FILE`; `start(failpoint)` begins it anew on the same data directory."""

    name: str
    config_file: Path
    http_port: int
    data_dir: Path
    log_file: Path
    process: asyncio.subprocess.Process | None = None
    variables: Mapping[str, str] = field(default_factory=dict)
    """More of its environment."""

    async def start(self, failpoint: str = "") -> None:
        with self.log_file.open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "emp_pipe",
                "run",
                str(self.config_file),
                env=environment(**self.variables, **({"EMP_PIPE_FAILPOINT": failpoint} if failpoint else {})),
                cwd=ROOT,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    async def wait_ready(self) -> None:
        """Return when `/readyz` says 200, or when the process has ended (a failpoint may come first)."""
        assert self.process is not None
        async with asyncio.timeout(PATIENCE_S):
            while self.process.returncode is None:
                try:
                    await asyncio.to_thread(self._get, "/readyz")
                    return
                except OSError:
                    await asyncio.sleep(0.05)

    async def wait_killed(self) -> None:
        """Return when the process has ended by SIGKILL; anything else is a failure."""
        assert self.process is not None
        async with asyncio.timeout(PATIENCE_S):
            code = await self.process.wait()
        assert code == -signal.SIGKILL, f"{self.name} ended with {code}, not by SIGKILL:\n{self.tail()}"

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()

    def terminate(self) -> None:
        assert self.process is not None
        self.process.terminate()

    async def stop(self) -> None:
        """Stop in order."""
        assert self.process is not None
        self.terminate()
        async with asyncio.timeout(PATIENCE_S):
            code = await self.process.wait()
        assert code == 0, f"{self.name} ended with {code}:\n{self.tail()}"

    async def end(self) -> None:
        """Kill it if it still runs."""
        if self.process is not None and self.process.returncode is None:
            self.kill()
            await self.process.wait()

    def tail(self) -> str:
        return "\n".join(self.log_file.read_text(errors="replace").splitlines()[-30:])

    def _get(self, path: str) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.http_port}{path}", timeout=5) as answer:
            text: str = answer.read().decode()
            return text

    async def books(self) -> Books:
        return Books.parse(await asyncio.to_thread(self._get, "/metrics"))

    async def held_records(self) -> int:
        """Return what its groups hold."""
        return sum(terms["held"] for terms in (await self.books()).groups.values())

    async def drained_books(self, *, dead_letters: bool = False) -> Books:
        """Return the books once no group holds anything any more; `dead_letters`: those may stay."""
        books = Books()
        try:
            async with asyncio.timeout(PATIENCE_S):
                while True:
                    books = await self.books()
                    held_by = [group for group, terms in books.groups.items() if terms["held"]]
                    if books.groups and all(dead_letters and topic == "dead" for topic, _ in held_by):
                        return books
                    await asyncio.sleep(0.1)
        except TimeoutError:
            held = {group: terms["held"] for group, terms in books.groups.items() if terms["held"]}
            raise AssertionError(f"{self.name} still holds {held}\n{self.tail()}") from None


@dataclass
class Books:
    """Both equations of the log, as `/metrics` says them."""

    receivers: dict[str, dict[str, int]] = field(default_factory=lambda: defaultdict(lambda: defaultdict(int)))
    groups: dict[tuple[str, str], dict[str, int]] = field(default_factory=lambda: defaultdict(lambda: defaultdict(int)))

    @classmethod
    def parse(cls, text: str) -> Books:
        books = cls()
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                labels, value = sample.labels, int(sample.value)
                if sample.name == "emp_pipe_receiver_records_total":
                    books.receivers[labels["component"]][labels["outcome"]] += value
                elif sample.name == "emp_pipe_group_records_total":
                    books.groups[labels["topic"], labels["group"]][labels["outcome"]] += value
                elif sample.name == "emp_pipe_group_held_records":
                    books.groups[labels["topic"], labels["group"]]["held"] += value
        return books

    @property
    def appended(self) -> int:
        """Records that all receivers appended."""
        return sum(terms["appended"] for terms in self.receivers.values())

    def assert_balanced(self) -> None:
        assert self.receivers
        assert self.groups
        for receiver, terms in self.receivers.items():
            parts = sum(terms[name] for name in ("appended", "invalid", "refused", "dropped", "duplicate"))
            assert terms["received"] == parts, f"{receiver}: received = appended + … does not hold: {dict(terms)}"
        for group, terms in self.groups.items():
            parts = sum(terms[name] for name in ("acked", "dead", "dropped", "skipped", "held"))
            assert terms["appended"] == parts, f"{group}: appended = acked + … does not hold: {dict(terms)}"


@dataclass
class Fleet:
    """edge → central (TLS, shared key) → an OTLP endpoint."""

    edge: Member
    central: Member
    edge_port: int

    @classmethod
    def configure(cls, directory: Path, sink_url: str, buffer: dict[str, Any] | None = None) -> Fleet:
        write_certificates(directory)
        edge_port, central_port = free_port(), free_port()
        quick = {"retry_initial_s": 0.05, "retry_max_s": 0.5}
        central = member(
            directory,
            "central",
            {
                "receivers": {
                    "forward/secure": {
                        "listen": f"127.0.0.1:{central_port}",
                        "tls": {"cert_file": str(directory / "cert.pem"), "key_file": str(directory / "key.pem")},
                        "shared_key": KEY,
                    }
                },
                "exporters": {"otlp_http/sink": {"endpoint": sink_url, **quick}},
            },
            buffer,
        )
        edge = member(
            directory,
            "edge",
            {
                "receivers": {"forward": {"listen": f"127.0.0.1:{edge_port}", "detect_duplicates": "all"}},
                "exporters": {
                    "forward/central": {
                        "endpoint": f"127.0.0.1:{central_port}",
                        "tls": {"ca_file": str(directory / "ca.pem")},
                        "shared_key": KEY,
                        **quick,
                    }
                },
            },
            buffer,
        )
        return cls(edge, central, edge_port)


def write_certificates(directory: Path) -> None:
    """Make ca.pem, cert.pem and key.pem for loopback."""
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1", "localhost")
    authority.cert_pem.write_to_path(str(directory / "ca.pem"))
    certificate.private_key_pem.write_to_path(str(directory / "key.pem"))
    with (directory / "cert.pem").open("wb") as file:
        for pem in certificate.cert_chain_pems:
            file.write(pem.bytes())
    os.chmod(directory / "key.pem", 0o600)


def member(directory: Path, name: str, parts: dict[str, Any], buffer: dict[str, Any] | None = None) -> Member:
    """Write the file of a process."""
    http_port = free_port()
    config = {
        "data_dir": str(directory / name),
        "machine_id": f"gpu-{name}",
        "http": {"listen": f"127.0.0.1:{http_port}"},
        "buffer": {"type": "sqlite", **(buffer or {})},
        "shutdown": {"deadline_s": 30},
        **parts,
    }
    file = directory / f"{name}.yaml"
    file.write_text(yaml.safe_dump(config))
    return Member(name, file, http_port, directory / name, directory / f"{name}.log")


class Sender(Protocol):
    """A client that knows what was acknowledged and what is on its way."""

    @property
    def acked_records(self) -> int: ...

    @property
    def unacked_records(self) -> int: ...

    async def wait_acked(self, records: int) -> None: ...


async def kill_in_traffic(
    member: Member, point: str, sender: Sender, chance: random.Random, before: Member | None = None, *, required: bool = True
) -> bool:
    """Let a process die at a point, with data on its way to it, and start it again; return whether data was on its way.

    `before`: who sends to it, where that is not the sender; what that one holds is on its way too. `required`: it must have been.
    Where it dies in a stop, what was on its way when it was told to stop: until it dies all of that may have been acknowledged."""
    at_the_stop = 0
    if point == ANYWHERE:
        await sender.wait_acked(sender.acked_records + chance.randint(40, 400))
        await asyncio.sleep(chance.random() * 0.05)
        member.kill()
        await member.wait_killed()
    else:
        # A fresh process has the failpoint in its environment; what kills the old one is one more kill anywhere.
        member.kill()
        await member.wait_killed()
        most_passes = {"pipeline.drain": 1, "derive.commit": 4, "derive.committed": 4}.get(point, 12)
        await member.start(f"{point}:{chance.randint(min(2, most_passes), most_passes)}")
        if point == "pipeline.drain":
            await member.wait_ready()
            await sender.wait_acked(sender.acked_records + 40)
            async with asyncio.timeout(PATIENCE_S):
                while not (at_the_stop := sender.unacked_records):  # noqa: ASYNC110 (counted by several tasks)
                    await asyncio.sleep(0)
            member.terminate()
        await member.wait_killed()
    in_flight = max(at_the_stop, sender.unacked_records, await before.held_records() if before is not None and before is not member else 0)
    assert in_flight > 0 or not required, f"{member.name} died at {point} while nothing was in flight: the kill proves nothing"
    await member.start()
    await member.wait_ready()
    return in_flight > 0


def seeded() -> random.Random:
    """Return the chance of this run; its seed is printed."""
    seed = int(os.environ.get("SEED") or random.SystemRandom().getrandbits(32))
    print(f"seed {seed}: run with SEED={seed} to repeat")
    return random.Random(seed)

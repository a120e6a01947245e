"""The real command under a service manager: what it tells by systemd's protocol, to a real socket, and when it says nothing more."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.command import PATIENCE_S, Running, running, until
from tests.support.command_bench import Bench, send

WATCHDOG_S = 0.4
WATCHDOG = {"WATCHDOG_USEC": str(int(WATCHDOG_S * 1e6))}


class Manager:
    """A service manager's socket; each message as the words that it consists of."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(f"\0{address[1:]}" if address.startswith("@") else address)
        self.variables = {"NOTIFY_SOCKET": address}

    def next(self, patience_s: float = PATIENCE_S) -> dict[str, str]:
        """Return the next message. Raises TimeoutError."""
        self._socket.settimeout(patience_s)
        message = self._socket.recv(65536).decode()
        return dict(line.split("=", 1) for line in message.split("\n"))

    def close(self) -> None:
        self._socket.close()


@contextmanager
def listening(address: str) -> Iterator[Manager]:
    manager = Manager(address)
    try:
        yield manager
    finally:
        manager.close()


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    with listening(str(tmp_path / "notify")) as found:
        yield found


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def assert_works_and_stops(process: Running, bench: Bench) -> None:
    assert bench.get("/readyz")[0] == 200
    process.signal(signal.SIGTERM)
    assert process.wait() == 0


def test_ready_is_told_when_the_receivers_listen_and_stopping_at_sigterm(bench: Bench, manager: Manager) -> None:
    with running(*bench.arguments, ready="", **manager.variables) as process:
        assert manager.next() == {"READY": "1"}
        with socket.create_connection(("127.0.0.1", bench.port), PATIENCE_S):
            pass
        process.signal(signal.SIGTERM)
        # 10 s is what a stop may take here; systemd is told that it does not end much later, whatever the unit says
        assert manager.next() == {"STOPPING": "1", "EXTEND_TIMEOUT_USEC": "15000000"}
        assert process.wait() == 0
    with pytest.raises(TimeoutError):
        manager.next(0.01)


def test_an_abstract_socket_is_told_too(bench: Bench) -> None:
    with listening(f"@emp-pipe-test-{os.getpid()}") as manager, running(*bench.arguments, ready="", **manager.variables) as process:
        assert manager.next() == {"READY": "1"}
        process.wait_for("health: ")
        assert_works_and_stops(process, bench)


def test_a_reload_is_told_when_it_begins_and_when_it_is_done(bench: Bench, manager: Manager) -> None:
    with running(*bench.arguments, **manager.variables) as process:
        assert manager.next() == {"READY": "1"}
        before_us = time.monotonic_ns() // 1000
        process.signal(signal.SIGHUP)
        begun = manager.next()
        assert begun.pop("RELOADING") == "1"
        assert before_us <= int(begun.pop("MONOTONIC_USEC")) <= time.monotonic_ns() // 1000
        assert begun == {}
        assert manager.next() == {"READY": "1", "STATUS": ""}


def test_a_reload_that_fails_is_done_too_and_its_reason_is_told_until_one_succeeds(bench: Bench, manager: Manager) -> None:
    file = Path(bench.arguments[1])
    good = file.read_text()
    with running(*bench.arguments, **manager.variables) as process:
        assert manager.next() == {"READY": "1"}
        file.write_text(f"{good}\nnonsense: 1\n")
        process.signal(signal.SIGHUP)
        assert manager.next()["RELOADING"] == "1"
        done = manager.next()
        assert done["READY"] == "1"
        assert "not reloaded" in done["STATUS"]
        assert "nonsense" in done["STATUS"]
        file.write_text(good)
        process.signal(signal.SIGHUP)
        assert manager.next()["RELOADING"] == "1"
        assert manager.next() == {"READY": "1", "STATUS": ""}


def test_the_watchdog_hears_at_half_of_its_time_that_the_process_lives(bench: Bench, manager: Manager) -> None:
    with running(*bench.arguments, **manager.variables, **WATCHDOG):
        assert manager.next() == {"READY": "1"}
        began_s = time.monotonic()
        for _ in range(6):
            assert manager.next() == {"WATCHDOG": "1"}
        # never sooner: the first comes at once
        assert time.monotonic() - began_s > 4 * WATCHDOG_S / 2


@pytest.mark.parametrize("what", ["event loop", "log"])
def test_the_watchdog_hears_nothing_when_something_hangs(bench: Bench, manager: Manager, what: str) -> None:
    bench.write(processors=f'{{"tests.support.hanging_processor:Hanging": {{what: "{what}"}}}}')
    with running(*bench.arguments, **manager.variables, **WATCHDOG) as process:
        assert manager.next() == {"READY": "1"}
        assert manager.next() == {"WATCHDOG": "1"}
        with socket.create_connection(("127.0.0.1", bench.port), PATIENCE_S) as sock:
            sock.sendall(b"\x93\xa3app\x01\x81\xa7message\xa2hi")  # [tag, time, {"message": "hi"}]; nobody waits for an answer

            def silent() -> bool:
                try:
                    assert manager.next(10 * WATCHDOG_S) == {"WATCHDOG": "1"}
                except TimeoutError:
                    return True
                return False

            until(silent, "the watchdog hears nothing more")
        assert process.process.poll() is None, "it hangs, it has not ended"


def test_without_a_watchdog_none_is_fed_nor_one_that_is_another_process_s(bench: Bench, manager: Manager) -> None:
    with running(*bench.arguments, **manager.variables, **WATCHDOG, WATCHDOG_PID="1") as process:
        assert manager.next() == {"READY": "1"}
        send(bench.port, 1)
        process.signal(signal.SIGTERM)
        assert manager.next()["STOPPING"] == "1"


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("nonsense", "NOTIFY_SOCKET=nonsense is neither a path nor an abstract socket"),
        ("vsock:2:1", "NOTIFY_SOCKET=vsock:2:1 is neither a path nor an abstract socket"),
        ("/nonexistent/notify", "NOTIFY_SOCKET=/nonexistent/notify cannot be told READY=1: "),
        (f"/{'x' * 200}", "cannot be told READY=1: AF_UNIX path too long"),
    ],
)
def test_an_address_that_leads_nowhere_is_said_once_and_nothing_else_changes(bench: Bench, address: str, said: str) -> None:
    with running(*bench.arguments, NOTIFY_SOCKET=address, **WATCHDOG) as process:
        process.wait_for(said)
        assert_works_and_stops(process, bench)
    assert sum("NOTIFY_SOCKET" in message for message in process.messages()) == 1


def test_a_watchdog_time_that_is_none_is_said_and_none_is_fed(bench: Bench, manager: Manager) -> None:
    with running(*bench.arguments, **manager.variables, WATCHDOG_USEC="-1") as process:
        process.wait_for("WATCHDOG_USEC=-1 is no number of microseconds")
        assert manager.next() == {"READY": "1"}
        process.signal(signal.SIGTERM)
        assert manager.next()["STOPPING"] == "1"


def test_without_a_service_manager_nothing_is_told_or_said(bench: Bench) -> None:
    with running(*bench.arguments, **WATCHDOG) as process:
        assert_works_and_stops(process, bench)
    assert not [message for message in process.messages() if "NOTIFY_SOCKET" in message or "service manager" in message]


def test_what_it_starts_does_not_speak_in_its_name(bench: Bench, manager: Manager) -> None:
    bench.write(receivers=f'{{forward: {{listen: "127.0.0.1:{bench.port}"}}, journald: }}')
    with running(*bench.arguments, **manager.variables, **WATCHDOG) as process:
        children = Path(f"/proc/{process.process.pid}/task/{process.process.pid}/children")
        (child, *_) = until(lambda: children.read_text().split(), "journalctl is started")
        environment = until(lambda: Path(f"/proc/{child}/environ").read_bytes(), "its environment")
    assert b"NOTIFY_SOCKET" not in environment
    assert b"WATCHDOG" not in environment

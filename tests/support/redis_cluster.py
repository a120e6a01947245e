"""Several real redis-servers that belong together: a cluster of three, and a primary with a replica that can take over.

Each is a `RedisServer`; what makes a cluster of them (`CLUSTER ADDSLOTSRANGE`, `MEET`) is said over redis-py, and waited for.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from types import TracebackType
from typing import Any

from redis import Redis

from tests.support.redis_server import PATIENCE_S, RedisServer, version

_SLOTS = 16_384


def ask(server: RedisServer, *command: object) -> Any:
    """Return the answer of one server to one command, as bytes where it is text."""
    with closing(_client(server)) as client:
        return client.execute_command(*command)


def _client(server: RedisServer) -> Redis:
    # by the unix socket, which stays plain where the port speaks TLS
    return Redis(unix_socket_path=str(server.socket_path), password=server.password or None, socket_timeout=PATIENCE_S)


def _wait(true: Callable[[], bool], what: str) -> None:
    until_s = time.monotonic() + PATIENCE_S
    while not true():
        if time.monotonic() > until_s:
            raise AssertionError(f"never: {what}")
        time.sleep(0.02)


def info(server: RedisServer, section: str) -> dict[str, Any]:
    """Return a section of INFO."""
    with closing(_client(server)) as client:
        found: dict[str, Any] = client.info(section)
        return found


class RedisCluster:
    """Three servers, each with a third of the slots. `settings` are those of RedisServer. Made, it is not started: use it as a context."""

    def __init__(self, nodes: int = 3, **settings: Any) -> None:
        lines = [*settings.pop("lines", ()), "cluster-enabled yes", "cluster-node-timeout 2000", "cluster-config-file nodes.conf"]
        if settings.get("tls"):
            lines.append("tls-cluster yes")
        self._stack = ExitStack()
        self._settings = {**settings, "lines": lines}
        first = RedisServer(**self._settings)
        self.nodes = [first, *(RedisServer(**self._settings, certificates=first) for _ in range(nodes - 1))]
        self.replicas: list[RedisServer] = []

    @property
    def url(self) -> str:
        """The address of one node; a client finds the others."""
        return self.nodes[0].url

    def __enter__(self) -> RedisCluster:
        with ExitStack() as stack:
            for node in self.nodes:
                stack.enter_context(node)
            self._stack = stack.pop_all()
        try:
            self._join()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stack.close()

    def _join(self) -> None:
        share = -(-_SLOTS // len(self.nodes))
        for number, node in enumerate(self.nodes):
            slots = range(number * share, min((number + 1) * share, _SLOTS))
            if version() >= (7, 0):
                ask(node, "CLUSTER", "ADDSLOTSRANGE", slots[0], slots[-1])
            else:
                ask(node, "CLUSTER", "ADDSLOTS", *slots)
            ask(node, "CLUSTER", "SET-CONFIG-EPOCH", number + 1)
        for node in self.nodes[1:]:
            ask(self.nodes[0], "CLUSTER", "MEET", node.host, node.port)
        self.wait_whole()

    def wait_whole(self) -> None:
        """Return when every node says that the cluster serves all slots and knows all nodes."""

        def whole() -> bool:
            everybody = [*self.nodes, *self.replicas]
            said = [ask(node, "CLUSTER", "INFO") for node in everybody if node.running]
            return all(b"cluster_state:ok" in one and b"cluster_known_nodes:%d\r" % len(everybody) in one for one in said)

        _wait(whole, "a whole cluster")

    def node_of(self, key: str) -> RedisServer:
        """Return the node that serves a key now, as a node that runs says."""
        slot = ask(self.nodes[0], "CLUSTER", "KEYSLOT", key) if self.nodes[0].running else ask(self.nodes[1], "CLUSTER", "KEYSLOT", key)
        everybody = [*self.nodes, *self.replicas]
        for first, last, primary, *_ in ask(next(node for node in everybody if node.running), "CLUSTER", "SLOTS"):
            if first <= slot <= last:
                return next(node for node in everybody if node.port == primary[1])
        raise AssertionError(f"nobody serves {key}")

    def add_replica(self, primary: RedisServer) -> RedisServer:
        """Start a replica of one node; the cluster itself makes it the primary when that has died. Return when it has all."""
        replica = self._stack.enter_context(RedisServer(**self._settings, certificates=self.nodes[0]))
        self.replicas.append(replica)
        ask(replica, "CLUSTER", "MEET", primary.host, primary.port)
        self.wait_whole()
        ask(replica, "CLUSTER", "REPLICATE", ask(primary, "CLUSTER", "MYID"))
        _wait(lambda: info(replica, "replication").get("master_link_status") == "up", "a replica that has all")
        return replica

    def move(self, key: str, target: RedisServer, between: Callable[[], object] = lambda: None) -> None:
        """Move the slot of a key to another node, a key at a time, as `redis-cli --cluster reshard` does; `between` is called half-way."""
        source = self.node_of(key)
        slot = ask(source, "CLUSTER", "KEYSLOT", key)
        ids = {node.port: ask(node, "CLUSTER", "MYID") for node in self.nodes}
        ask(target, "CLUSTER", "SETSLOT", slot, "IMPORTING", ids[source.port])
        ask(source, "CLUSTER", "SETSLOT", slot, "MIGRATING", ids[target.port])
        moved = 0
        while keys := ask(source, "CLUSTER", "GETKEYSINSLOT", slot, 1):
            ask(source, "MIGRATE", target.host, target.port, "", 0, 5000, "KEYS", *keys)
            moved += 1
            if moved == 3:
                between()
        for node in (target, source, *(node for node in self.nodes if node not in (target, source))):
            ask(node, "CLUSTER", "SETSLOT", slot, "NODE", ids[target.port])


class RedisPair:
    """A primary and its replica. `settings` are those of RedisServer, for both. Made, it is not started: use it as a context."""

    def __init__(self, **settings: Any) -> None:
        self.primary = RedisServer(**settings)
        self._settings = settings
        self.replica: RedisServer
        self._stack = ExitStack()

    def __enter__(self) -> RedisPair:
        with ExitStack() as stack:
            stack.enter_context(self.primary)
            lines = [*self._settings.get("lines", ()), f"replicaof {self.primary.host} {self.primary.port}"]
            if self.primary.tls:
                lines.append("tls-replication yes")
            if self.primary.password:
                lines.append(f"masterauth {self.primary.password}")
            self.replica = stack.enter_context(RedisServer(**{**self._settings, "lines": lines, "certificates": self.primary}))
            self._stack = stack.pop_all()
        try:
            self.wait_synced()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stack.close()

    def wait_synced(self) -> None:
        """Return when the replica has all that the primary has."""

        def synced() -> bool:
            primary, replica = info(self.primary, "replication"), info(self.replica, "replication")
            linked = replica["master_link_status"] == "up" and primary["connected_slaves"] == 1
            return bool(linked and replica["slave_repl_offset"] == primary["master_repl_offset"])

        _wait(synced, "a replica that has all")

    def fail_over(self) -> None:
        """SIGKILL the primary; the replica takes its place, with what had reached it."""
        self.primary.kill()
        self.take_over()

    def take_over(self) -> None:
        """The replica becomes a primary; the old one goes on as it was (a split brain, where it still runs)."""
        ask(self.replica, "REPLICAOF", "NO", "ONE")
        _wait(lambda: bool(info(self.replica, "replication")["role"] == "master"), "a replica that became the primary")

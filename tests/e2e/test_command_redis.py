"""The command with its log in Redis: every way in, and every refusal with its advice."""

from __future__ import annotations

import json
import re
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.command import ROOT, free_port, run, running, until
from tests.support.command_bench import Bench, send, wait_for_rows
from tests.support.forward import message_frame
from tests.support.redis_cluster import RedisCluster, RedisPair, ask
from tests.support.redis_command import LIMIT_BYTES, NEVER, in_and_out, refused, rule_in_the_documentation
from tests.support.redis_server import RedisServer, needs_redis, needs_redis_tls, version

pytestmark = needs_redis


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with RedisServer(maxmemory_bytes=LIMIT_BYTES) as started:
        yield started


# every way in


def test_the_variable_alone_puts_centrals_log_into_redis(tmp_path: Path, server: RedisServer) -> None:
    port, http_port = free_port(), free_port()
    arguments = ("central", "--data-dir", str(tmp_path), "--set", f"receivers.forward.listen=127.0.0.1:{port}")
    variables = {"EMP_BUFFER_REDIS_URL": server.url, "EMP_BUFFER_REDIS_PREFIX": "by-variable", "PORT": str(http_port)}
    with running(*arguments, **variables) as central:
        send(port, 20)
        wait_for_rows(tmp_path, 20)
        assert f"buffer: Redis {'.'.join(map(str, version()))} at redis://127.0.0.1:{server.port}" in "\n".join(central.messages())
    assert any(key.startswith(b"{by-variable.") for key in ask(server, "KEYS", "*"))
    assert not (tmp_path / "log").exists()


def test_a_password_of_a_file(bench: Bench, tmp_path: Path) -> None:
    (tmp_path / "password").write_text("s3cret\n")
    with RedisServer(password="s3cret") as server:
        bench.write(buffer=f'{{type: redis, url: "redis://127.0.0.1:{server.port}", password: {{file: "{tmp_path / "password"}"}}}}')
        said = in_and_out(bench)
    assert "s3cret" not in "\n".join(said)


def test_a_password_of_a_variable(bench: Bench) -> None:
    with RedisServer(password="s3cret") as server:
        variables = {"EMP_BUFFER_REDIS_URL": f"redis://default@127.0.0.1:{server.port}", "EMP_BUFFER_REDIS_PASSWORD": "s3cret"}
        bench.write(buffer="{type: redis}")
        said = in_and_out(bench, **variables)
    assert "s3cret" not in "\n".join(said)


def test_a_password_in_the_address(bench: Bench) -> None:
    with RedisServer(password="s3cret") as server:
        bench.write(buffer="{type: redis}")
        said = in_and_out(bench, EMP_BUFFER_REDIS_URL=server.url)
    assert "s3cret" not in "\n".join(said)


def test_an_acl_user_with_the_documented_rule_and_nothing_more(bench: Bench) -> None:
    with RedisServer(users={"pipe": f"on >s3cret {rule_in_the_documentation()}", "default": "off"}) as server:
        variables = {
            "EMP_BUFFER_REDIS_URL": f"redis://127.0.0.1:{server.port}",
            "EMP_BUFFER_REDIS_USERNAME": "pipe",
            "EMP_BUFFER_REDIS_PASSWORD": "s3cret",
        }
        bench.write(buffer="{type: redis}", processors="{aggregate: }", exporters="{file: }")
        said = in_and_out(bench, **variables)
    assert not [line for line in said if "NOPERM" in line or "permission" in line.lower()]


def test_an_acl_user_on_another_database_needs_one_command_more(bench: Bench) -> None:
    with RedisServer(users={"pipe": f"on >s3cret {rule_in_the_documentation()} +select"}) as server:
        bench.write(buffer=f'{{type: redis, url: "redis://pipe@127.0.0.1:{server.port}/1", password: s3cret}}')
        in_and_out(bench)


def test_an_acl_user_on_a_cluster_needs_two_commands_more(bench: Bench) -> None:
    with RedisCluster(users={"pipe": f"on >s3cret {rule_in_the_documentation()} +cluster|slots +command"}) as cluster:
        bench.write(buffer=f'{{type: redis, url: "redis://pipe@127.0.0.1:{cluster.nodes[0].port}", password: s3cret, cluster: true}}')
        in_and_out(bench)


def test_every_command_that_the_log_uses_is_in_the_documented_rule() -> None:
    buffers = ROOT / "python" / "emp_pipe" / "buffers"
    scripts = "".join(path.read_text() for path in buffers.glob("redis*.lua"))
    modules = "".join(path.read_text() for path in buffers.glob("redis*.py") if path.stem not in ("redis_client", "redis_server"))
    used = {name.lower() for name in re.findall(r"call\('([A-Z]+)'", scripts) + re.findall(r'[(\[]"([A-Z]{3,})"', modules)}
    assert len(used) > 20, "they are found by how they are written"
    section = (ROOT / "docs" / "redis.md").read_text().partition("## The least an ACL user needs")[2].partition("\n## ")[0]
    allowed = set(re.findall(r"\+([a-z]+)", section))
    assert used - allowed - {"busy", "noscript"} == set(), "the two are what Redis answers"


def test_a_unix_socket(bench: Bench, server: RedisServer) -> None:
    bench.write(buffer=f'{{type: redis, url: "unix://{server.socket_path}", prefix: unix}}')
    in_and_out(bench)


def test_another_database(bench: Bench, server: RedisServer) -> None:
    bench.write(buffer=f'{{type: redis, url: "{server.url}/3"}}')
    in_and_out(bench)
    assert "db3" in str(ask(server, "INFO", "keyspace"))


@needs_redis_tls
def test_tls(bench: Bench) -> None:
    with RedisServer(tls=True) as server:
        bench.write(buffer="{type: redis}")
        in_and_out(bench, EMP_BUFFER_REDIS_URL=server.url, EMP_BUFFER_REDIS_TLS_CA_FILE=str(server.ca_file))


@needs_redis_tls
def test_mutual_tls(bench: Bench) -> None:
    with RedisServer(tls="mutual") as server:
        bench.write(buffer="{type: redis}")
        in_and_out(
            bench,
            EMP_BUFFER_REDIS_URL=server.url,
            EMP_BUFFER_REDIS_TLS_CA_FILE=str(server.ca_file),
            EMP_BUFFER_REDIS_TLS_CERT_FILE=str(server.client_cert_file),
            EMP_BUFFER_REDIS_TLS_KEY_FILE=str(server.client_key_file),
        )


def test_a_cluster(bench: Bench) -> None:
    with RedisCluster(maxmemory_bytes=LIMIT_BYTES) as cluster:
        bench.write(buffer="{type: redis}")
        said = in_and_out(bench, EMP_BUFFER_REDIS_URL=cluster.url, EMP_BUFFER_REDIS_CLUSTER="true")
    assert any("3 servers" in line for line in said)


# what survives


def test_what_was_acknowledged_survives_a_sigkill_of_the_command_and_of_redis(bench: Bench) -> None:
    with RedisServer(maxmemory_bytes=LIMIT_BYTES) as server:
        buffer = f'{{type: redis, url: "{server.url}", lease_s: 1}}'
        bench.write(buffer=buffer, exporters=f"{{{NEVER}}}")
        with running(*bench.arguments) as process:
            send(bench.port, 20)
            until(lambda: bench.groups()["otlp_http"]["held_records"] == 20, "20 records held")
            process.signal(signal.SIGKILL)
            process.wait()
        server.restart()
        bench.write(buffer=buffer, exporters=f"{{{NEVER}, file: }}")
        with running(*bench.arguments):
            wait_for_rows(bench.data_dir, 20)


def test_what_was_acknowledged_survives_a_failover_where_a_replica_is_waited_for(bench: Bench) -> None:
    users = {"pipe": f"on >s3cret {rule_in_the_documentation()} +wait"}
    with RedisPair(maxmemory_bytes=LIMIT_BYTES, users=users) as pair:
        more = "username: pipe, password: s3cret, wait_replicas: 1, lease_s: 1"
        bench.write(buffer=f'{{type: redis, url: "{pair.primary.url}", {more}}}', exporters=f"{{{NEVER}}}")
        with running(*bench.arguments) as process:
            assert "a failover loses nothing that was acknowledged" in process.wait_for("buffer: Redis")
            assert json.loads(bench.get("/readyz")[1])["buffer"]["server"]["survives"]["failover"] is True
            send(bench.port, 20)
            until(lambda: bench.groups()["otlp_http"]["held_records"] == 20, "20 records held")
            pair.fail_over()
            process.signal(signal.SIGKILL)
            process.wait()
        more = more.replace("wait_replicas: 1", "wait_replicas: 0")
        bench.write(buffer=f'{{type: redis, url: "{pair.replica.url}", {more}}}', exporters=f"{{{NEVER}, file: }}")
        with running(*bench.arguments):
            wait_for_rows(bench.data_dir, 20)


def test_nothing_is_acknowledged_before_the_replica_has_it(bench: Bench) -> None:
    with RedisPair(maxmemory_bytes=LIMIT_BYTES) as pair:
        bench.write(buffer=f'{{type: redis, url: "{pair.primary.url}", wait_replicas: 1, spool: {{enabled: false}}}}')
        with running(*bench.arguments), socket.create_connection(("127.0.0.1", bench.port), timeout=30) as peer:
            peer.sendall(message_frame(1, chunk="first"))
            assert b"first" in peer.recv(100)
            pair.replica.pause()
            peer.sendall(message_frame(2, chunk="second"))
            peer.settimeout(1)
            with pytest.raises(TimeoutError):
                peer.recv(100)
            pair.replica.resume()
            peer.settimeout(30)
            assert b"second" in peer.recv(100)


# refusals, each with what to do


def test_a_wrong_password_is_refused_with_the_variable_to_set(bench: Bench) -> None:
    with RedisServer(password="s3cret") as server:
        bench.write(buffer=f'{{type: redis, url: "redis://127.0.0.1:{server.port}", password: wr0ng}}')
        said = refused(bench, "EMP_BUFFER_REDIS_PASSWORD", code=1)
    assert "wr0ng" not in said
    assert "s3cret" not in said


def test_an_acl_user_that_may_too_little_is_told_where_the_rule_is(bench: Bench) -> None:
    with RedisServer(users={"pipe": "on >s3cret ~* +ping"}) as server:
        bench.write(buffer=f'{{type: redis, url: "redis://pipe:s3cret@127.0.0.1:{server.port}"}}')
        refused(bench, "docs/redis.md", code=1)


def test_a_redis_that_throws_away_is_refused(bench: Bench) -> None:
    with RedisServer(policy="allkeys-lru") as server:
        bench.write(buffer=f'{{type: redis, url: "{server.url}"}}')
        refused(bench, "--maxmemory-policy noeviction")


def test_a_replica_is_refused(bench: Bench, server: RedisServer) -> None:
    with RedisServer(lines=[f"replicaof 127.0.0.1 {server.port}"]) as replica:
        bench.write(buffer=f'{{type: redis, url: "{replica.url}"}}')
        refused(bench, "name the primary", code=1)


def test_a_redis_that_is_not_there_at_the_start_is_said_and_waited_for(bench: Bench) -> None:
    with RedisServer(password="s3cret", maxmemory_bytes=LIMIT_BYTES) as server:
        server.kill()
        bench.write(buffer=f'{{type: redis, url: "{server.url}", connect_timeout_s: 1, spool: {{enabled: false}}}}')
        with running(*bench.arguments, ready="no connection to Redis") as process:
            said = process.wait_for("no connection to Redis")
            assert f"redis://127.0.0.1:{server.port}" in said
            assert "check that Redis runs" in said
            until(lambda: bench.get("/readyz")[0] == 503, "not ready")
            assert "no connection to Redis" in json.loads(bench.get("/readyz")[1])["reason"]
            server.start()
            until(lambda: bench.get("/readyz")[0] == 200, "ready")
            send(bench.port, 5)
            wait_for_rows(bench.data_dir, 5)
            assert "s3cret" not in "\n".join(process.messages())


def test_a_stop_ends_the_waiting(bench: Bench) -> None:
    bench.write(buffer=f'{{type: redis, url: "redis://127.0.0.1:{free_port()}"}}')
    with running(*bench.arguments, ready="no connection to Redis") as process:
        process.signal(signal.SIGTERM)
        assert process.wait() == 0


def test_administrators_do_not_wait_for_a_redis_that_is_not_there(bench: Bench) -> None:
    port = free_port()
    bench.write(buffer=f'{{type: redis, url: "redis://:s3cret@127.0.0.1:{port}"}}')
    result = run("groups", "list", "--config", str(bench.file), "--data-dir", str(bench.data_dir))
    assert result.returncode == 1
    assert f"redis://127.0.0.1:{port}: no connection to Redis" in result.stderr
    assert "s3cret" not in result.stderr


def test_a_cluster_node_without_the_setting_is_told_so(bench: Bench) -> None:
    with RedisCluster() as cluster:
        bench.write(buffer="{type: redis}")
        key = "{emp-pipe.0}:x"
        elsewhere = next(node for node in cluster.nodes if node is not cluster.node_of(key))
        refused(bench, "EMP_BUFFER_REDIS_CLUSTER", code=1, EMP_BUFFER_REDIS_URL=elsewhere.url)


@pytest.mark.parametrize("variable", ["HUB_REDIS_URL", "REDIS_URL"])
def test_the_job_queues_redis_is_refused_whoever_names_it(bench: Bench, variable: str, server: RedisServer) -> None:
    queue = {variable: f"redis://:other@localhost:{server.port}/0"}
    before = ask(server, "DBSIZE")
    bench.write(buffer=f'{{type: redis, url: "{server.url}"}}')
    said = refused(bench, "a Redis of its own", **queue)
    assert "emp.yaml" in said
    bench.write(buffer="{type: redis}")
    said = refused(bench, "a Redis of its own", **queue, EMP_BUFFER_REDIS_URL=server.url)
    assert "environment EMP_BUFFER_REDIS_URL" in said
    assert "other" not in said
    assert ask(server, "DBSIZE") == before


@pytest.mark.parametrize("variable", ["HUB_REDIS_URL", "REDIS_URL"])
@pytest.mark.parametrize("role", ["edge", "central"])
def test_the_job_queues_variables_alone_never_put_the_log_into_redis(role: str, variable: str, server: RedisServer) -> None:
    printed = run(role, "--print-config", **{variable: server.url}).stdout
    assert "type: sqlite" in printed
    assert str(server.port) not in printed


def test_a_log_on_disk_does_not_load_the_redis_client(bench: Bench, tmp_path: Path) -> None:
    (tmp_path / "redis.py").write_text("raise ImportError('not here')\n")
    in_and_out(bench, log_on_disk=True, PYTHONPATH=str(tmp_path))


def test_without_the_redis_client_it_is_said_what_to_install(bench: Bench, tmp_path: Path, server: RedisServer) -> None:
    (tmp_path / "redis.py").write_text("raise ImportError('not here')\n")
    bench.write(buffer=f'{{type: redis, url: "{server.url}"}}')
    refused(bench, "pip install 'emp-pipe[central]'", PYTHONPATH=str(tmp_path))

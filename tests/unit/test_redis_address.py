"""Where the Redis is and who we are to it: what a URL may say, and that a wrong one is refused without repeating what is in it."""

from __future__ import annotations

import subprocess
import sys

import pytest
from pydantic import ValidationError

from emp_pipe.buffers.redis_client import RedisClientConfig, parse_address
from tests.support.command import ROOT, environment


def test_a_url_gives_host_port_database_user_and_password() -> None:
    address = parse_address("redis://pipe:s%40cr%2Fet@redis.internal:7000/3")
    assert (address.host, address.port, address.database, address.tls) == ("redis.internal", 7000, 3, False)
    assert (address.username, address.password) == ("pipe", "s@cr/et")


@pytest.mark.parametrize(
    ("url", "place"),
    [
        ("redis://localhost", "redis://localhost:6379"),
        ("rediss://:secret@[::1]:6380/2", "rediss://[::1]:6380/2"),
        ("unix:///run/redis.sock?db=4", "unix:///run/redis.sock"),
        ("redis://host:6379/", "redis://host:6379"),
    ],
)
def test_the_place_that_errors_name_holds_no_user_and_no_password(url: str, place: str) -> None:
    assert parse_address(url).place == place


def test_a_socket_takes_its_database_from_the_query() -> None:
    assert parse_address("unix:///run/redis.sock?db=4").database == 4


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("http://s3cret@host", "must be a redis://"),
        ("redis://:s3cret/x@host:1", "%2F"),
        ("redis://:s3cret@x@host:1", "%40"),
        ("redis://:s3cret@host:1/zero", "not a number"),
        ("redis://:s3cret@host:1?socket_timeout=1", "no parameters"),
        ("redis://:s3cret@", "names no host"),
        ("redis://:s3cret@host:0", "names no host"),
        ("redis://:s3cret@host:99999", "must be a redis://"),
        ("unix://s3cret", "must name a socket"),
        ("redis://:s3cret @host", "without spaces"),
    ],
)
def test_a_wrong_url_is_refused_and_what_is_in_it_is_not_repeated(url: str, says: str) -> None:
    with pytest.raises(ValidationError) as refused:
        RedisClientConfig(url=url)
    assert says in str(refused.value)
    assert "s3cret" not in str(refused.value)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"url": "redis://:one@host", "password": "two"}, "leave one out"),
        ({"url": "redis://one@host", "username": "two"}, "leave one out"),
        ({"url": "redis://host", "tls": {"insecure_skip_verify": True}}, "rediss://"),
        ({"url": "unix:///redis.sock", "cluster": True}, "unix socket"),
        ({"url": "redis://host/1", "cluster": True}, "only database 0"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings: dict[str, object], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        RedisClientConfig.model_validate(settings)


def test_neither_url_nor_password_show_in_the_repr_of_the_settings() -> None:
    shown = repr(RedisClientConfig.model_validate({"url": "redis://:s3cret@host"}))
    shown += repr(RedisClientConfig.model_validate({"url": "redis://host", "password": "s3cret"}))
    shown += repr(parse_address("redis://:s3cret@host"))
    assert "s3cret" not in shown


def test_settings_are_checked_without_importing_the_redis_client() -> None:
    code = (
        "import sys; from emp_pipe.buffers.redis_client import RedisClientConfig; RedisClientConfig(url='redis://host');"
        "sys.exit('redis' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], env=environment(), cwd=ROOT, timeout=60, check=False).returncode == 0

"""Checks of real servers: what is up, what is down and why, each change told once, and whatever answers, the others are checked in time."""

from __future__ import annotations

import asyncio
import json
import ssl
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
import trustme
from aiohttp import web

from emp_pipe.errors import ConfigError, ErrorKind, LogError
from emp_pipe.receivers.checks_probes import TcpProbe
from tests.support.checking import answering, checker, first_event, raw, serving
from tests.support.command import free_port
from tests.support.host_processes import comfyui, stop
from tests.support.reading import PATIENCE_S, Kept, of_name, receiving, until

# --- HTTP ---------------------------------------------------------------------------------------------


async def test_a_service_that_answers_is_up_and_how_long_it_took_is_a_metric() -> None:
    kept = Kept()
    async with serving({"/health": answering({"ok": True})}) as url, receiving(checker({"name": "api", "http": f"{url}/health"}), kept):
        event = await kept.wait_for_record(event_type="service_up")
        took = await kept.wait_for_point("check.duration", check__name="api")
    assert (event["message"], event["level"], event.get("service_type", "")) == ("api is up", "info", "")
    assert (event["previous_status"], event["check.type"], event["http.response.status_code"]) == ("unknown", "http", 200)
    assert (took.unit, took.kind, took.attributes["check.type"]) == ("s", "gauge", "http")
    assert 0 < took.value < PATIENCE_S
    assert of_name(kept.points(), "check.up", check__name="api")[0].value == 1
    assert took.resource["machine_id"] == "gpu-test"


async def test_a_service_that_goes_and_comes_back_is_told_once_each_time() -> None:
    kept, port = Kept(), free_port()
    receiver = checker({"name": "api", "http": f"http://127.0.0.1:{port}/", "service": "hub-api"})
    async with AsyncExitStack() as stack:
        async with serving({"/": answering({})}, port):
            await stack.enter_async_context(receiving(receiver, kept))
            await kept.wait_for_record(event_type="service_up")
        down = await kept.wait_for_record(event_type="service_down")
        async with serving({"/": answering({})}, port):
            await until(lambda: len(kept.records()) == 3)
            count = len(of_name(kept.points(), "check.up"))
            await until(lambda: len(of_name(kept.points(), "check.up")) > count + 3)
    assert [record["event_type"] for record in kept.records()] == ["service_up", "service_down", "service_up"]
    assert (down["level"], down["error_type"], down["previous_status"], down["health_status"]) == ("error", "unreachable", "up", "down")
    assert down["message"].startswith("api is down: ")
    assert kept.records()[2]["message"].startswith("api is up again, after ")
    assert {point.value for point in of_name(kept.points(), "check.up")} == {0, 1}
    batches = [each.batch for each in kept.arrivals if each.batch is not None and each.batch.signal == "logs"]
    assert [batch.event_count for batch in batches] == [1, 1, 1]


async def test_a_status_that_is_not_expected_is_down() -> None:
    async with serving({"/": answering({}, 503)}) as url:
        event = await first_event({"http": url})
        assert (event["event_type"], event["error_type"], event["http.response.status_code"]) == ("service_down", "status", 503)
        assert (await first_event({"http": url, "expect_status": [503]}))["event_type"] == "service_up"


async def test_a_body_without_the_text_is_down() -> None:
    async with serving({"/": answering({"state": "degraded"})}) as url:
        event = await first_event({"http": url, "expect_body": '"ready"'})
        assert (event["event_type"], event["error_type"]) == ("service_down", "body")
        assert (await first_event({"http": url, "expect_body": "degraded"}))["event_type"] == "service_up"


async def test_a_redirect_is_an_answer_and_is_not_followed() -> None:
    asked: list[str] = []

    async def elsewhere(request: web.Request) -> web.Response:
        asked.append(request.path)
        return web.Response()

    async def move(_: web.Request) -> web.Response:
        return web.Response(status=302, headers={"Location": "/secret"})

    async with serving({"/": move, "/secret": elsewhere}) as url:
        assert (await first_event({"http": url}))["http.response.status_code"] == 302
    assert asked == []


async def test_headers_are_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHECK_TOKEN", "Bearer s3cret")

    async def guarded(request: web.Request) -> web.Response:
        return web.Response(status=200 if request.headers.get("Authorization") == "Bearer s3cret" else 401)

    async with serving({"/": guarded}) as url:
        assert (await first_event({"http": url, "headers": {"Authorization": {"env": "CHECK_TOKEN"}}}))["event_type"] == "service_up"
        assert (await first_event({"http": url}))["event_type"] == "service_down"


async def test_a_certificate_that_is_not_trusted_is_down_and_one_that_is_is_up(tmp_path: Path) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    async with serving({"/": answering({})}, ssl_context=context) as url:
        event = await first_event({"http": url})
        assert (event["event_type"], event["error_type"]) == ("service_down", "unreachable")
        assert "certificate" in event["message"]
        assert (await first_event({"http": url, "tls": {"ca_file": str(tmp_path / "ca.pem")}}))["event_type"] == "service_up"


# --- servers that are none ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["http", "comfyui", "redis"])
async def test_a_server_that_hangs_is_down_in_time_and_the_others_are_checked(kind: str) -> None:
    kept = Kept()
    async with raw(b"", keep_open=True) as port, serving({"/": answering({})}) as url:
        scheme = "redis" if kind == "redis" else "http"
        hung = {"name": "hung", kind: f"{scheme}://127.0.0.1:{port}", "timeout_s": 0.05}
        async with receiving(checker(hung, {"name": "fine", "http": url}), kept):
            event = await kept.wait_for_record(**{"check.name": "hung"})
            await until(lambda: len(of_name(kept.points(), "check.up", check__name="fine")) >= 3)
    assert (event["event_type"], event["error_type"]) == ("service_down", "timeout")
    assert "no answer within 0.05 s" in event["message"]
    assert {point.value for point in of_name(kept.points(), "check.up", check__name="fine")} == {1}


@pytest.mark.parametrize("kind", ["http", "comfyui", "redis"])
@pytest.mark.parametrize(
    "say",
    [
        b"",
        b"SSH-2.0-OpenSSH_9.6\r\n",
        b"\x00\xff" * 5000,
        b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 100_000,
        b"$999999999\r\n",
        b"-" + b"x" * 99_999,
    ],
    ids=["nothing", "ssh", "noise", "endless head", "a bulk without end", "a line without end"],
)
async def test_garbage_is_a_service_that_is_down(kind: str, say: bytes) -> None:
    async with raw(say) as port:
        event = await first_event({kind: f"{'redis' if kind == 'redis' else 'http'}://127.0.0.1:{port}"})
    assert event["event_type"] == "service_down"
    assert event["error_type"] in ("protocol", "unreachable")
    assert len(event["message"]) < 1000


async def test_a_body_without_end_is_not_read_to_its_end() -> None:
    async def endless(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        try:
            while True:
                await response.write(b"x" * 65_536)
        except OSError:
            sent.set()
        return response

    sent = asyncio.Event()
    async with serving({"/": endless}) as url:
        assert (await first_event({"http": url}))["event_type"] == "service_up"
        assert (await first_event({"http": url, "expect_body": "y"}))["event_type"] == "service_down"
        await asyncio.wait_for(sent.wait(), PATIENCE_S)


# --- TCP and processes --------------------------------------------------------------------------------


async def test_a_port_that_takes_connections_is_up_and_one_that_does_not_is_down() -> None:
    async with raw(b"") as port:
        assert (await first_event({"tcp": f"127.0.0.1:{port}"}))["server.port"] == port
    event = await first_event({"tcp": f"127.0.0.1:{free_port()}"})
    assert (event["event_type"], event["error_type"]) == ("service_down", "unreachable")


async def test_a_process_that_runs_is_up_and_when_it_ends_it_is_down(tmp_path: Path) -> None:
    kept = Kept()
    with comfyui(tmp_path, 18_190) as pid:
        async with receiving(checker({"name": "generator", "process": "main[.]py .*18190"}), kept):
            await kept.wait_for_record(event_type="service_up")
            stop(pid)
            event = await kept.wait_for_record(event_type="service_down")
    assert event["error_type"] == "absent"


# --- states -------------------------------------------------------------------------------------------


async def test_a_restart_tells_nothing_again_and_what_changed_meanwhile_is_told() -> None:
    kept, port = Kept(), free_port()
    check = {"name": "api", "http": f"http://127.0.0.1:{port}/"}
    async with serving({"/": answering({})}, port):
        async with receiving(checker(check), kept):
            await kept.wait_for_record(event_type="service_up")
        count = len(of_name(kept.points(), "check.up"))
        async with receiving(checker(check), kept):
            await until(lambda: len(of_name(kept.points(), "check.up")) > count + 2)
    assert len(kept.records()) == 1
    async with receiving(checker(check), kept):
        down = await kept.wait_for_record(event_type="service_down")
    assert down["previous_status"] == "up"


async def test_nothing_is_told_before_the_last_states_can_be_read() -> None:
    kept = Kept(refuse_asking=[LogError(ErrorKind.LOG_IO)])
    async with serving({"/": answering({})}) as url, receiving(checker({"name": "api", "http": url}), kept):
        await kept.wait_for_record(event_type="service_up")
    assert kept.refuse_asking == []


async def test_an_event_that_could_not_be_kept_is_offered_again_with_its_state() -> None:
    kept = Kept(refuse=[LogError(ErrorKind.LOG_FULL)])
    async with serving({"/": answering({})}) as url, receiving(checker({"name": "api", "http": url}), kept):
        await kept.wait_for_record(event_type="service_up")
    told = [arrival for arrival in kept.arrivals if arrival.checkpoints]
    assert len(told) == 1
    assert json.loads(next(iter(told[0].checkpoints.values())))["api"][0] == "up"


async def test_a_secret_that_is_not_there_is_said_at_the_start() -> None:
    receiver = checker({"name": "api", "http": "http://127.0.0.1:1/", "headers": {"X": {"env": "NOT_THERE_AT_ALL"}}})
    with pytest.raises(ConfigError, match=r"checks: api: headers\.X"):
        await receiver.run(Kept(), asyncio.Event())


async def test_a_check_that_fails_itself_is_said_and_counted_as_failed_and_the_others_are_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def fall(*_: object) -> None:
        raise ZeroDivisionError("of its own")

    monkeypatch.setattr(TcpProbe, "look", fall)
    kept = Kept()
    receiver = checker({"name": "broken", "tcp": "127.0.0.1:1"}, {"name": "absent", "process": "no such process [0-9]"})
    async with receiving(receiver, kept):
        event = await kept.wait_for_record(**{"check.name": "broken"})
        await kept.wait_for_record(**{"check.name": "absent"})
    assert (event["event_type"], event["error_type"]) == ("service_down", "failed")
    assert len([record for record in caplog.records if "broken: the check failed" in record.getMessage() and record.exc_info]) == 1
    lines = [line.split() for line in receiver._context.metrics.text().decode().splitlines() if line.startswith("emp_pipe_reads_total{")]
    counted = {labels: float(value) for labels, value in lines}
    (well,), (failed,) = ([counted[labels] for labels in counted if f'outcome="{outcome}"' in labels] for outcome in ("ok", "failed"))
    assert failed == well > 0

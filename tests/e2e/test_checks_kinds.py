"""Checks of what says more than that it is there: a ComfyUI its queue and its VRAM, a Redis its memory and its clients."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from tests.support.checking import answering, checker, first_event, raw, serving
from tests.support.command import free_port
from tests.support.host_processes import comfyui, stop
from tests.support.reading import Kept, of_name, receiving
from tests.support.redis_server import RedisServer, needs_redis, needs_redis_tls

# --- ComfyUI ------------------------------------------------------------------------------------------

STATS = {
    "system": {"os": "posix", "ram_total": 1000, "ram_free": 400, "comfyui_version": "0.3.40"},
    "devices": [
        {
            "name": "cuda:0 NVIDIA",
            "type": "cuda",
            "index": 0,
            "vram_total": 800,
            "vram_free": 300,
            "torch_vram_total": 500,
            "torch_vram_free": 100,
        }
    ],
}


async def test_comfyui_tells_its_queue_and_its_memory() -> None:
    kept = Kept()
    queue = {"queue_running": [[1, "a", {}]], "queue_pending": [[2, "b", {}], [3, "c", {}]]}
    routes = {"/system_stats": answering(STATS), "/queue": answering(queue)}
    async with serving(routes) as url, receiving(checker({"name": "comfy", "comfyui": url}), kept):
        await kept.wait_for_record(event_type="service_up")
        await kept.wait_for(1)
    points = kept.points()
    depth = {point.attributes["comfyui.queue.state"]: point.value for point in of_name(points, "comfyui.queue.depth")}
    assert depth == {"running": 1, "pending": 2}
    assert of_name(points, "comfyui.queue.remaining")[0].value == 3
    used = of_name(points, "comfyui.vram.usage", comfyui__memory__state="used")[0]
    assert (used.value, used.unit, used.attributes["comfyui.device.index"], used.attributes["check.name"]) == (500, "By", 0, "comfy")
    assert of_name(points, "comfyui.vram.limit")[0].value == 800
    assert of_name(points, "comfyui.torch_vram.usage", comfyui__memory__state="used")[0].value == 400
    assert of_name(points, "comfyui.memory.usage", comfyui__memory__state="free")[0].value == 400


async def test_a_queue_that_is_too_long_to_be_read_is_told_by_its_length() -> None:
    kept = Kept()
    queue = {"queue_running": [], "queue_pending": [[number, "x" * 5000] for number in range(50)]}
    routes = {"/system_stats": answering(STATS), "/queue": answering(queue), "/prompt": answering({"exec_info": {"queue_remaining": 50}})}
    async with serving(routes) as url, receiving(checker({"name": "comfy", "comfyui": url}), kept):
        assert (await kept.wait_for_point("comfyui.queue.remaining")).value == 50
    assert {record["event_type"] for record in kept.records()} == {"service_up"}


@pytest.mark.parametrize(
    ("stats", "queue"),
    [
        ("not json", {}),
        ([], {}),
        ("[" * 60_000, {}),
        (STATS, []),
        (STATS, {"queue_running": 5, "queue_pending": None}),
        (STATS, {"exec_info": {"queue_remaining": True}}),
    ],
)
async def test_what_does_not_answer_as_comfyui_is_down(stats: Any, queue: Any) -> None:
    async with serving({"/system_stats": answering(stats), "/queue": answering(queue)}) as url:
        event = await first_event({"comfyui": url})
    assert (event["event_type"], event["error_type"]) == ("service_down", "protocol")


async def test_numbers_that_cannot_be_are_left_out_and_it_is_up() -> None:
    devices = [
        {"index": 1 << 70, "name": 5, "vram_total": 10**300, "vram_free": 1},
        {"index": -1, "vram_total": 5, "vram_free": 9},
        {"vram_total": True, "vram_free": "x"},
        "cuda",
        {"index": 7, "name": "n" * 9999, "vram_total": 8, "vram_free": 2.0},
    ]
    kept = Kept()
    routes = {"/system_stats": answering({"system": 1, "devices": devices}), "/queue": answering({"queue_running": []})}
    async with serving(routes) as url, receiving(checker({"name": "comfy", "comfyui": url}), kept):
        await kept.wait_for_record(event_type="service_up")
        await kept.wait_for(1)
    limits = of_name(kept.points(), "comfyui.vram.limit")
    assert {(point.attributes["comfyui.device.index"], point.value) for point in limits} == {(7, 8.0)}


async def test_a_comfyui_of_this_machine_is_found_checked_and_missed_when_it_is_gone(tmp_path: Path) -> None:
    kept, port = Kept(), free_port()
    routes = {"/system_stats": answering(STATS), "/queue": answering({"queue_running": [], "queue_pending": []})}
    name = {"check.name": f"comfyui-{port}"}
    with comfyui(tmp_path, port) as pid:
        async with receiving(checker(find_comfyui=True), kept):
            async with serving(routes, port):
                await kept.wait_for_record(event_type="service_up", **name)
                stop(pid)
            await kept.wait_for_record(event_type="service_down", **name)


# --- Redis --------------------------------------------------------------------------------------------


@needs_redis
async def test_redis_is_pinged_and_tells_its_memory_and_clients_and_nothing_else_is_asked_of_it() -> None:
    kept = Kept()
    with RedisServer() as server:
        port = server.port
        async with receiving(checker({"name": "queue", "redis": f"redis://127.0.0.1:{port}"}), kept):
            await kept.wait_for_record(event_type="service_up")
            used = await kept.wait_for_point("redis.memory.used", check__name="queue")
            await kept.wait_for(3)
        commands = Redis(port=port).info("commandstats")
        assert set(commands) <= {"cmdstat_ping", "cmdstat_info", "cmdstat_client|setinfo", "cmdstat_hello"}
    assert used.value > 100_000
    assert of_name(kept.points(), "redis.clients.connected")[0].value >= 1
    starts = {point.start_unix_nano for point in of_name(kept.points(), "redis.commands.processed")}
    assert len(starts) == 1


@needs_redis
async def test_a_redis_with_a_password_is_up_with_it_and_down_without() -> None:
    with RedisServer(password="hunter2") as server:
        address = f"redis://127.0.0.1:{server.port}"
        assert (await first_event({"redis": address, "password": "hunter2"}))["event_type"] == "service_up"
        for settings in ({}, {"password": "wrong"}):
            event = await first_event({"redis": address, **settings})
            assert (event["event_type"], event["error_type"]) == ("service_down", "unauthenticated")
            assert "hunter2" not in json.dumps(event)


@needs_redis
async def test_a_redis_is_checked_by_its_unix_socket() -> None:
    kept = Kept()
    with RedisServer() as server:
        path = str(server.socket_path)
        async with receiving(checker({"name": "queue", "redis": f"unix://{path}"}), kept):
            event = await kept.wait_for_record(event_type="service_up")
            used = await kept.wait_for_point("redis.memory.used", check__name="queue")
            server.stop()
            down = await kept.wait_for_record(event_type="service_down")
    assert (event["server.address"], used.attributes["server.address"]) == (path, path)
    assert "server.port" not in used.attributes
    assert down["error_type"] == "unreachable"


async def test_a_unix_socket_that_is_not_there_is_down(tmp_path: Path) -> None:
    event = await first_event({"redis": f"unix://{tmp_path}/redis.sock"})
    assert (event["event_type"], event["error_type"]) == ("service_down", "unreachable")


@needs_redis_tls
async def test_a_redis_is_checked_by_tls_with_a_certificate_that_is_trusted_and_is_down_with_another() -> None:
    with RedisServer(tls="mutual") as server:
        address = f"rediss://127.0.0.1:{server.port}"
        own = {"cert_file": str(server.client_cert_file), "key_file": str(server.client_key_file)}
        trusted = {"redis": address, "tls": {"ca_file": str(server.ca_file), **own}}
        assert (await first_event(trusted))["event_type"] == "service_up"
        for settings in ({}, {"tls": own}):
            event = await first_event({"redis": address, **settings})
            assert (event["event_type"], event["error_type"]) == ("service_down", "unreachable"), settings
        refused = await first_event({"redis": address, "tls": {"ca_file": str(server.ca_file)}})
        assert refused["event_type"] == "service_down", "the server asks for a certificate of ours"


@needs_redis
async def test_a_redis_that_ends_is_down() -> None:
    kept = Kept()
    with RedisServer() as server:
        async with receiving(checker({"name": "queue", "redis": f"redis://127.0.0.1:{server.port}"}), kept):
            await kept.wait_for_record(event_type="service_up")
            server.stop()
            assert (await kept.wait_for_record(event_type="service_down"))["error_type"] == "unreachable"


async def test_a_redis_that_still_loads_its_data_is_down() -> None:
    async with raw(b"-LOADING Redis is loading the dataset in memory\r\n") as port:
        event = await first_event({"redis": f"redis://127.0.0.1:{port}"})
    assert (event["error_type"], "LOADING" in event["message"]) == ("not_ready", True)

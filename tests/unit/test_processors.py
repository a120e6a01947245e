"""Processors over real batches: `enrich`, the example plugin, and the intake with blocks of another emp-pipe."""

from __future__ import annotations

import asyncio
import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from emp_pipe._core import Batch, encode_block
from emp_pipe.clock import SystemClock
from emp_pipe.component import Arrival, Context
from emp_pipe.intake import GuardedProcessor, PipelineIntake
from emp_pipe.processors.enrich import Enrich, EnrichConfig
from emp_pipe.processors.filter import Filter, FilterConfig
from emp_pipe.processors.rate_limit import RateLimit, RateLimitConfig
from emp_pipe.processors.redact import Redact, RedactConfig
from emp_pipe.self_metrics import Metrics
from emp_pipe.taps import Taps
from tests.support.command import ROOT
from tests.support.telemetry import log_batch, log_record


def context(tmp_path: Path) -> Context:
    return Context(SystemClock(), Metrics(), tmp_path, "gpu-1", "edge")


def rows(batch: Batch | None) -> list[dict[str, Any]]:
    assert batch is not None
    return [json.loads(line) for line in batch.to_json_lines().splitlines()]


@pytest.mark.parametrize("target", ["resource", "record"])
def test_enrich_adds_attributes_where_they_lack(tmp_path: Path, target: str) -> None:
    config = EnrichConfig.model_validate({"attributes": {"region": "eu", "gpus": 8}, "target": target})
    batch = log_batch([log_record("a", attributes={"region": "us"} if target == "record" else None), log_record("b")])
    first, second = rows(Enrich("enrich", config, context(tmp_path)).process(batch))
    assert first["region"] == ("us" if target == "record" else "eu")
    assert (second["region"], second["gpus"]) == ("eu", 8)


def test_enrich_overwrites_where_it_is_told_to(tmp_path: Path) -> None:
    config = EnrichConfig.model_validate({"attributes": {"region": "eu"}, "target": "record", "overwrite": True})
    (row,) = rows(Enrich("enrich", config, context(tmp_path)).process(log_batch([log_record("a", attributes={"region": "us"})])))
    assert row["region"] == "eu"


def test_the_example_plugin_is_short_and_marks_only_slow_jobs(tmp_path: Path) -> None:
    place = ROOT / "examples" / "slow_jobs.py"
    spec = importlib.util.spec_from_file_location("slow_jobs", place)
    assert spec is not None
    assert spec.loader is not None
    plugin = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(plugin)
    code = [line for line in place.read_text(encoding="utf-8").split('"""', 2)[2].splitlines() if line.strip()]
    assert len(code) <= 20
    processor = plugin.SlowJobs("slow", plugin.SlowJobsConfig(limit_ms=100), context(tmp_path))
    batch = log_batch([log_record(text, attributes={"duration_ms": text} if text else {}) for text in ("50", "101.5", "")])
    assert [row.get("slow") for row in rows(processor.process(batch))] == [None, True, None]
    assert [row.get("slow") for row in rows(processor.process(log_batch(["no durations"])))] == [None]


class Writer:
    admitting = True

    def __init__(self) -> None:
        self.arrivals: list[Arrival] = []

    def submit(self, arrival: Arrival) -> asyncio.Future[None]:
        self.arrivals.append(arrival)
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        done.set_result(None)
        return done

    async def wait_admitting(self) -> None:
        return


class KeepFirst:
    id = "keep_first"

    def process(self, batch: Batch) -> Batch | None:
        return batch.slice(0, 1)


class Same:
    id = "same"

    def process(self, batch: Batch) -> Batch | None:
        return batch


async def through(processor: Any, *blocks: Any) -> Arrival:
    writer = Writer()
    intake = PipelineIntake(writer, Taps(SystemClock()), lambda error: None)
    intake.set_processors([GuardedProcessor(processor.id, processor, "pass", Metrics())])
    await intake.submit(Arrival("forward", blocks=blocks, received=sum(block.records for block in blocks)))
    return writer.arrivals[0]


async def test_a_block_of_another_emp_pipe_that_processors_leave_as_it_is_keeps_its_bytes() -> None:
    block = encode_block([log_batch(3)], "gzip", topic="logs", block_id="b-1")
    assert (await through(Same(), block)).blocks[0] is block


async def test_a_block_that_processors_change_keeps_its_id_topic_codec_and_flags_so_that_a_repeat_is_found() -> None:
    block = encode_block([log_batch(3)], "gzip", topic="logs", block_id="b-1").with_flags(decided=True)
    arrival = await through(KeepFirst(), block)
    (changed,) = arrival.blocks
    assert (changed.block_id, changed.topic, changed.codec, changed.decided) == ("b-1", "logs", "gzip", True)
    assert (changed.records, arrival.dropped) == (1, 2)


async def test_a_block_that_cannot_be_opened_goes_on_unchanged_to_become_a_dead_letter() -> None:
    good = encode_block([log_batch(3)], "gzip", topic="logs", block_id="b-1")
    torn = type(good)(good.header, bytes(memoryview(good))[:10])
    assert (await through(KeepFirst(), torn)).blocks == [torn]


def test_rules_of_one_name_are_counted_together_and_none_of_their_records_is_missing_in_the_count(tmp_path: Path) -> None:
    given, batch = context(tmp_path), log_batch([log_record(text) for text in ("one", "one", "two", "three", "badge-1 pass-2")])
    rules = [{"name": "same", "matches": {"body": text}} for text in ("one", "two", "three")]
    Filter("filter", FilterConfig.model_validate({"rules": rules}), given).process(batch)
    limits = [{**rule, "by": "all", "records_per_s": 1, "burst": 1} for rule in rules[:2]]
    limit = RateLimit("limit", RateLimitConfig.model_validate({"rules": limits}), given)
    for _ in range(2):
        limit.process(batch)
    redact = RedactConfig.model_validate({"patterns": ["bearer"], "extra_patterns": {"key": "badge-[0-9]", "bearer": "pass-[0-9]"}})
    masked = Redact("redact", redact, given).process(log_batch([log_record("badge-1 pass-2 Bearer 0123456789abcdef")]))
    assert rows(masked)[0]["message"] == "[redacted] [redacted] Bearer [redacted]"
    counted = given.metrics.registry.get_sample_value
    assert counted("emp_pipe_filter_dropped_records_total", {"component": "filter", "reason": "same"}) == 4
    assert counted("emp_pipe_rate_limit_dropped_records_total", {"component": "limit", "reason": "same"}) == 4
    assert counted("emp_pipe_redact_masked_values_total", {"component": "redact", "reason": "bearer"}) == 2

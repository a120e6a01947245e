"""What a reload leaves of components that are gone: nothing in memory, and no gauge that would go on as if they were there."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import weakref
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from emp_pipe.clock import SystemClock
from emp_pipe.config import PipelineConfig, build
from emp_pipe.config_yaml import parse_yaml
from emp_pipe.errors import ConfigError, ErrorKind
from emp_pipe.pipeline import Pipeline
from emp_pipe.reload import reload
from emp_pipe.self_metrics import ComponentGauges, Metrics

PATIENCE_S = 20.0
DERIVERS = ("aggregate", "red_metrics", "tail_sample")
GAUGES = {
    "aggregate": ("aggregate_streams", "aggregate_memory_bytes", "deriver_held_blocks", "deriver_held_bytes"),
    "red_metrics": ("deriver_held_blocks", "deriver_held_bytes"),
    "tail_sample": ("tail_sample_open_traces", "tail_sample_memory_bytes", "deriver_held_blocks", "deriver_held_bytes"),
    "noop/b": (
        "exporter_concurrency_limit_requests",
        "exporter_in_flight_requests",
        "exporter_breaker_open_ratio",
        "exporter_lag_records",
        "exporter_lag_seconds",
    ),
}
ALL = "processors: {aggregate: {}, red_metrics: {}, tail_sample: {policies: [{type: error}]}}\nexporters: {noop/a: {}, noop/b: {}}\n"
FEW = "exporters: {noop/a: {}}\n"


def config(text: str, directory: Path) -> PipelineConfig:
    return build(parse_yaml(f"buffer: {{type: memory}}\ndata_dir: {directory}\n{text}", "emp.yaml", {}))


@contextlib.asynccontextmanager
async def running(text: str, directory: Path) -> AsyncIterator[Pipeline]:
    pipeline = Pipeline(config(text, directory), SystemClock(), Metrics())
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(pipeline.run())
        await pipeline.started.wait()
        try:
            yield pipeline
        finally:
            pipeline.stop()


def shown(pipeline: Pipeline, component: str) -> set[str]:
    """Return the gauges of a component that `/metrics` has."""
    families = pipeline.metrics.registry.collect()
    found = {(sample.name, sample.labels.get("component")) for family in families if family.type == "gauge" for sample in family.samples}
    return {name.removeprefix("emp_pipe_") for name, label in found if label == component}


async def until_shown(pipeline: Pipeline, component: str, *names: str) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while shown(pipeline, component) != set(names):  # noqa: ASYNC110 — nobody tells
            await asyncio.sleep(0.005)


def held(pipeline: Pipeline) -> dict[str, list[weakref.ref[Any]]]:
    """Return weak references to what components are made of."""
    found: dict[str, list[weakref.ref[Any]]] = {
        name: [weakref.ref(slot.loop), weakref.ref(slot.loop.deriver)] for name, slot in pipeline.derivers.items()
    }
    for name, slot in pipeline.exporters.items():
        exporter: Any = slot.loop.exporter
        found[name] = [weakref.ref(slot.loop), weakref.ref(exporter._exporter)]
    return found


async def until_gone(references: list[weakref.ref[Any]]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while any(reference() is not None for reference in references):
            await asyncio.sleep(0.005)
            gc.collect()


@pytest.mark.parametrize("component", [*DERIVERS, "noop/b"])
async def test_a_component_that_a_reload_removed_is_no_longer_in_memory_and_its_gauges_are_gone(tmp_path: Path, component: str) -> None:
    async with running(ALL, tmp_path) as pipeline:
        await until_shown(pipeline, component, *GAUGES[component])
        references = held(pipeline)[component]
        await reload(pipeline, config(FEW, tmp_path))
        await until_shown(pipeline, component)
        await until_gone(references)
        assert shown(pipeline, "noop/a") == set(GAUGES["noop/b"]), "who stays keeps its gauges"


async def test_components_that_a_reload_changed_have_the_gauges_of_the_new_ones(tmp_path: Path) -> None:
    changed = ALL.replace("aggregate: {}", "aggregate: {interval_s: 29}").replace("noop/b: {}", "noop/b: {max_concurrency: 3}")
    changed = changed.replace("type: error}]", "type: error}], decision_wait_s: 29")
    async with running(ALL, tmp_path) as pipeline:
        for component, names in GAUGES.items():
            await until_shown(pipeline, component, *names)
        before = held(pipeline)
        await reload(pipeline, config(changed, tmp_path))
        await until_gone([*before["aggregate"], *before["tail_sample"], *before["noop/b"]])
        for component, names in GAUGES.items():
            await until_shown(pipeline, component, *names)
        limit = pipeline.metrics.registry.get_sample_value("emp_pipe_exporter_concurrency_limit_requests", {"component": "noop/b"})
        assert limit == 3, "the gauge is read from the old one"


async def test_a_reload_that_fails_leaves_the_gauges_to_those_that_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changed = ALL.replace("aggregate: {}", "aggregate: {interval_s: 29}").replace("noop/b: {}", "noop/b: {max_concurrency: 3}")
    name, labels = "emp_pipe_exporter_concurrency_limit_requests", {"component": "noop/b"}
    async with running(ALL, tmp_path) as pipeline:
        await until_shown(pipeline, "aggregate", *GAUGES["aggregate"])
        before = pipeline.metrics.registry.get_sample_value(name, labels)
        made: list[Any] = []
        build_derivers = pipeline.build_derivers

        def build_and_fail(*given: Any) -> Any:
            made.append(weakref.ref(build_derivers(*given)["aggregate"].loop))
            raise ConfigError(ErrorKind.CONFIG_INVALID, place="processors", detail="they do not fit together")

        with monkeypatch.context() as patched:
            patched.setattr(pipeline, "build_derivers", build_and_fail)
            with pytest.raises(ConfigError, match="do not fit"):
                await reload(pipeline, config(changed, tmp_path))
        assert pipeline.metrics.registry.get_sample_value(name, labels) == before != 3
        await until_gone(made)


def test_gauges_that_another_has_taken_over_stay_when_the_first_one_ends() -> None:
    metrics = Metrics()
    first, second = ComponentGauges(metrics, "one"), ComponentGauges(metrics, "one")
    for gauges, value in ((first, 1.0), (second, 2.0)):
        gauges.add("things", unit="things", help="Things.", read=lambda value=value: value)  # type: ignore[misc]  # bound now
    first.close()
    assert metrics.registry.get_sample_value("emp_pipe_things", {"component": "one"}) == 2.0
    second.close()
    second.close()
    assert metrics.registry.get_sample_value("emp_pipe_things", {"component": "one"}) is None

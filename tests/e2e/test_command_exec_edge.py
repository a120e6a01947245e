"""The whole way: applications under `emp-pipe exec`, the edge that runs on their machine, and what leaves it for a backend."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.support.otlp_endpoint import OtlpEndpoint
from tests.support.otlp_seen import logs, metrics, spans
from tests.support.two_services import assert_one_trace_of_the_job, through_an_edge


@pytest.mark.parametrize("options", [[], ["--protocol", "grpc"]], ids=["http", "grpc"])
async def test_a_failed_job_is_one_trace_in_the_backend_with_its_logs_and_metrics(options: list[str], tmp_path: Path) -> None:
    async with OtlpEndpoint() as endpoint:
        await asyncio.to_thread(through_an_edge, tmp_path, endpoint.url, options)
        assert endpoint.violations == []
        assert_one_trace_of_the_job(endpoint.received, "/fail")
        (renders,) = (row for row in metrics(endpoint.received) if row.name == "renders")
    assert sum(point.as_int for point in renders.row.sum.data_points) == 1
    assert renders.resource["service.instance.id"] == "machine-gpu-7f3a.worker-1"


async def test_an_edge_with_a_token_lets_in_the_applications_that_have_it(tmp_path: Path) -> None:
    async with OtlpEndpoint() as endpoint:
        await asyncio.to_thread(through_an_edge, tmp_path, endpoint.url, EMP_OTLP_TOKEN="not for, everybody")
        assert len(spans(endpoint.received)) >= 4
        assert len(logs(endpoint.received)) == 3

"""A start of the OTLP/gRPC receiver that ends before it is done: another component could not start."""

from __future__ import annotations

import asyncio
import gc
from pathlib import Path

import pytest

from emp_pipe.receivers.otlp_grpc import OtlpGrpcConfig, OtlpGrpcReceiver
from tests.support.forward import RecordingIntake, make_context, turns


async def test_a_start_that_is_given_up_leaves_nothing_behind_that_fails(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    receiver = OtlpGrpcReceiver("otlp_grpc", OtlpGrpcConfig(listen=("127.0.0.1:0",)), make_context(tmp_path))
    running = asyncio.create_task(receiver.run(RecordingIntake(), asyncio.Event()))
    while receiver._service is None:  # noqa: ASYNC110 (it is there before anything could tell)
        await asyncio.sleep(0)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    receiver._service = None
    del running
    gc.collect()
    await turns()
    gc.collect()
    assert not [line for line in caplog.messages if not line.startswith("listening on")]

"""What OTLP receivers say, byte for byte, held against the official classes."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf import json_format
from google.rpc.code_pb2 import Code as OfficialCode
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status
from hypothesis import given
from hypothesis import strategies as st

from emp_pipe.otlp_answers import DONE, Code, Encoding, Outcome, Signal, response_body, retry_info, status_body
from tests.support.otlp_receiving import REJECTED, RESPONSES, SIGNALS

ENCODINGS: tuple[Encoding, ...] = ("protobuf", "json")


def read(body: bytes, message: Any, encoding: Encoding) -> Any:
    if encoding == "json":
        return json_format.Parse(body, message)
    message.ParseFromString(body)
    return message


def test_the_codes_are_the_official_ones() -> None:
    assert {code.name: int(code) for code in Code} == {code.name: OfficialCode.Value(code.name) for code in Code}


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("signal", SIGNALS)
def test_a_full_success_leaves_partial_success_unset(signal: Signal, encoding: Encoding) -> None:
    assert not read(response_body(DONE, signal, encoding), RESPONSES[signal](), encoding).HasField("partial_success")


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("signal", SIGNALS)
@given(rejected=st.integers(1, 2**63 - 1), message=st.text(min_size=1, max_size=1024))
def test_a_partial_success_has_the_count_and_the_message_of_its_signal(
    signal: Signal, encoding: Encoding, rejected: int, message: str
) -> None:
    body = response_body(Outcome(Code.OK, message, rejected), signal, encoding)
    partial = read(body, RESPONSES[signal](), encoding).partial_success
    assert (getattr(partial, REJECTED[signal]), partial.error_message) == (rejected, message)


@pytest.mark.parametrize("encoding", ENCODINGS)
@given(code=st.sampled_from([code for code in Code if code]), message=st.text(max_size=300))
def test_a_refusal_is_a_status_with_code_and_message(encoding: Encoding, code: Code, message: str) -> None:
    status = read(status_body(Outcome(code, message), encoding), Status(), encoding)
    assert (status.code, status.message, len(status.details)) == (code, message, 0)


@pytest.mark.parametrize("encoding", ENCODINGS)
@given(seconds=st.integers(1, 100_000))
def test_a_refusal_for_now_says_when_to_come_again(encoding: Encoding, seconds: int) -> None:
    status = read(status_body(Outcome(Code.UNAVAILABLE, "full", retry_after_s=seconds), encoding), Status(), encoding)
    info = RetryInfo()
    assert status.details[0].Unpack(info)
    assert info.retry_delay.ToTimedelta().total_seconds() == seconds
    assert RetryInfo.FromString(retry_info(seconds)) == info


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_message_is_cut_to_what_a_header_may_hold(encoding: Encoding) -> None:
    status = read(status_body(Outcome(Code.INTERNAL, "x" * 100_000), encoding), Status(), encoding)
    assert status.message == "x" * 1024

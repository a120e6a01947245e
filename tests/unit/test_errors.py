"""The closed lists: every kind of error has its advice, every reason to lose or set aside a record is known to users and tests."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from emp_pipe.errors import FACTS, DeliveryError, EmpPipeError, ErrorKind, Retry
from emp_pipe.log.protocol import DeadReason, LossReason

ROOT = Path(__file__).resolve().parents[2]

KINDS = {
    "config_invalid",
    "config_unknown_key",
    "config_not_found",
    "address_in_use",
    "tls_files",
    "log_full",
    "log_io",
    "log_newer",
    "log_in_use",
    "log_closed",
    "log_stale",
    "block_invalid",
    "frame_invalid",
    "frame_too_large",
    "entry_invalid",
    "body_invalid",
    "handshake_refused",
    "unreachable",
    "timed_out",
    "throttled",
    "unauthenticated",
    "refused",
    "too_large",
    "expired",
    "server_error",
    "processor_failed",
}


def test_the_list_of_kinds_is_this_one() -> None:
    assert {kind.value for kind in ErrorKind} == KINDS, "a kind is a promise to users: name it here, in CHANGELOG.md and with its advice"
    assert set(FACTS) == set(ErrorKind)


@pytest.mark.parametrize("kind", ErrorKind)
def test_every_kind_says_where_what_and_what_to_do(kind: ErrorKind) -> None:
    facts = FACTS[kind]
    assert facts.summary
    assert facts.advice
    assert not facts.summary.endswith(".")
    text = str(EmpPipeError(kind, place="forward: 10.0.0.7"))
    assert text == f"forward: 10.0.0.7: {facts.summary}; {facts.advice}."


def test_an_error_gains_its_place_on_the_way_up_and_keeps_what_the_raiser_knew_better() -> None:
    error = DeliveryError(
        ErrorKind.REFUSED, place="10.0.0.7", detail="HTTP 404", advice="check `endpoint`", retry=Retry.AFTER_CONFIG_CHANGE
    )
    assert str(error.located("otlp_http")) == "otlp_http: 10.0.0.7: HTTP 404; check `endpoint`."
    assert error.retry is Retry.AFTER_CONFIG_CHANGE


def test_every_kind_that_the_core_reports_is_one_that_python_knows() -> None:
    names = re.findall(r'Self::\w+ => "(\w+)"', (ROOT / "rust/emp-core/src/error.rs").read_text())
    assert names
    assert set(names) <= KINDS


def test_the_reasons_to_set_aside_and_to_give_up_are_these() -> None:
    dead = {"entry_invalid", "frame_invalid", "body_invalid", "block_invalid", "refused", "expired", "too_large", "trace_too_large"}
    assert {reason.value for reason in DeadReason} == dead
    assert {reason.value for reason in LossReason} == {"quota", "group_dropped", "group_reset", "dead_limit"}

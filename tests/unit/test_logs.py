"""The rate-limited logger: a noisy peer fills no disk, and what was held back is said."""

from __future__ import annotations

import logging

import pytest

from emp_pipe import logs
from emp_pipe.logs import RateLimitedLogger, get_logger


@pytest.fixture
def now_s(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time in a list, for a test to move."""
    now = [1000.0]
    monkeypatch.setattr(logs.time, "monotonic", lambda: now[0])
    return now


def test_a_key_is_said_once_an_interval_and_then_how_often_it_was_held_back(caplog: pytest.LogCaptureFixture, now_s: list[float]) -> None:
    limited = RateLimitedLogger(get_logger("forward"), interval_s=10.0)
    for _ in range(5):
        limited.warning("key", "refused %s", "10.0.0.7")
    limited.warning("other", "another thing")
    now_s[0] += 10.0
    limited.warning("key", "refused %s", "10.0.0.8")
    assert caplog.messages == ["refused 10.0.0.7", "another thing", "refused 10.0.0.8 (4 more like it in the last 10 s)"]


def test_keys_that_an_attacker_makes_up_take_a_bounded_number_of_bytes(now_s: list[float]) -> None:
    limited = RateLimitedLogger(logging.getLogger("emp_pipe.quiet"))
    limited._logger.setLevel(logging.CRITICAL)
    for number in range(5000):
        limited.warning(f"key {number}", "said")
    assert len(limited._keys) == 1024


def test_what_nobody_expected_is_said_with_its_stack_and_as_rarely(caplog: pytest.LogCaptureFixture, now_s: list[float]) -> None:
    limited = RateLimitedLogger(get_logger("otlp_http"))
    for _ in range(3):
        try:
            raise ZeroDivisionError
        except ZeroDivisionError:
            limited.exception("unexpected", "it failed unexpectedly")
    (said,) = caplog.records
    assert (said.levelno, said.message) == (logging.ERROR, "it failed unexpectedly")
    assert said.exc_info is not None
    assert said.exc_info[0] is ZeroDivisionError

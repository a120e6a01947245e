"""Promises about the clocks of sources: who is ahead is said, who is behind only by setting, and the table stays small."""

from __future__ import annotations

import logging

import pytest

from emp_pipe.clock_skew import ClockSkew
from emp_pipe.logs import RateLimitedLogger
from emp_pipe.self_metrics import Metrics

_SECOND = 1_000_000_000


def _skew(**settings: object) -> tuple[ClockSkew, Metrics]:
    metrics = Metrics()
    values: dict[str, object] = {"behind_s": None, "correct": False}
    return ClockSkew("forward", metrics, RateLimitedLogger(logging.getLogger("emp_pipe.forward")), **(values | settings)), metrics  # type: ignore[arg-type]


def _ahead(skew: ClockSkew, metrics: Metrics) -> float:
    skew.publish()
    return metrics.registry.get_sample_value("emp_pipe_forward_clock_ahead_seconds", {"component": "forward"}) or 0.0


def test_a_clock_ahead_is_reported_and_not_corrected_unless_told():
    skew, metrics = _skew()
    skew.seen("10.0.0.1", -30 * _SECOND, now_s=0)
    assert _ahead(skew, metrics) == 30.0
    assert skew.correction_ns("10.0.0.1") == 0


def test_a_corrected_source_is_moved_by_how_far_it_is_ahead_and_its_neighbour_is_not():
    skew, _ = _skew(correct=True)
    skew.seen("10.0.0.1", -30 * _SECOND, now_s=0)
    skew.seen("10.0.0.2", _SECOND, now_s=0)
    assert skew.correction_ns("10.0.0.1") == -30 * _SECOND
    assert skew.correction_ns("10.0.0.2") == 0


def test_a_clock_that_was_put_right_is_no_longer_corrected():
    skew, metrics = _skew(correct=True)
    skew.seen("10.0.0.1", -30 * _SECOND, now_s=0)
    skew.seen("10.0.0.1", 0, now_s=61)  # closes the window in which it was ahead
    skew.seen("10.0.0.1", 0, now_s=122)
    assert skew.correction_ns("10.0.0.1") == 0
    assert _ahead(skew, metrics) == 0.0


def test_two_seconds_ahead_are_not_worth_a_line(caplog: pytest.LogCaptureFixture):
    skew, _ = _skew(correct=True)
    skew.seen("10.0.0.1", -2 * _SECOND, now_s=0)
    assert caplog.records == []
    assert skew.correction_ns("10.0.0.1") == 0


def test_old_records_are_no_wrong_clock_unless_the_setting_says_from_when():
    skew, _ = _skew(correct=True)
    for now_s in (0, 61, 122):
        skew.seen("10.0.0.1", 3600 * _SECOND, now_s=now_s)
    assert skew.correction_ns("10.0.0.1") == 0

    skew, _ = _skew(correct=True, behind_s=600)
    skew.seen("10.0.0.1", 3600 * _SECOND, now_s=0)
    assert skew.correction_ns("10.0.0.1") == 0, "one look is not enough"
    skew.seen("10.0.0.1", 3601 * _SECOND, now_s=61)
    assert skew.correction_ns("10.0.0.1") == 3600 * _SECOND


def test_one_young_record_a_minute_shows_that_the_clock_is_right():
    skew, _ = _skew(correct=True, behind_s=600)
    skew.seen("10.0.0.1", 3600 * _SECOND, now_s=0)
    skew.seen("10.0.0.1", _SECOND, now_s=30)
    skew.seen("10.0.0.1", 3600 * _SECOND, now_s=61)
    assert skew.correction_ns("10.0.0.1") == 0


def test_the_table_of_sources_is_bounded():
    skew, _ = _skew(correct=True)
    for number in range(5000):
        skew.seen(f"10.0.{number // 256}.{number % 256}", -30 * _SECOND, now_s=0)
    assert len(skew._sources) == 1024

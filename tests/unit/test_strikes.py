"""Who fails too often is turned away, and for how long: addresses may be shared with machines that do everything right."""

from __future__ import annotations

from emp_pipe.accepting import Strikes
from tests.support.manual_clock import ManualClock


def test_however_often_an_address_failed_it_is_let_in_again_five_seconds_later() -> None:
    clock = ManualClock()
    strikes = Strikes(10.0, clock)
    for _ in range(1_000_000):
        strikes.strike("a")
    clock.advance(4.9)
    assert strikes.is_out("a")
    clock.advance(0.2)
    assert not strikes.is_out("a")


def test_an_address_that_fails_as_often_as_it_may_is_never_turned_away() -> None:
    clock = ManualClock()
    strikes = Strikes(10.0, clock)
    for _ in range(1_000):
        strikes.strike("a")
        assert not strikes.is_out("a")
        clock.advance(0.1)

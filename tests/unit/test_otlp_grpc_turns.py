"""Turns at receiving long messages by gRPC: who has many calls takes no more of them than who has one."""

from __future__ import annotations

import math

from emp_pipe.receivers.otlp_grpc_turns import Turns


class Call:
    """A call that notes when it has its turn."""

    own_timeout_s = math.inf

    def __init__(self, connection: str, had: list[str]) -> None:
        self.connection = connection
        self._had = had

    def has_turn(self) -> None:
        self._had.append(self.connection)

    def timed_out(self) -> None:
        raise AssertionError("no time has passed")


async def test_one_connections_thousand_calls_keep_another_waiting_for_one_turn_at_most() -> None:
    had: list[str] = []
    turns = Turns(1, 3600.0)
    many = [Call("many", had) for _ in range(1000)]
    few = [Call("few", had) for _ in range(2)]
    for call in (*many, *few, Call("one", had)):
        turns.ask(call)
    assert had == ["many"]
    for call in (many[0], many[1], few[0]):
        turns.end(call)
    assert had == ["many", "many", "few", "one"]
    turns.close()


async def test_calls_of_one_connection_have_their_turns_in_the_order_in_which_they_came() -> None:
    had: list[str] = []
    turns = Turns(2, 3600.0)
    calls = [Call("a", had) for _ in range(4)]
    for number, call in enumerate(calls):
        call.has_turn = lambda number=number: had.append(str(number))  # type: ignore[method-assign,misc]
        turns.ask(call)
    turns.end(calls[0])
    turns.end(calls[1])
    assert had == ["0", "1", "2", "3"]
    turns.close()


async def test_a_call_that_ends_while_it_waits_leaves_its_place_to_the_others() -> None:
    had: list[str] = []
    turns = Turns(1, 3600.0)
    first, gone, last = Call("a", had), Call("b", had), Call("c", had)
    for call in (first, gone, last):
        turns.ask(call)
    turns.end(gone)
    turns.end(gone)
    turns.end(first)
    assert had == ["a", "c"]
    turns.end(last)
    assert turns.reading == 0
    turns.close()

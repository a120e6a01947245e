"""When a look at a service changes its state, and what a checkpoint holds of it."""

from __future__ import annotations

import json

import pytest

from emp_pipe.receivers.checks_states import States

NOW = 1_760_000_000_000_000_000
DAY_NS = 86_400 * 1_000_000_000


def looks(states: States, text: str, down_after: int = 2, up_after: int = 1) -> list[str | None]:
    """Look once for each letter, `u` for up and `d` for down; what each look changed the state from."""
    changes = (states.take("api", letter == "u", NOW + at, down_after, up_after) for at, letter in enumerate(text))
    return [change.status if change is not None else None for change in changes]


@pytest.mark.parametrize(
    ("text", "down_after", "up_after", "changes"),
    [
        ("uuu", 2, 1, ["unknown", None, None]),
        ("ddd", 2, 1, [None, "unknown", None]),
        ("ududud", 2, 1, ["unknown", None, None, None, None, None]),
        ("uddu", 2, 1, ["unknown", None, "up", "down"]),
        ("udu", 1, 1, ["unknown", "up", "down"]),
        ("dduduu", 2, 2, [None, "unknown", None, None, None, "down"]),
        ("dududd", 2, 2, [None, None, None, None, None, "unknown"]),
    ],
)
def test_a_state_changes_when_enough_looks_agree_one_after_another(text: str, down_after: int, up_after: int, changes: list[str]) -> None:
    assert looks(States(), text, down_after, up_after) == changes


def test_a_change_says_since_when_the_last_state_was() -> None:
    states = States()
    looks(states, "u")
    states.take("api", False, NOW + 10, 2, 1)
    change = states.take("api", False, NOW + 20, 2, 1)
    assert change is not None
    assert (change.status, change.since_unix_nano) == ("up", NOW)


def test_states_are_the_same_after_a_restart_and_nothing_is_told_twice() -> None:
    states = States()
    looks(states, "udd")
    again = States.of_bytes(states.to_bytes())
    assert looks(again, "dd") == [None, None]
    assert looks(again, "u") == ["down"]


@pytest.mark.parametrize(
    "text",
    [
        None,
        b"",
        b"null",
        b"[]",
        b"{",
        b"\xff\xfe",
        b'{"api": 5}',
        b'{"api": ["sideways", 1]}',
        b'{"api": ["up"]}',
        b'{"api": ["up", "x"]}',
        b"[" * 99_999,
    ],
)
def test_a_checkpoint_that_cannot_be_read_is_a_state_that_is_not_known(text: bytes | None) -> None:
    assert looks(States.of_bytes(text), "u") == ["unknown"]


def test_what_nobody_checks_any_more_is_not_kept() -> None:
    states = States()
    looks(states, "u")
    states.take("old", True, NOW, 1, 1)
    states.keep({"api"})
    assert json.loads(states.to_bytes()) == {"api": ["up", NOW]}


def test_what_has_been_down_for_a_day_is_forgotten_and_what_is_up_is_not() -> None:
    states = States()
    states.take("gone", False, NOW, 1, 1)
    states.take("here", True, NOW, 1, 1)
    assert not states.forget("gone", NOW + DAY_NS - 1)
    assert not states.forget("here", NOW + 9 * DAY_NS)
    assert states.forget("gone", NOW + DAY_NS)
    assert list(states.names) == ["here"]

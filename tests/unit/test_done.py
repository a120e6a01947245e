"""What was done upstream, as a header says it."""

from __future__ import annotations

from itertools import product

import pytest

from emp_pipe.done import NOTHING_DONE, Done
from tests.support.blocks import block

ALL = [Done(*flags) for flags in product([False, True], repeat=3)]


@pytest.mark.parametrize("done", ALL)
def test_what_is_said_is_read_and_what_a_block_says_is_said(done: Done) -> None:
    assert Done.parse(done.words) == done
    assert Done.of(block([1]).with_flags(**done._asdict())) == done


def test_the_words_are_those_that_the_documents_name() -> None:
    assert (Done(True, True, True).words, Done(red_done=True).words, NOTHING_DONE.words) == ("decided,red_done,aggregated", "red_done", "")


@pytest.mark.parametrize(
    ("text", "done"),
    [
        ("", NOTHING_DONE),
        (",,", NOTHING_DONE),
        (" red_done ,\tdecided", Done(decided=True, red_done=True)),
        ("decided,decided", Done(decided=True)),
        ("enriched,aggregated,_fields,count", Done(aggregated=True)),
        ("DECIDED", NOTHING_DONE),
        ("decidedaggregated", NOTHING_DONE),
        ("decided," + "x" * 248, Done(decided=True)),
        ("decided," + "x" * 249, NOTHING_DONE),
    ],
)
def test_foreign_words_are_ignored_and_so_is_a_text_that_is_too_long(text: str, done: Done) -> None:
    assert Done.parse(text) == done

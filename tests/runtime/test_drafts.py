"""Drafts by prompt lookup: what is drafted, and how many tokens."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from doge_export.runtime.drafts import DraftLength, TextIndex


def plainly(text: list[int], most: int) -> list[int]:
    """The same by looking through the whole text."""
    for length in (4, 3, 2):
        last = text[-length:]
        for place in range(len(text) - 1, length - 1, -1):
            if len(text) > length and text[place - length : place] == last:
                again = text[place:]
                return (again * most)[:most]
    return []


@given(st.lists(st.integers(0, 3), max_size=40), st.integers(1, 20))
def test_a_draft_is_what_followed_the_longest_match(text: list[int], most: int) -> None:
    index = TextIndex()
    for start in range(0, len(text), 3):
        index.extend(text[start : start + 3])
    assert len(index) == len(text)
    assert index.draft(most) == plainly(text, most)


def test_a_text_in_a_circle_is_drafted_round_it() -> None:
    index = TextIndex()
    index.extend([9, 1, 2, 3, 1, 2, 3, 1, 2])
    assert index.draft(7) == [3, 1, 2, 3, 1, 2, 3]
    assert TextIndex().draft(5) == []


def taught(chance: float, cost: float, calls: int = 300, seed: int = 0) -> DraftLength:
    """After calls that take 1 and `cost` for each drafted token, each right with a chance."""
    rng, choice = random.Random(seed), DraftLength()
    choice.undrafted(4, 4.0)
    for _ in range(calls):
        length = choice.best(15)
        if length == 0:
            choice.undrafted(1, 1.0)
            continue
        right = next((place for place in range(length) if rng.random() >= chance), length)
        choice.drafted(length, right, 1 + cost * length)
    return choice


@pytest.mark.parametrize("cost", [0.02, 0.1, 0.2])
def test_the_length_follows_what_is_right(cost: float) -> None:
    assert taught(1.0, cost).best(15) == 15
    assert taught(1.0, cost).best(10) == 7, "no more than there is room for"
    assert taught(1.0, cost).best(2) == 0


def test_drafts_that_do_not_pay_end_and_are_tried_again() -> None:
    choice = taught(0.02, 0.1)
    if choice.best(15):
        choice.drafted(choice.best(15), 0, 2.0)
    assert choice.best(15) == 0
    spent = 0
    while choice.best(15) == 0:
        choice.undrafted(4, 4.0)
        spent += 4
        assert spent < 500, "never again"
    assert spent >= 4


def test_nothing_is_drafted_before_a_step_is_known() -> None:
    choice = DraftLength()
    assert choice.best(15) == 0
    choice.undrafted(1, 1.0)
    assert choice.best(15) > 0 == choice.best(0) == choice.best(-9)


def test_a_call_that_costs_too_much_is_not_made() -> None:
    """All drafts are right, and calls of several tokens take forever."""
    choice = DraftLength()
    choice.undrafted(1, 1.0)
    for length in (15, 7, 3):
        choice.drafted(length, length, 100.0)
    assert choice.best(15) == 0

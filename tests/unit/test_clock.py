"""Where a node's seconds go: every moment under one name, and all of them together are the time that passed."""

import time
from collections.abc import Iterator

import pytest

from pcmoe_node.patience import Clock


class Hand:
    """The time, as a test sets it."""

    now = 100.0


@pytest.fixture
def hand(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hand]:
    hand = Hand()
    monkeypatch.setattr(time, "perf_counter", lambda: hand.now)
    yield hand


def test_what_has_no_name_is_other(hand: Hand) -> None:
    clock = Clock()
    hand.now += 3.0
    assert clock.take() == {"other": 3.0}


def test_what_is_counted_inside_is_not_counted_outside(hand: Hand) -> None:
    clock = Clock()
    with clock.phase("exchange_wait"):
        hand.now += 1.0
        with clock.phase("host_compute"):
            hand.now += 10.0
        hand.now += 2.0
    hand.now += 0.5
    assert clock.take() == {"other": 0.5, "exchange_wait": 3.0, "host_compute": 10.0}


def test_a_phase_that_turns_into_another_is_counted_apart(hand: Hand) -> None:
    clock = Clock()
    with clock.phase("forward"):
        hand.now += 1.0
        clock.turn("backward")
        hand.now += 2.0
    hand.now += 4.0
    assert clock.take() == {"other": 4.0, "forward": 1.0, "backward": 2.0}


def test_a_phase_that_fails_is_counted_and_over(hand: Hand) -> None:
    clock = Clock()
    with pytest.raises(KeyError), clock.phase("data"):
        hand.now += 1.0
        raise KeyError
    hand.now += 2.0
    assert clock.take() == {"other": 2.0, "data": 1.0}


def test_a_phase_that_is_still_going_on_is_told_so_far_and_goes_on(hand: Hand) -> None:
    clock = Clock()
    with clock.phase("vote"):
        hand.now += 1.0
        assert clock.take() == {"other": 0.0, "vote": 1.0}
        hand.now += 5.0
    assert clock.take() == {"vote": 5.0, "other": 0.0}

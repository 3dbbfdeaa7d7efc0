"""Votes: the same sum, bit by bit, at everybody."""

import itertools
import math

import pytest

from pcmoe_node.protocol.vote import Tally, Vote, clip_scale

NAMES = ("berlin", "lyon", "porto")


def tally(votes: dict[int, Vote]) -> Tally:
    made = Tally(NAMES)
    for peer, vote in votes.items():
        made.add(peer, vote)
    return made


def test_the_sum_is_in_participant_order_whatever_the_order_of_arrival() -> None:
    votes = {0: Vote(0.1, True), 1: Vote(0.2, True), 2: Vote(0.3, True)}
    results = {
        tally({peer: votes[peer] for peer in order}).result().squared_norm
        for order in itertools.permutations(votes)
    }
    assert results == {(0.1 + 0.2) + 0.3}


def test_the_sum_is_not_compensated_so_that_every_python_version_gets_the_same() -> None:
    pool = tally({0: Vote(1e100, True), 1: Vote(1.0, True), 2: Vote(1.0, True)}).result()
    assert pool.squared_norm == 1e100
    pool = tally({0: Vote(1.0, True), 1: Vote(2.0**53, True), 2: Vote(1.0, True)}).result()
    assert pool.squared_norm == 2.0**53


def test_a_tally_is_complete_when_everybody_has_voted() -> None:
    made = tally({1: Vote(1.0, True)})
    assert (made.complete, made.missing, made.has(1), made.has(0)) == (False, [0, 2], True, False)
    made.add(0, Vote(0.0, True))
    made.add(2, Vote(0.0, True))
    assert (made.complete, made.missing) == (True, [])


def test_a_copy_of_a_vote_counts_once_and_another_vote_is_an_error() -> None:
    made = Tally(NAMES)
    vote = Vote(1.0, True)
    assert made.add(0, vote)
    assert not made.add(0, vote)
    assert not made.add(0, Vote(1.0, True))
    with pytest.raises(ValueError, match="before and"):
        made.add(0, Vote(1.5, True))


def test_everybody_whose_gradients_are_not_finite_is_named() -> None:
    pool = tally({0: Vote.of(math.inf, True), 1: Vote(2.0, True), 2: Vote.of(math.nan, False)}).result()
    assert pool.reasons == ("expert gradients not finite at berlin", "expert gradients not finite at porto")
    assert (pool.finite, pool.squared_norm) == (False, 2.0)


def test_a_sum_that_overflows_is_not_finite() -> None:
    pool = tally({0: Vote(1e308, True), 1: Vote(1e308, True), 2: Vote(0.0, True)}).result()
    assert not pool.finite
    assert pool.reasons == ("the squared norm of all expert gradients overflows",)


@pytest.mark.parametrize("norm", [math.nan, math.inf, -1.0])
def test_a_norm_that_is_no_norm_makes_a_vote_that_is_not_finite(norm: float) -> None:
    assert Vote.of(norm, True) == Vote(0.0, False)


def test_the_clip_scale_shrinks_to_the_largest_norm_and_never_grows() -> None:
    assert clip_scale(0.0, 1.0) == 1.0
    assert clip_scale(0.5, 1.0) == 1.0
    assert clip_scale(4.0, 1.0) == pytest.approx(0.25, rel=1e-6)
    assert clip_scale(4.0, 2.0) == 2.0 / (4.0 + 1e-6)

"""Turns, rounds, the learning rate and the farewell."""

import itertools
import math

import pytest

from pcmoe_node.protocol.round import Farewell, evaluation_due, owners, round_of, schedule_factor, turns

GOLDEN = [[3, 1, 2, 0], [3, 2, 0, 1], [3, 0, 2, 1], [0, 1, 2, 3]]
"""Turns of four participants with seed 7; a change would make participants of two versions disagree."""


def test_in_the_concurrent_schedule_everybody_owns_every_step() -> None:
    assert all(owners("Concurrent", step, 3, 7) == {0, 1, 2} for step in range(5))


@pytest.mark.parametrize("members", [1, 2, 3, 5])
def test_in_the_sequential_schedule_everybody_has_one_turn_per_block(members: int) -> None:
    for block in range(20):
        steps = range(block * members, (block + 1) * members)
        turn_of = [owners("Sequential", step, members, 7) for step in steps]
        assert all(len(owner) == 1 for owner in turn_of)
        assert frozenset().union(*turn_of) == set(range(members))


def test_turns_are_the_same_in_every_python_version() -> None:
    assert [turns(block, 4, 7) for block in range(4)] == GOLDEN
    assert turns(0, 4, 8) != GOLDEN[0]


def test_every_order_of_turns_comes_up_about_equally_often() -> None:
    counts = dict.fromkeys(itertools.permutations(range(3)), 0)
    for block in range(3000):
        counts[tuple(turns(block, 3, 1))] += 1
    assert all(400 < count < 600 for count in counts.values()), counts


def test_rounds_are_counted_from_one() -> None:
    assert [round_of(step, 2) for step in range(5)] == [1, 1, 2, 2, 3]


def test_evaluation_is_due_before_training_every_so_often_and_at_the_end() -> None:
    assert [r for r in range(8) if evaluation_due(r, 3, 7)] == [0, 3, 6, 7]
    assert all(evaluation_due(r, 1, 4) for r in range(5))


def test_the_rate_rises_linearly_over_the_warm_up() -> None:
    factors = [schedule_factor(step, 4, 10, "Constant") for step in range(10)]
    assert factors == [0.25, 0.5, 0.75] + [1.0] * 7


def test_a_linear_decay_reaches_zero_after_the_last_step() -> None:
    factors = [schedule_factor(step, 2, 6, "Linear") for step in range(8)]
    assert factors == [0.5, 1.0, 1.0, 0.75, 0.5, 0.25, 0.0, 0.0]


def test_a_cosine_decay_is_half_way_down_in_the_middle() -> None:
    factors = [schedule_factor(step, 0, 4, "Cosine") for step in range(5)]
    assert factors == pytest.approx([1.0, (1 + math.sqrt(0.5)) / 2, 0.5, (1 - math.sqrt(0.5)) / 2, 0.0])


@pytest.mark.parametrize("decay", ["Constant", "Linear", "Cosine"])
def test_a_run_that_is_all_warm_up_never_divides_by_zero(decay: str) -> None:
    factors = [schedule_factor(step, 4, 4, decay) for step in range(4)]  # type: ignore[arg-type]
    assert factors == [0.25, 0.5, 0.75, 1.0]
    assert schedule_factor(4, 4, 4, "Linear") == 0.0


def test_nobody_leaves_before_everybody_is_done() -> None:
    farewell = Farewell(1, 3)
    farewell.peer_done(0)
    farewell.peer_done(0)
    assert farewell.said_done(0)
    assert not farewell.may_leave
    farewell.peer_done(2)
    assert farewell.waiting_for == [1]
    assert not farewell.may_leave
    assert farewell.done()
    assert not farewell.done(), "DONE is sent once"
    assert farewell.may_leave


def test_a_single_participant_leaves_when_it_is_done() -> None:
    farewell = Farewell(0, 1)
    assert not farewell.may_leave
    farewell.done()
    assert farewell.may_leave

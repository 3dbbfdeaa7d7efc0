"""Requests that come in time, early, late, twice, or from somebody who may not ask."""

import pytest
from tests.unit.berlin import EVALUATE, FORWARD, LYON, PORTO, ask, drop, finish_step, hostless, machine

from pcmoe_node.errors import ProtocolError
from pcmoe_node.protocol.effects import Serve

# ---- requests in time


def test_a_request_of_this_version_is_served_though_the_step_is_not_entered() -> None:
    berlin = machine()
    request = ask(FORWARD, 0, 1)
    assert berlin.request(LYON, request, "item") == [Serve(LYON, request, "item")]


def test_what_is_one_step_ahead_is_held_and_served_in_order_once_that_version_is_reached() -> None:
    berlin = machine(in_flight=2)
    early = [
        (LYON, ask(EVALUATE, 1, 90)),
        (PORTO, ask(FORWARD, 1, 91)),
        (LYON, ask(EVALUATE, 1, 92, micro_batch=1)),
    ]
    for peer, request in early:
        assert berlin.request(peer, request, request.request_id) == []
    assert finish_step(berlin) == [Serve(peer, request, request.request_id) for peer, request in early]


def test_a_copy_of_what_is_held_is_dropped_at_once() -> None:
    berlin = machine()
    berlin.request(LYON, ask(FORWARD, 1, 91), "first")
    dropped = drop(berlin.request(LYON, ask(FORWARD, 1, 91), "second"))
    assert (dropped.peer, dropped.item) == (LYON, "second")


def test_what_is_two_steps_ahead_is_an_error() -> None:
    berlin = machine()
    with pytest.raises(
        ProtocolError, match="lyon sent FORWARD of step 2 while this node is at 0; nobody can be"
    ):
        berlin.request(LYON, ask(FORWARD, 2, 1), None)
    with pytest.raises(ProtocolError, match="STEP_END of step 2"):
        berlin.step_end(LYON, 2, 1, True)
    with pytest.raises(ProtocolError, match="VOTE of step 9"):
        berlin.vote(LYON, 9, 1.0, True)


def test_what_belongs_to_a_step_that_is_over_is_dropped_with_its_item() -> None:
    berlin = hostless()
    finish_step(berlin)
    dropped = drop(berlin.request(LYON, ask(EVALUATE, 0, 1), "late"))
    assert (dropped.item, "older than version 1" in dropped.reason) == ("late", True)
    assert drop(berlin.step_end(LYON, 0, 1, True)).item is None
    assert "VOTE of step 0 is older" in drop(berlin.vote(LYON, 0, 7.0, True)).reason


def test_what_is_held_obeys_the_quota_too() -> None:
    berlin = machine()
    berlin.request(LYON, ask(FORWARD, 1, 1), None)
    with pytest.raises(ProtocolError, match="at most 1 micro-batches in flight"):
        berlin.request(LYON, ask(FORWARD, 1, 2, micro_batch=1), None)


def test_quotas_of_two_owners_do_not_mix() -> None:
    berlin = machine()
    for peer in (LYON, PORTO):
        assert berlin.request(peer, ask(FORWARD, 0, 1), None)


def test_an_answer_at_another_version_is_a_mistake_of_ones_own() -> None:
    berlin = machine()
    berlin.request(LYON, ask(FORWARD, 1, 1), None)
    with pytest.raises(RuntimeError, match="served at version 0"):
        berlin.served(LYON, ask(FORWARD, 1, 1))


# ---- owners only


def test_a_forward_of_a_member_that_is_no_owner_is_refused() -> None:
    berlin = machine()
    berlin.enter(0, frozenset({LYON}))
    with pytest.raises(ProtocolError, match="porto sent FORWARD of step 0, whose owners are: lyon"):
        berlin.request(PORTO, ask(FORWARD, 0, 1), None)


def test_a_forward_of_no_owner_that_came_before_entering_is_found_on_entering() -> None:
    berlin = machine()
    berlin.request(PORTO, ask(FORWARD, 0, 1), None)
    with pytest.raises(ProtocolError, match="porto sent a FORWARD of step 0, whose owners are: lyon"):
        berlin.enter(0, frozenset({LYON}))


def test_everybody_may_evaluate_owner_or_not() -> None:
    berlin = machine(in_flight=2)
    before, after = ask(EVALUATE, 0, 1), ask(EVALUATE, 0, 2, micro_batch=1)
    assert berlin.request(PORTO, before, None) == [Serve(PORTO, before, None)]
    berlin.enter(0, frozenset({LYON}))
    assert berlin.request(PORTO, after, None) == [Serve(PORTO, after, None)]


@pytest.mark.parametrize("entered", [False, True])
def test_a_step_end_of_no_owner_is_refused(entered: bool) -> None:
    berlin = hostless()
    with pytest.raises(ProtocolError, match="porto sent STEP_END of step 0, whose owners are: lyon"):
        if entered:
            berlin.enter(0, frozenset({LYON}))
            berlin.step_end(PORTO, 0, 1, True)
        else:
            berlin.step_end(PORTO, 0, 1, True)
            berlin.enter(0, frozenset({LYON}))

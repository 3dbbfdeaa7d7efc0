"""The step machine message by message: who may send what when, and what follows."""

import math

import pytest
from tests.unit.berlin import (
    ALL,
    EVALUATE,
    FORWARD,
    LYON,
    PORTO,
    ask,
    drop,
    finish_step,
    hostless,
    machine,
    serve_whole_step,
)

from pcmoe_node.errors import ProtocolError
from pcmoe_node.protocol.effects import BroadcastStepEnd, BroadcastVote, CastVote, Decide, Decision
from pcmoe_node.protocol.step import StepMachine

# ---- one step from end to end


def test_a_step_goes_from_entering_to_a_decision_that_counts_everybody() -> None:
    berlin = machine()
    assert berlin.enter(0, ALL) == []
    assert berlin.owner_done(10, True) == [BroadcastStepEnd(0, 10, True)]
    serve_whole_step(berlin, LYON)
    serve_whole_step(berlin, PORTO)
    assert berlin.step_end(LYON, 0, 20, True) == []
    assert berlin.step_end(PORTO, 0, 30, True) == [CastVote(0, 60, False)]
    assert berlin.vote(LYON, 0, 0.25, True) == []
    assert berlin.ballot(0.5, True) == [BroadcastVote(0, 0.5, True)]
    assert berlin.vote(PORTO, 0, 0.125, True) == [Decide(0, Decision(True, 60, 0.875))]
    assert berlin.version == 0
    assert berlin.applied() == []
    assert berlin.version == 1


def test_a_single_participant_decides_alone() -> None:
    alone = StepMachine(0, 1, 1, 1, ())
    alone.enter(0, frozenset({0}))
    assert alone.owner_done(5, True) == [BroadcastStepEnd(0, 5, True), CastVote(0, 5, False)]
    vote, decide = alone.ballot(4.0, True)
    assert vote == BroadcastVote(0, 4.0, True)
    assert decide == Decide(0, Decision(True, 5, 4.0))


def test_a_run_starts_at_the_step_it_was_stored_at() -> None:
    berlin = hostless(first_step=50)
    assert berlin.version == 50
    finish_step(berlin)
    assert berlin.version == 51


def test_a_member_that_is_no_owner_votes_once_the_owners_are_done() -> None:
    berlin = machine()
    berlin.enter(0, frozenset({LYON}))
    serve_whole_step(berlin, LYON)
    assert berlin.step_end(LYON, 0, 20, True) == [CastVote(0, 20, False)]


# ---- skipping


def skipped(end: tuple[int, bool] = (1, True), own: tuple[float, bool] = (1.0, True)) -> Decision:
    berlin = hostless()
    berlin.enter(0, frozenset({LYON}))
    (cast,) = berlin.step_end(LYON, 0, *end)
    assert isinstance(cast, CastVote)
    assert cast.skipped == (end != (1, True))
    berlin.vote(LYON, 0, 1.0, True)
    berlin.vote(PORTO, 0, 1.0, True)
    *_, decide = berlin.ballot(*own)
    assert isinstance(decide, Decide)
    return decide.outcome


def test_a_step_whose_owner_was_not_ok_is_skipped_and_named() -> None:
    assert skipped(end=(5, False)) == Decision(False, 5, 3.0, "owner lyon was not ok")


def test_a_step_without_any_supervised_token_is_skipped() -> None:
    assert skipped(end=(0, True)) == Decision(False, 0, 3.0, "no supervised token")


@pytest.mark.parametrize("own", [(math.inf, True), (math.nan, True), (1.0, False)])
def test_a_step_with_gradients_that_are_not_finite_is_skipped_and_named(own: tuple[float, bool]) -> None:
    assert skipped(own=own) == Decision(False, 1, 2.0, "expert gradients not finite at berlin")


def test_every_reason_to_skip_is_told() -> None:
    decision = skipped(end=(0, False), own=(0.0, False))
    assert decision.reason == (
        "owner lyon was not ok; no supervised token; expert gradients not finite at berlin"
    )


def test_a_skipped_step_raises_the_version_too() -> None:
    berlin = hostless()
    berlin.enter(0, frozenset({LYON}))
    berlin.step_end(LYON, 0, 0, True)
    berlin.ballot(0.0, True)
    berlin.vote(LYON, 0, 0.0, True)
    berlin.vote(PORTO, 0, 0.0, True)
    berlin.applied()
    assert berlin.version == 1


# ---- STEP_END


def test_a_step_end_with_a_pair_missing_is_refused() -> None:
    berlin = machine()
    berlin.enter(0, ALL)
    with pytest.raises(
        ProtocolError, match="lyon sent STEP_END after 0 of 2 pairs .* FORWARD of micro-batch 0, layer 4"
    ):
        berlin.step_end(LYON, 0, 1, True)


def test_an_owner_that_is_not_ok_may_leave_pairs_out_but_waits_for_its_answers() -> None:
    berlin = machine()
    request = ask(FORWARD, 0, 1)
    berlin.request(LYON, request, None)
    with pytest.raises(ProtocolError, match="lyon sent STEP_END before the answer to FORWARD 1"):
        berlin.step_end(LYON, 0, 1, False)
    berlin.served(LYON, request)
    assert berlin.step_end(LYON, 0, 1, False) == []


def test_a_step_end_is_held_until_this_node_enters() -> None:
    berlin = hostless()
    assert berlin.step_end(LYON, 0, 5, True) == []
    assert berlin.enter(0, frozenset({LYON})) == [CastVote(0, 5, False)]


def test_a_step_end_may_overtake_the_last_vote_of_the_step_before() -> None:
    berlin = hostless()
    owners = frozenset({LYON})
    berlin.enter(0, owners)
    berlin.step_end(LYON, 0, 1, True)
    berlin.ballot(0.0, True)
    berlin.vote(LYON, 0, 0.0, True)
    assert berlin.step_end(LYON, 1, 5, True) == []
    assert berlin.vote(LYON, 1, 2.0, True) == []
    berlin.vote(PORTO, 0, 0.0, True)
    berlin.applied()
    assert berlin.enter(1, owners) == [CastVote(1, 5, False)]
    assert berlin.waiting_for() == [(PORTO, "VOTE of step 1")]


def test_a_copy_of_a_step_end_is_dropped_and_another_one_refused() -> None:
    berlin = hostless()
    berlin.step_end(LYON, 0, 5, True)
    assert "copy" in drop(berlin.step_end(LYON, 0, 5, True)).reason
    with pytest.raises(
        ProtocolError, match=r"lyon sent STEP_END of step 0 with End\(tokens=6, .* after End\(tokens=5"
    ):
        berlin.step_end(LYON, 0, 6, True)


def test_more_tokens_than_a_step_can_have_are_refused() -> None:
    berlin = hostless(tokens_per_step=100)
    assert berlin.step_end(LYON, 0, 100, True) == []
    with pytest.raises(ProtocolError, match="porto sent STEP_END of step 0 with 101 .* at most 100"):
        berlin.step_end(PORTO, 0, 101, True)


def test_nothing_may_be_asked_after_step_end_but_copies_are_dropped() -> None:
    berlin = machine()
    serve_whole_step(berlin, LYON)
    berlin.step_end(LYON, 0, 5, True)
    drop(berlin.request(LYON, ask(FORWARD, 0, 1), None))
    with pytest.raises(ProtocolError, match="after its STEP_END nothing more may be asked"):
        berlin.request(LYON, ask(EVALUATE, 0, 77), None)


# ---- VOTE


def test_a_vote_is_held_until_this_node_has_voted() -> None:
    berlin = hostless()
    for peer in (LYON, PORTO):
        assert berlin.vote(peer, 0, 1.0, True) == []
    berlin.enter(0, frozenset({LYON}))
    assert berlin.step_end(LYON, 0, 5, True) == [CastVote(0, 5, False)]
    assert berlin.ballot(1.0, True)[1:] == [Decide(0, Decision(True, 5, 3.0))]


def test_a_copy_of_a_vote_is_dropped_and_another_one_refused() -> None:
    berlin = hostless()
    berlin.vote(LYON, 0, 1.0, True)
    assert "copy" in drop(berlin.vote(LYON, 0, 1.0, True)).reason
    with pytest.raises(ProtocolError, match="lyon sent two votes in step 0: .*1.0.* before and .*2.0"):
        berlin.vote(LYON, 0, 2.0, True)


def test_a_copy_of_the_last_vote_does_not_decide_again() -> None:
    berlin = hostless()
    berlin.enter(0, frozenset({LYON}))
    berlin.step_end(LYON, 0, 1, True)
    berlin.ballot(0.0, True)
    berlin.vote(LYON, 0, 0.0, True)
    (decide,) = berlin.vote(PORTO, 0, 0.0, True)
    assert isinstance(decide, Decide)
    drop(berlin.vote(PORTO, 0, 0.0, True))


@pytest.mark.parametrize("norm", [math.nan, math.inf, -1.0])
def test_a_vote_that_calls_a_bad_norm_finite_is_refused(norm: float) -> None:
    with pytest.raises(ProtocolError, match=f"lyon sent VOTE of step 0 with squared norm {norm} as finite"):
        hostless().vote(LYON, 0, norm, True)


def test_votes_that_are_not_finite_are_copies_whatever_number_they_carry() -> None:
    berlin = hostless()
    berlin.vote(LYON, 0, math.nan, False)
    drop(berlin.vote(LYON, 0, math.nan, False))


def test_a_member_that_voted_may_not_evaluate_at_that_version_any_more() -> None:
    berlin = machine()
    berlin.vote(LYON, 0, 1.0, True)
    with pytest.raises(ProtocolError, match="after its VOTE nothing more may be asked"):
        berlin.request(LYON, ask(EVALUATE, 0, 1), None)


def test_a_vote_before_the_answer_to_an_evaluation_is_refused() -> None:
    berlin = machine()
    berlin.request(LYON, ask(EVALUATE, 0, 1), None)
    with pytest.raises(ProtocolError, match="lyon sent VOTE before the answer to EVALUATE 1"):
        berlin.vote(LYON, 0, 1.0, True)


# ---- mistakes of one's own, and what is missing


def test_calls_that_do_not_fit_the_own_state_are_refused() -> None:
    berlin = hostless()
    with pytest.raises(RuntimeError, match="step 1 can't be entered at version 0"):
        berlin.enter(1, ALL)
    with pytest.raises(RuntimeError, match="no own micro-batches"):
        berlin.owner_done(1, True)
    berlin.enter(0, frozenset({LYON}))
    for call in (lambda: berlin.enter(0, ALL), lambda: berlin.owner_done(1, True), berlin.applied):
        with pytest.raises(RuntimeError):
            call()
    with pytest.raises(RuntimeError, match="no vote was expected"):
        berlin.ballot(0.0, True)
    berlin.step_end(LYON, 0, 1, True)
    berlin.ballot(0.0, True)
    with pytest.raises(RuntimeError, match="no vote was expected"):
        berlin.ballot(0.0, True)


def test_what_a_node_waits_for_is_told_peer_by_peer() -> None:
    berlin = hostless()
    assert (berlin.waiting_for(), str(berlin)) == ([], "step 0 (not entered)")
    berlin.enter(0, ALL)
    berlin.step_end(PORTO, 0, 1, True)
    assert str(berlin) == "step 0 (entered), waiting for STEP_END of step 0 from lyon"
    berlin.step_end(LYON, 0, 1, True)
    assert berlin.waiting_for() == []
    berlin.owner_done(1, True)
    assert str(berlin).startswith("step 0 (all owners done), waiting for VOTE of step 0 from lyon")
    berlin.ballot(0.0, True)
    berlin.vote(LYON, 0, 0.0, True)
    assert berlin.waiting_for() == [(PORTO, "VOTE of step 0")]
    berlin.vote(PORTO, 0, 0.0, True)
    assert (berlin.waiting_for(), str(berlin)) == ([], "step 0 (decided)")


def test_without_names_peers_are_numbers() -> None:
    with pytest.raises(ProtocolError, match="participant 1 sent VOTE of step 5"):
        StepMachine(0, 2, 1, 1, ()).vote(1, 5, 0.0, True)

"""What one owner may ask of one host in a step, and what an excess is called."""

import pytest

from pcmoe_node.errors import ProtocolError
from pcmoe_node.protocol.effects import Phase, Request
from pcmoe_node.protocol.quota import Allowance, Quota

FORWARD, BACKWARD, EVALUATE = Phase.FORWARD, Phase.BACKWARD, Phase.EVALUATE


def ask(phase: Phase, micro_batch: int, layer: int, request_id: int, rows: int = 3) -> Request:
    return Request(phase, 7, micro_batch, layer, request_id, rows)


@pytest.fixture
def quota() -> Quota:
    return Quota("lyon", Allowance(4, 2, frozenset({1, 5}), evaluation_batches=3))


def test_a_new_request_is_admitted_and_its_copy_is_not(quota: Quota) -> None:
    request = ask(FORWARD, 0, 1, 10)
    assert quota.admit(request)
    assert not quota.admit(request)
    quota.serve(request)
    assert not quota.admit(request)


def test_a_pair_is_open_from_its_forward_to_the_answer_to_its_backward(quota: Quota) -> None:
    forward, backward = ask(FORWARD, 0, 1, 10), ask(BACKWARD, 0, 1, 11)
    quota.admit(forward)
    quota.serve(forward)
    assert quota.open_micro_batches == 1
    quota.admit(backward)
    assert quota.open_micro_batches == 1
    quota.serve(backward)
    assert quota.open_micro_batches == 0


def test_a_micro_batch_stays_open_while_one_of_its_layers_does(quota: Quota) -> None:
    requests = (ask(FORWARD, 0, 1, 1), ask(FORWARD, 0, 5, 2), ask(BACKWARD, 0, 5, 3))
    for request in requests:
        quota.admit(request)
        quota.serve(request)
    assert quota.open_micro_batches == 1


def test_a_third_micro_batch_in_flight_is_refused_with_the_limit_and_the_open_ones(quota: Quota) -> None:
    quota.admit(ask(FORWARD, 0, 1, 1))
    quota.admit(ask(FORWARD, 3, 1, 2))
    with pytest.raises(
        ProtocolError, match=r"lyon sent FORWARD 3 .*at most 2 .* in flight; open are \[0, 3\]"
    ):
        quota.admit(ask(FORWARD, 1, 1, 3))


def test_another_layer_of_an_open_micro_batch_needs_no_further_place(quota: Quota) -> None:
    quota.admit(ask(FORWARD, 0, 1, 1))
    quota.admit(ask(FORWARD, 3, 1, 2))
    assert quota.admit(ask(FORWARD, 0, 5, 3))


def test_a_second_forward_is_refused_naming_the_first(quota: Quota) -> None:
    quota.admit(ask(FORWARD, 0, 1, 1))
    with pytest.raises(ProtocolError, match="exactly one is allowed, and FORWARD 1 .* was it"):
        quota.admit(ask(FORWARD, 0, 1, 2))


def test_a_request_id_may_not_be_used_for_two_requests(quota: Quota) -> None:
    quota.admit(ask(FORWARD, 0, 1, 1))
    with pytest.raises(ProtocolError, match="request id 1 was already used by FORWARD 1 .*micro-batch 0"):
        quota.admit(ask(FORWARD, 1, 1, 1))


def test_a_copy_with_other_rows_is_no_copy(quota: Quota) -> None:
    quota.admit(ask(FORWARD, 0, 1, 1, rows=3))
    with pytest.raises(ProtocolError, match="request id 1 was already used"):
        quota.admit(ask(FORWARD, 0, 1, 1, rows=4))


@pytest.mark.parametrize("micro_batch", [-1, 4])
def test_a_micro_batch_that_is_not_in_the_step_is_refused(quota: Quota, micro_batch: int) -> None:
    with pytest.raises(ProtocolError, match="micro-batches are numbered below 4"):
        quota.admit(ask(FORWARD, micro_batch, 1, 1))


def test_a_layer_this_host_does_not_serve_is_refused(quota: Quota) -> None:
    with pytest.raises(ProtocolError, match=r"layer 2, 3 rows\): this host serves layers \[1, 5\]"):
        quota.admit(ask(FORWARD, 0, 2, 1))


@pytest.mark.parametrize("answered", [False, True])
def test_a_backward_needs_an_answered_forward(quota: Quota, answered: bool) -> None:
    forward, backward = ask(FORWARD, 0, 1, 1), ask(BACKWARD, 0, 1, 2)
    quota.admit(forward)
    if answered:
        quota.serve(forward)
        assert quota.admit(backward)
    else:
        with pytest.raises(ProtocolError, match="its FORWARD has not been answered"):
            quota.admit(backward)


def test_a_backward_without_forward_is_refused(quota: Quota) -> None:
    with pytest.raises(ProtocolError, match="its FORWARD has not been answered"):
        quota.admit(ask(BACKWARD, 0, 1, 1))


def test_a_backward_has_the_rows_of_its_forward(quota: Quota) -> None:
    forward = ask(FORWARD, 0, 1, 1, rows=3)
    quota.admit(forward)
    quota.serve(forward)
    with pytest.raises(ProtocolError, match=r"BACKWARD 2 .* 5 rows\): its FORWARD had 3 rows"):
        quota.admit(ask(BACKWARD, 0, 1, 2, rows=5))


def test_evaluation_requests_have_their_own_limits(quota: Quota) -> None:
    quota.admit(ask(EVALUATE, 0, 1, 1))
    quota.admit(ask(EVALUATE, 1, 1, 2))
    assert quota.open_micro_batches == 0
    with pytest.raises(ProtocolError, match="at most 2 evaluation requests at once"):
        quota.admit(ask(EVALUATE, 2, 1, 3))
    quota.serve(ask(EVALUATE, 0, 1, 1))
    assert quota.admit(ask(EVALUATE, 2, 1, 3))
    with pytest.raises(ProtocolError, match="at most 2 evaluation requests at once"):
        quota.admit(ask(EVALUATE, 2, 5, 4))
    with pytest.raises(ProtocolError, match="numbered below 3"):
        quota.admit(ask(EVALUATE, 3, 1, 4))


def test_only_what_waits_can_be_answered(quota: Quota) -> None:
    request = ask(FORWARD, 0, 1, 1)
    with pytest.raises(RuntimeError, match="was not waiting"):
        quota.serve(request)
    quota.admit(request)
    quota.serve(request)
    with pytest.raises(RuntimeError, match="was not waiting"):
        quota.serve(request)


def complete(quota: Quota) -> None:
    number = 0
    for micro_batch in range(4):
        for phase, layer in ((FORWARD, 1), (FORWARD, 5), (BACKWARD, 5), (BACKWARD, 1)):
            number += 1
            request = ask(phase, micro_batch, layer, number)
            quota.admit(request)
            quota.serve(request)


def test_a_complete_step_can_be_closed_and_nothing_more_asked(quota: Quota) -> None:
    complete(quota)
    quota.close("STEP_END", complete=True)
    assert not quota.admit(ask(FORWARD, 0, 1, 1))
    with pytest.raises(ProtocolError, match="after its STEP_END nothing more may be asked"):
        quota.admit(ask(EVALUATE, 0, 1, 99))


def test_closing_before_an_answer_is_refused_complete_or_not(quota: Quota) -> None:
    quota.admit(ask(FORWARD, 0, 1, 1))
    assert quota.unserved == (ask(FORWARD, 0, 1, 1),)
    with pytest.raises(ProtocolError, match="lyon sent STEP_END before the answer to FORWARD 1"):
        quota.close("STEP_END", complete=False)


def test_closing_with_a_pair_missing_says_how_many_and_which(quota: Quota) -> None:
    forward = ask(FORWARD, 0, 1, 1)
    quota.admit(forward)
    quota.serve(forward)
    with pytest.raises(
        ProtocolError, match="after 0 of 8 pairs .* missing is BACKWARD of micro-batch 0, layer 1"
    ):
        quota.close("STEP_END", complete=True)
    quota.close("STEP_END", complete=False)

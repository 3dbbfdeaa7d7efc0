"""What nodes and the coordinator say of themselves is what the operator understands: their pages by its parsers."""

import json
from pathlib import Path

import pytest

from pcmoe_node.coordination.page import CoordinatorPage, Shown
from pcmoe_node.status import State, write_termination
from pcmoe_operator.answers import CoordinatorSeen, MemberSeen, NodeSeen
from pcmoe_operator.observe import observe
from pcmoe_operator.reasons import Reason


def trained() -> State:
    """A node in its third round."""
    state = State(participant="berlin", rounds=20, steps=500, peers=2)
    state.phase, state.round, state.step, state.view, state.committed = "TRAINING", 3, 77, 4, 2
    state.train_loss, state.held_out_loss, state.waiting_for = 2.5, 2.75, "lyon"
    return state


def test_a_node_s_page_says_what_the_operator_reads_in_it() -> None:
    assert NodeSeen.parse(json.dumps(trained().as_json())) == NodeSeen(
        phase="TRAINING",
        round=3,
        rounds=20,
        step=77,
        train_loss=2.5,
        held_out_loss=2.75,
        waiting_for="lyon",
        view=4,
        committed=2,
        error="",
    )


def test_the_coordinator_s_page_says_what_the_operator_reads_in_it() -> None:
    page = CoordinatorPage()
    members = ({"name": "berlin", "connected": True, "phase": "TRAINING"},)
    page.shown = Shown(
        state="RUNNING", view=4, round=2, reason="lyon was away", error="none", members=members
    )
    assert CoordinatorSeen.parse(json.dumps(page.as_json())) == CoordinatorSeen(
        state="RUNNING",
        view=4,
        round=2,
        reason="lyon was away",
        members=(MemberSeen(name="berlin", connected=True, phase="TRAINING"),),
        error="none",
    )


@pytest.mark.parametrize(
    ("code", "reason"),
    [(65, Reason.DatasetUnreadable), (66, Reason.ResourceMissing), (74, Reason.StorageFailed)],
)
def test_a_node_s_last_words_are_told_of_its_participant(tmp_path: Path, code: int, reason: Reason) -> None:
    state, left = trained(), tmp_path / "termination"
    state.error = "DatasetError: record 7 of train.jsonl is no JSON"
    write_termination(str(left), state, code)
    end = {"exitCode": code, "reason": "Error", "message": left.read_text()}
    pod = {
        "metadata": {
            "name": "hospitals.berlin.1-x",
            "labels": {
                "pcmoe.dev/consortium": "hospitals",
                "pcmoe.dev/role": "node",
                "pcmoe.dev/participant": "berlin",
                "pcmoe.dev/attempt": "1",
            },
        },
        "spec": {"nodeName": "gpu-1"},
        "status": {
            "phase": "Failed",
            "containerStatuses": [{"name": "node", "restartCount": 0, "state": {"terminated": end}}],
        },
    }
    seen = observe("hospitals", ["berlin"], 1, [], [pod]).participants["berlin"].pod
    assert seen is not None and seen.crash is not None
    assert (seen.crash.reason, seen.crash.message) == (reason, f"{state.error} (exit code {code})")
    assert seen.last is not None and seen.last.round == 3

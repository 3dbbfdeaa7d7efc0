"""Who is started again, when, and how often: the policy by itself, and runs of stand-ins that die."""

import json
import signal
import time
from collections.abc import Sequence
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console
from tests.unit.crew import (
    DEADLINE_SECONDS,
    left_running,
    lives,
    make_crew,
    run_plainly,
    start_runner,
    wait_for,
)

from pcmoe_operator.local import company, restarts, supervise
from pcmoe_operator.local.keeper import Keeper
from pcmoe_operator.local.restarts import Policy, what_next
from pcmoe_operator.local.view import CoordinatorState, MemberState, PlainView

KILLED = {"by_signal": int(signal.SIGKILL)}
FOREVER = {"forever": True}
UNTIL_LYON_IS_BACK = {"while_peer_fails": "lyon"}


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits long before a restart, or for the others' last words."""
    monkeypatch.setattr(restarts, "BACK_OFF_SECONDS", (0.05, 0.06, 0.07))
    monkeypatch.setattr(supervise, "TICK_SECONDS", 0.05)
    monkeypatch.setattr(company, "GRACE_SECONDS", 0.5)


@pytest.mark.parametrize(
    ("policy", "code", "pauses"),
    [
        (Policy.WAIT, 137, [0.5, 2.0, 8.0, None, None]),
        (Policy.WAIT, 139, [0.5, 2.0, 8.0, None, None]),
        (Policy.WAIT, 143, [0.5, 2.0, 8.0, None, None]),
        (Policy.WAIT, 75, [0.5, 2.0, 8.0, None, None]),
        *((Policy.WAIT, code, [None] * 5) for code in (0, 1, 2, *range(64, 71), 74)),
        *((Policy.FAIL, code, [None] * 5) for code in (0, 1, 65, 70, 75, 137, 139, 143)),
        *((Policy.COORDINATOR, code, [0.5, 2.0, 8.0, 8.0, 8.0]) for code in (0, 70, 75, 137, 143)),
        *((Policy.COORDINATOR, code, [None] * 5) for code in (1, 2, 64, 65, 66, 67, 68, 69, 74)),
    ],
)
def test_what_follows_an_end_depends_on_code_tries_and_policy(
    policy: Policy, code: int, pauses: list[float | None]
) -> None:
    assert [what_next(code, tries, policy) for tries in range(5)] == pauses


def test_the_manifests_word_becomes_the_policy_of_nodes() -> None:
    assert Policy.of_nodes("Wait") is Policy.WAIT
    assert Policy.of_nodes("Fail") is Policy.FAIL


def test_a_node_that_was_killed_comes_back_while_the_others_wait(tmp_path: Path, impatient: None) -> None:
    crew = make_crew(tmp_path, "Wait", berlin=UNTIL_LYON_IS_BACK, lyon=KILLED | {"lives": 1})
    outcome, text = run_plainly(crew)
    assert outcome.exit_code == 0
    assert "lyon: died by SIGKILL; started again in 0.05 s (1 of 3)" in text
    assert lives(crew) == {"berlin": 1, "lyon": 2, "porto": 1, "coordinator": 1}
    assert "lyon: is done" in text
    assert left_running(crew) == []


def test_the_others_are_shown_waiting_and_going_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(restarts, "BACK_OFF_SECONDS", (1.5, 1.5, 1.5))
    crew = make_crew(tmp_path, "Wait", berlin=UNTIL_LYON_IS_BACK, lyon=KILLED | {"lives": 1})
    _, text = run_plainly(crew)
    assert "berlin: waits for lyon to come back" in text
    assert "berlin: goes on, 2 of 2 rounds done" in text


class Recorder(PlainView):
    """Writes down the phases of lyon, and lets it go on once it was seen training."""

    def __init__(self, go: Path) -> None:
        super().__init__(Console(file=StringIO()))
        self.phases: list[str] = []
        self._go = go

    def update(self, members: Sequence[MemberState], coordinator: CoordinatorState) -> None:
        phase = next(member.phase for member in members if member.name == "lyon")
        if phase not in self.phases[-1:]:
            self.phases.append(phase)
        if phase == "TRAINING":
            self._go.touch()


def test_a_node_that_was_started_again_is_shown_from_its_start_on(tmp_path: Path) -> None:
    crew = make_crew(tmp_path, "Wait", lyon=KILLED | {"lives": 1, "after": "go"})
    recorder = Recorder(tmp_path / "go")
    assert supervise.supervise(crew, recorder).exit_code == 0
    assert recorder.phases[:4] == ["STARTING", "TRAINING", "RESTARTING", "STARTING"]
    assert recorder.phases[-1] == "DONE"


def test_an_end_that_a_node_has_left_behind_explains_nothing_any_more(
    tmp_path: Path, impatient: None
) -> None:
    crew = make_crew(tmp_path, lyon=KILLED | {"lives": 1}, coordinator={})
    (tmp_path / "coordinator" / "ready").touch()
    round_stored = [0]
    keeper = Keeper(crew.members[1], Policy.WAIT, lambda: round_stored[0])
    keeper.start()
    wait_for(lambda: bool(keeper.tend(may_restart=True)), "its end")
    wait_for(lambda: not (keeper.tend(may_restart=True) or keeper.restarting), "its new life")
    assert keeper.last_end is not None
    round_stored[0] = 1
    keeper.tend(may_restart=True)
    assert keeper.last_end is None or keeper.last_end.code == 0
    wait_for(lambda: bool(keeper.tend(may_restart=True)) or keeper.exit_code is not None, "its good end")
    assert keeper.exit_code == 0


def test_a_node_that_lost_its_peers_is_started_again_too(tmp_path: Path, impatient: None) -> None:
    crew = make_crew(tmp_path, "Wait", lyon={"code": 75, "lives": 2})
    outcome, text = run_plainly(crew)
    assert (outcome.exit_code, lives(crew)["lyon"]) == (0, 3)
    assert "lyon: lost a peer (exit code 75); started again in 0.06 s (2 of 3)" in text


def test_the_fourth_end_in_a_row_ends_the_run_and_is_its_cause(tmp_path: Path, impatient: None) -> None:
    crew = make_crew(tmp_path, "Wait", berlin=FOREVER, lyon=KILLED, porto=FOREVER)
    outcome, text = run_plainly(crew)
    assert outcome.exit_code == 137
    assert outcome.failure is not None
    assert outcome.failure.participant == "lyon"
    assert "It had been started again 3 times without getting further." in outcome.failure.sentence()
    assert lives(crew) == {"berlin": 1, "lyon": 4, "porto": 1, "coordinator": 1}
    assert "lyon: ended with exit code 137" in text
    assert "stopping berlin, porto" in text
    assert left_running(crew) == []


def test_the_count_begins_anew_with_every_new_round(tmp_path: Path, impatient: None) -> None:
    crew = make_crew(tmp_path, "Wait", lyon=KILLED | {"lives": 6, "round_per_life": True})
    outcome, text = run_plainly(crew)
    assert (outcome.exit_code, lives(crew)["lyon"]) == (0, 7)
    assert text.count("(1 of 3)") == 6
    assert "(2 of 3)" not in text


def test_a_round_that_is_only_done_again_does_not_begin_the_count_anew(
    tmp_path: Path, impatient: None
) -> None:
    crew = make_crew(tmp_path, "Wait", lyon=KILLED)
    outcome, text = run_plainly(crew)
    assert (outcome.exit_code, lives(crew)["lyon"]) == (137, 4)
    assert text.count("lyon: round 2 (step 10)") == 4


def test_the_last_words_are_those_of_the_last_life(tmp_path: Path, impatient: None) -> None:
    words = {"words": "ERROR PeerLostError: lost porto", "code": 75, "lives": 1}
    crew = make_crew(tmp_path, "Wait", lyon=words)
    assert run_plainly(crew)[0].exit_code == 0
    (tmp_path / "lyon" / "behaviour.json").write_text(json.dumps({"code": 66, "words": "no disk"}))
    outcome, _ = run_plainly(crew)
    assert outcome.failure is not None
    assert outcome.failure.last_line == "no disk"


@pytest.mark.parametrize("code", [64, 65, 69, 70, 1])
def test_a_node_that_ended_by_its_own_error_is_never_started_again(
    tmp_path: Path, impatient: None, code: int
) -> None:
    crew = make_crew(tmp_path, "Wait", lyon={"code": code, "words": "ERROR Error: mine"}, porto=FOREVER)
    outcome, text = run_plainly(crew)
    assert outcome.exit_code == code
    assert outcome.failure is not None
    assert outcome.failure.participant == "lyon"
    assert lives(crew)["lyon"] == 1
    assert "started again" not in text
    assert left_running(crew) == []


def test_who_is_lost_by_the_end_of_the_run_is_not_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(restarts, "BACK_OFF_SECONDS", (1.0, 1.0, 1.0))
    lost = {"after_peer_fails": "lyon", "code": 75, "words": "ERROR PeerLostError: lost lyon"}
    crew = make_crew(tmp_path, "Wait", berlin=lost, lyon={"code": 65}, porto=FOREVER)
    outcome, _ = run_plainly(crew)
    assert outcome.exit_code == 65
    assert lives(crew)["berlin"] == 1


def test_with_fail_no_node_is_started_again(tmp_path: Path, impatient: None) -> None:
    crew = make_crew(tmp_path, "Fail", lyon=KILLED, porto=FOREVER)
    outcome, text = run_plainly(crew)
    assert (outcome.exit_code, lives(crew)["lyon"]) == (137, 1)
    assert "started again" not in text


@pytest.mark.parametrize("policy", ["Fail", "Wait"])
def test_the_coordinator_is_started_again_however_often_it_dies(
    tmp_path: Path, impatient: None, policy: str
) -> None:
    until = {"after": "coordinator/well"}
    crew = make_crew(
        tmp_path,
        "Fail" if policy == "Fail" else "Wait",
        berlin=until,
        lyon=until,
        coordinator=KILLED | {"lives": 5},
    )
    outcome, text = run_plainly(crew)
    assert outcome.exit_code == 0
    assert lives(crew) == {"berlin": 1, "lyon": 1, "porto": 1, "coordinator": 6}
    assert text.count("coordinator: died by SIGKILL; started again in 0.07 s\n") == 3
    assert left_running(crew) == []


def test_a_coordinator_that_can_not_be_configured_ends_the_run_with_its_error(tmp_path: Path) -> None:
    coordinator = {"code": 66, "words": "ERROR ResourceError: 127.0.0.1:443: can't be listened on"}
    crew = make_crew(tmp_path, "Wait", berlin=FOREVER, lyon=FOREVER, porto=FOREVER, coordinator=coordinator)
    outcome, text = run_plainly(crew)
    assert outcome.exit_code == 66
    assert outcome.failure is not None
    told = outcome.failure.sentence()
    assert told.startswith("coordinator failed with exit code 66")
    assert "can't be listened on" in told
    assert str(tmp_path / "coordinator" / "coordinator.log") in told
    assert "coordinator: ended with exit code 66" in text
    assert left_running(crew) == []


def test_a_coordinator_that_never_stays_up_is_the_cause_when_nodes_give_up(
    tmp_path: Path, impatient: None
) -> None:
    gives_up = {"code": 75, "words": "ERROR PeerLostError: coordinator: not there"}
    fault = {"code": 70, "words": "ERROR a fault"}
    crew = make_crew(tmp_path, "Wait", berlin=gives_up, lyon=FOREVER, porto=FOREVER, coordinator=fault)
    outcome, _ = run_plainly(crew)
    assert outcome.exit_code == 70
    assert outcome.failure is not None
    assert outcome.failure.participant == "coordinator"
    assert lives(crew)["berlin"] == 4


def test_a_signal_ends_a_run_at_once_in_which_somebody_is_about_to_be_started(tmp_path: Path) -> None:
    crew = make_crew(tmp_path, "Wait", berlin=FOREVER, lyon=KILLED, porto=FOREVER)
    runner = start_runner(crew)
    wait_for((tmp_path / "lyon" / "failed").exists, "lyon to be gone")
    time.sleep(0.5)
    runner.terminate()
    assert runner.wait(DEADLINE_SECONDS) == 143
    assert lives(crew)["lyon"] == 1
    assert left_running(crew) == []

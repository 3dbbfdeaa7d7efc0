"""A local run, from starting processes to telling who failed, with stand-ins for nodes and coordinator."""

import os
import signal
import time
from collections.abc import Sequence
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from tests.unit.crew import (
    DEADLINE_SECONDS,
    NAMES,
    everybody_in,
    is_running,
    left_running,
    make_crew,
    run_plainly,
    start_runner,
    wait_for,
)

from pcmoe_operator.local.failure import End, first_cause, last_error_line, meaning_of
from pcmoe_operator.local.ports import free_ports
from pcmoe_operator.local.processes import Crew, MemberProcess, stop_all
from pcmoe_operator.local.supervise import supervise
from pcmoe_operator.local.view import CoordinatorState, MemberState, PlainView


def test_a_run_whose_nodes_all_finish_ends_with_0_and_tells_each_round(tmp_path: Path) -> None:
    crew = make_crew(tmp_path)
    outcome, text = run_plainly(crew)
    assert outcome.exit_code == 0
    for name in NAMES:
        assert f"{name}: before training: held-out loss 3.200" in text
        assert f"{name}: round 2 (step 10): training loss 2.800, held-out loss 3.000, 640 tokens/s" in text
        assert f"{name}: is done" in text
    assert all((m.folder / "threads").read_text() == "1" for m in crew.members)
    assert "stopping" not in text
    assert left_running(crew) == []


def test_the_node_that_failed_by_itself_is_named_not_those_that_lost_it(tmp_path: Path) -> None:
    lost = {
        "after_peer_fails": "lyon",
        "code": 75,
        "words": "ERROR PeerLostError: lyon closed its connection",
    }
    cause = {"code": 65, "words": "ERROR DataError: /data/train.jsonl: record 7 is no JSON object"}
    outcome, text = run_plainly(make_crew(tmp_path, berlin=lost, lyon=cause, porto=lost))
    assert outcome.exit_code == 65
    assert outcome.failure is not None
    told = outcome.failure.sentence()
    assert outcome.failure.participant == "lyon"
    assert "its dataset can't be read" in told
    assert "record 7 is no JSON object" in told
    assert str(tmp_path / "lyon" / "node.log") in told
    assert "lyon: ended with exit code 65" in text


def test_a_node_that_only_passes_on_a_peers_error_is_not_the_cause(tmp_path: Path) -> None:
    relayed = {
        "code": 68,
        "words": "ERROR ProtocolError: porto ended the run: berlin sent 9 rows, allowed are 8",
    }
    cause = {
        "after_peer_fails": "berlin",
        "code": 68,
        "words": "ERROR ProtocolError: berlin: rows 9",
    }
    outcome, _ = run_plainly(make_crew(tmp_path, berlin=relayed, lyon=relayed, porto=cause))
    assert outcome.failure is not None
    assert outcome.failure.participant == "porto"


def test_a_node_that_was_killed_is_the_cause_and_the_signal_is_told(tmp_path: Path) -> None:
    lost = {
        "after_peer_fails": "porto",
        "code": 75,
        "words": "ERROR PeerLostError: lost porto",
    }
    killed = {"by_signal": int(signal.SIGKILL)}
    outcome, _ = run_plainly(make_crew(tmp_path, berlin=lost, lyon=lost, porto=killed))
    assert outcome.exit_code == 137
    assert outcome.failure is not None
    assert outcome.failure.participant == "porto"
    assert "killed" in outcome.failure.sentence()


def test_when_one_node_fails_the_others_are_stopped_even_if_they_notice_nothing(tmp_path: Path) -> None:
    crew = make_crew(tmp_path, berlin={"forever": True}, lyon={"code": 69}, porto={"forever": True})
    began = time.monotonic()
    outcome, text = run_plainly(crew)
    assert time.monotonic() - began < DEADLINE_SECONDS
    assert outcome.exit_code == 69
    assert "stopping berlin, porto" in text
    assert left_running(crew) == []


def test_a_node_that_ignores_sigterm_is_killed_when_its_time_is_over(tmp_path: Path) -> None:
    crew = make_crew(tmp_path, berlin={"forever": True, "deaf": True})
    (tmp_path / "coordinator" / "ready").touch()
    node = MemberProcess(crew.members[0])
    try:
        wait_for((crew.members[0].folder / "ready").exists, "the node to be ready")
    finally:
        stop_all([node], seconds=0.3)
    assert node.poll() == 137
    assert not is_running(node.pid)


def test_a_coordinator_that_fails_when_all_rounds_are_done_spoils_nothing(tmp_path: Path) -> None:
    done = {"after": "coordinator/failed"}
    coordinator = {"code": 66, "after": "porto/ready"}
    outcome, text = run_plainly(
        make_crew(tmp_path, berlin=done, lyon=done, porto=done, coordinator=coordinator)
    )
    assert (outcome.exit_code, outcome.failure) == (0, None)
    assert "coordinator: ended with exit code 66" in text


class FaultyView(PlainView):
    """A view with a fault of its own, once everybody is ready."""

    def __init__(self, crew: Crew) -> None:
        super().__init__(Console(file=StringIO()))
        self._crew = crew

    def update(self, members: Sequence[MemberState], coordinator: CoordinatorState) -> None:
        if all((m.folder / "ready").exists() for m in everybody_in(self._crew)):
            raise ZeroDivisionError


def test_a_fault_of_the_runner_itself_leaves_nobody_running(tmp_path: Path) -> None:
    forever = {"forever": True}
    crew = make_crew(tmp_path, berlin=forever, lyon=forever, porto=forever)
    with pytest.raises(ZeroDivisionError):
        supervise(crew, FaultyView(crew))
    assert left_running(crew) == []


def test_the_coordinator_is_stopped_once_no_node_needs_it(tmp_path: Path) -> None:
    crew = make_crew(tmp_path, berlin={"forever": True, "stops_in_seconds": 0.5}, lyon={"code": 69})
    assert run_plainly(crew)[0].exit_code == 69
    node, coordinator = (
        float((tmp_path / name / "told_to_stop_at").read_text()) for name in ("berlin", "coordinator")
    )
    assert coordinator - node >= 0.5


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_to_the_runner_stops_everybody_cleanly(tmp_path: Path, number: int, code: int) -> None:
    forever = {"forever": True}
    crew = make_crew(tmp_path, berlin=forever, lyon=forever, porto=forever)
    runner = start_runner(crew)
    os.killpg(runner.pid, number)
    assert runner.wait(DEADLINE_SECONDS) == code
    assert left_running(crew) == []


def test_a_second_signal_kills_those_that_do_not_listen(tmp_path: Path) -> None:
    deaf = {"forever": True, "deaf": True}
    crew = make_crew(tmp_path, berlin=deaf, lyon=deaf, porto=deaf, coordinator=deaf)
    runner = start_runner(crew)
    runner.send_signal(signal.SIGINT)
    began = time.monotonic()
    while runner.poll() is None:
        assert time.monotonic() - began < 8, "the second signal changed nothing"
        time.sleep(0.3)
        runner.send_signal(signal.SIGINT)
    assert runner.returncode == 130
    assert left_running(crew) == []


def test_nobody_outlives_a_runner_that_was_killed(tmp_path: Path) -> None:
    deaf = {"forever": True, "deaf": True}
    crew = make_crew(tmp_path, berlin=deaf, lyon=deaf, porto=deaf, coordinator=deaf)
    runner = start_runner(crew)
    runner.kill()
    runner.wait(DEADLINE_SECONDS)
    wait_for(lambda: left_running(crew) == [], "everybody to be gone")


def test_the_last_error_is_found_before_what_is_logged_after_it(tmp_path: Path) -> None:
    log = tmp_path / "node.log"
    log.write_text("INFO started\nERROR DataError: record 7\nINFO closing\n")
    assert last_error_line(log) == "ERROR DataError: record 7"
    log.write_text("INFO started\nKilled\n")
    assert last_error_line(log) == "Killed"
    log.write_text("ERROR of an earlier life\nINFO started\n")
    assert last_error_line(log, start=25) == "INFO started"
    assert last_error_line(tmp_path / "none") == ""


def end(name: str, code: int, at: float, **changes: Any) -> End:
    """The end of a process that is not started again, nobody having asked for it."""
    given: dict[str, Any] = {
        "words": "",
        "log_file": Path(name),
        "told_to_stop": False,
        "final": True,
        "tries": 0,
    }
    return End(name=name, code=code, at=at, **(given | changes))


RELAYED = "ERROR DataError: lyon ended the run: record 7"


@pytest.mark.parametrize(
    ("ends", "cause"),
    [
        ([end("berlin", 75, 1.0), end("lyon", 65, 2.0)], "lyon"),
        ([end("berlin", 65, 1.0, words=RELAYED), end("lyon", 65, 2.0)], "lyon"),
        ([end("berlin", 69, 2.0), end("lyon", 65, 1.0)], "lyon"),
        ([end("berlin", 75, 2.0), end("lyon", 75, 1.0)], "lyon"),
        ([end("berlin", 75, 1.0), end("lyon", 137, 2.0, final=False)], "lyon"),
        ([end("berlin", 65, 2.0), end("lyon", 137, 1.0, final=False)], "berlin"),
        ([end("berlin", 75, 1.0), end("coordinator", 70, 2.0, final=False)], "coordinator"),
        ([end("coordinator", 137, 1.0, final=False), end("lyon", 65, 2.0)], "lyon"),
        ([end("berlin", 143, 1.0, told_to_stop=True), end("lyon", 65, 2.0)], "lyon"),
        ([end("berlin", 0, 1.0), end("coordinator", 0, 2.0, final=False)], None),
    ],
)
def test_the_first_cause_is_who_ended_by_itself_and_for_good(ends: list[End], cause: str | None) -> None:
    found = first_cause(ends)
    assert (found.participant if found else None) == cause


def test_every_exit_code_has_a_meaning() -> None:
    assert "SIGSEGV" in meaning_of(139)
    assert meaning_of(3).startswith("it ended without a reason")
    assert all(meaning_of(code) for code in range(256))


def test_free_ports_are_different_and_free() -> None:
    ports = free_ports(20)
    assert len(set(ports)) == 20

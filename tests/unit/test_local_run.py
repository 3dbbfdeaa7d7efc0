"""A local run, from starting processes to telling who failed, with a stand-in for the node."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from pcmoe_operator.local.failure import last_error_line, meaning_of
from pcmoe_operator.local.ports import free_ports
from pcmoe_operator.local.processes import Member, NodeProcess, stop_all
from pcmoe_operator.local.supervise import Outcome, supervise
from pcmoe_operator.local.view import LiveView, MemberState, PlainView, Progress, waiting_for
from pcmoe_operator.local.watch import NodeStatus, RoundLine, RoundsTail

FAKE_NODE = str(Path(__file__).with_name("fake_node.py"))
DEADLINE_SECONDS = 20.0
NAMES = ("berlin", "lyon", "porto")


def make_members(folder: Path, **behaviours: dict[str, Any]) -> list[Member]:
    """Three participants whose stand-ins behave as told."""
    ports = free_ports(len(NAMES))
    members = []
    for name, port in zip(NAMES, ports, strict=True):
        own = folder / name
        own.mkdir()
        listen = f"127.0.0.1:{port}"
        config = {
            "participant": name,
            "participants": [{"name": n} for n in NAMES],
            "training": {"rounds": 2},
            "status_listen": listen,
            "log_directory": str(own / "log"),
        }
        (own / "config.json").write_text(json.dumps(config))
        (own / "behaviour.json").write_text(json.dumps(behaviours.get(name, {})))
        command = (sys.executable, FAKE_NODE, "--config", str(own / "config.json"))
        members.append(
            Member(name=name, folder=own, status_url=f"http://{listen}", command=command, threads=1)
        )
    return members


def run_plainly(members: list[Member]) -> tuple[Outcome, str]:
    """Run with the plain view; what it printed comes back too."""
    out = StringIO()
    return supervise(members, PlainView(Console(file=out, width=200))), out.getvalue()


def is_running(pid: int) -> bool:
    """Whether a process exists and is not a zombie."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in "ZX"


def wait_for(condition: Callable[[], bool], what: str) -> None:
    """Poll until it holds, or fail at the deadline."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"waited too long for {what}"
        time.sleep(0.02)


def pids_of(members: list[Member]) -> list[int]:
    return [int((m.folder / "pid").read_text()) for m in members]


def test_a_run_whose_nodes_all_finish_ends_with_0_and_tells_each_round(tmp_path: Path) -> None:
    members = make_members(tmp_path)
    outcome, text = run_plainly(members)
    assert outcome.exit_code == 0
    for name in NAMES:
        assert f"{name}: before training: held-out loss 3.200" in text
        assert f"{name}: round 2 (step 10): training loss 2.800, held-out loss 3.000, 640 tokens/s" in text
        assert f"{name}: is done" in text
    assert all((m.folder / "threads").read_text() == "1" for m in members)


def test_the_node_that_failed_by_itself_is_named_not_those_that_lost_it(tmp_path: Path) -> None:
    lost = {
        "after_peer_fails": "lyon",
        "code": 75,
        "words": "ERROR PeerLostError: lyon closed its connection",
    }
    cause = {"code": 65, "words": "ERROR DataError: /data/train.jsonl: record 7 is no JSON object"}
    outcome, text = run_plainly(make_members(tmp_path, berlin=lost, lyon=cause, porto=lost))
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
    outcome, _ = run_plainly(make_members(tmp_path, berlin=relayed, lyon=relayed, porto=cause))
    assert outcome.failure is not None
    assert outcome.failure.participant == "porto"


def test_a_node_that_was_killed_is_the_cause_and_the_signal_is_told(tmp_path: Path) -> None:
    lost = {
        "after_peer_fails": "porto",
        "code": 75,
        "words": "ERROR PeerLostError: lost porto",
    }
    killed = {"by_signal": int(signal.SIGKILL)}
    outcome, _ = run_plainly(make_members(tmp_path, berlin=lost, lyon=lost, porto=killed))
    assert outcome.exit_code == 137
    assert outcome.failure is not None
    assert outcome.failure.participant == "porto"
    assert "killed" in outcome.failure.sentence()


def test_when_one_node_fails_the_others_are_stopped_even_if_they_notice_nothing(tmp_path: Path) -> None:
    members = make_members(tmp_path, berlin={"forever": True}, lyon={"code": 69}, porto={"forever": True})
    began = time.monotonic()
    outcome, text = run_plainly(members)
    assert time.monotonic() - began < DEADLINE_SECONDS
    assert outcome.exit_code == 69
    assert "stopping berlin, porto" in text
    assert not any(is_running(pid) for pid in pids_of(members))


def test_a_node_that_ignores_sigterm_is_killed_when_its_time_is_over(tmp_path: Path) -> None:
    members = make_members(tmp_path, berlin={"forever": True, "deaf": True})
    node = NodeProcess(members[0])
    try:
        wait_for((members[0].folder / "ready").exists, "the node to be ready")
    finally:
        stop_all([node], seconds=0.3)
    assert node.poll() == 137
    assert not is_running(node.pid)


RUNNER = """
import json, sys
from pathlib import Path
from rich.console import Console
from pcmoe_operator.local.processes import Member
from pcmoe_operator.local.supervise import supervise
from pcmoe_operator.local.view import PlainView
def member(m):
    folder, command = Path(m["folder"]), tuple(m["command"])
    return Member(name=m["name"], folder=folder, status_url=m["url"], command=command, threads=1)
members = [member(m) for m in json.loads(sys.argv[1])]
sys.exit(supervise(members, PlainView(Console())).exit_code)
"""


def start_runner(members: list[Member]) -> subprocess.Popen[bytes]:
    """A runner in its own process, as `pcmoe run` is, with nodes that would go on for ever."""
    given = [
        {"name": m.name, "folder": str(m.folder), "url": m.status_url, "command": m.command} for m in members
    ]
    runner = subprocess.Popen(
        [sys.executable, "-c", RUNNER, json.dumps(given)],
        stdout=subprocess.DEVNULL,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    wait_for(lambda: all((m.folder / "ready").exists() for m in members), "the nodes to be ready")
    return runner


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_to_the_runner_stops_every_node_cleanly(tmp_path: Path, number: int, code: int) -> None:
    members = make_members(tmp_path, **{name: {"forever": True} for name in NAMES})
    runner = start_runner(members)
    os.killpg(runner.pid, number)
    assert runner.wait(DEADLINE_SECONDS) == code
    assert not any(is_running(pid) for pid in pids_of(members))


def test_a_second_signal_kills_nodes_that_do_not_listen(tmp_path: Path) -> None:
    members = make_members(tmp_path, **{name: {"forever": True, "deaf": True} for name in NAMES})
    runner = start_runner(members)
    runner.send_signal(signal.SIGINT)
    began = time.monotonic()
    while runner.poll() is None:
        assert time.monotonic() - began < 8, "the second signal changed nothing"
        time.sleep(0.3)
        runner.send_signal(signal.SIGINT)
    assert runner.returncode == 130
    assert not any(is_running(pid) for pid in pids_of(members))


def test_no_node_outlives_a_runner_that_was_killed(tmp_path: Path) -> None:
    members = make_members(tmp_path, **{name: {"forever": True, "deaf": True} for name in NAMES})
    runner = start_runner(members)
    runner.kill()
    runner.wait(DEADLINE_SECONDS)
    wait_for(lambda: not any(is_running(pid) for pid in pids_of(members)), "the nodes to be gone")


def status(**changes: Any) -> NodeStatus:
    given = {"phase": "TRAINING", "round": 1, "rounds": 4, "step": 25, "steps": 100, "peers": 2} | changes
    parsed = NodeStatus.parse(json.dumps(given).encode())
    assert parsed is not None
    return parsed


def state(name: str, now: NodeStatus | None, exit_code: int | None = None) -> MemberState:
    return MemberState(name=name, exit_code=exit_code, status=now, new_rounds=())


def test_what_a_run_waits_for_is_named() -> None:
    assert waiting_for([state("a", None), state("b", status(phase="CONNECTING"))]) == "loading the model: a"
    connecting = [
        state("a", status(phase="CONNECTING", peersConnected=1)),
        state("b", status(phase="CONNECTING", peersConnected=2)),
    ]
    assert waiting_for(connecting) == "connecting to each other: a 1/2, b 2/2"
    assert waiting_for([state("a", status())]) == ""


def test_a_silent_plain_run_says_what_it_waits_for() -> None:
    now = [0.0]
    out = StringIO()
    view = PlainView(Console(file=out, width=200), clock=lambda: now[0])
    view.update([state("a", None)])
    now[0] = 31.0
    view.update([state("a", None)])
    assert "still loading the model: a" in out.getvalue()
    now[0] = 62.0
    view.update([state("a", status()), state("b", status(step=24))])
    assert "still training: step 24 of 100" in out.getvalue()


def test_the_time_left_follows_the_participant_that_is_furthest_behind() -> None:
    now = [0.0]
    progress = Progress(clock=lambda: now[0])
    assert progress.measure([state("a", status(step=0)), state("b", None)]) == (0.0, None)
    progress.measure([state("a", status(step=0)), state("b", status(step=0))])
    now[0] = 10.0
    share, left = progress.measure([state("a", status(step=40)), state("b", status(step=25))])
    assert share == 0.25
    assert left == pytest.approx(30.0)


def test_the_live_table_shows_every_participant_and_the_progress() -> None:
    out = StringIO()
    with LiveView(Console(file=out, width=140, force_terminal=True), "pilot") as view:
        view.update([state("berlin", status(heldOutLoss=2.5)), state("lyon", None)])
    text = out.getvalue()
    for expected in ("pilot", "berlin", "lyon", "25/100", "2.500", "STARTING", "loading the model: lyon"):
        assert expected in text


def test_the_live_table_ends_with_the_last_round_that_was_written() -> None:
    out = StringIO()
    line = RoundLine(
        round=4,
        step=100,
        seconds=1.0,
        train_loss=2.1,
        held_out_loss=2.0,
        tokens=1,
        bytes_sent=1,
        bytes_received=1,
    )
    with LiveView(Console(file=out, width=140, force_terminal=True), "pilot") as view:
        view.update([MemberState(name="a", exit_code=None, status=status(), new_rounds=(line,))])
        view.update([state("a", status(), exit_code=0)])
    assert all(text in out.getvalue() for text in ("4/4", "100/100", "2.000", "DONE", "100%"))


def test_a_narrow_terminal_gets_fewer_columns_instead_of_cut_ones() -> None:
    out = StringIO()
    with LiveView(Console(file=out, width=80, force_terminal=True), "pilot") as view:
        view.update([state("north-hospital", status(phase="CONNECTING"))])
    text = out.getvalue()
    assert "north-hospital" in text
    assert "held-out" in text
    assert "received" not in text


@pytest.mark.parametrize("answer", [b"", b"[]", b"{", b"\xff", b'"text"'])
def test_an_answer_that_is_no_status_is_ignored(answer: bytes) -> None:
    assert NodeStatus.parse(answer) is None


def test_text_in_a_status_is_made_printable_and_short() -> None:
    parsed = NodeStatus.parse(
        json.dumps({"phase": "\x1b[31mX" + "y" * 100, "step": True, "trainLoss": "2"}).encode()
    )
    assert parsed is not None
    assert parsed.phase.isprintable()
    assert len(parsed.phase) == 20
    assert (parsed.step, parsed.train_loss) == (0, None)


def test_a_half_written_round_is_told_once_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "rounds.jsonl"
    tail = RoundsTail(path)
    assert tail.new() == []
    path.write_text('{"round": 0, "step": 0}\n{"round": 1, "st')
    assert [line.round for line in tail.new()] == [0]
    with path.open("a") as file:
        file.write('ep": 5}\n')
    assert [(line.round, line.step) for line in tail.new()] == [(1, 5)]


def test_the_last_error_is_found_before_what_is_logged_after_it(tmp_path: Path) -> None:
    log = tmp_path / "node.log"
    log.write_text("INFO started\nERROR DataError: record 7\nINFO closing\n")
    assert last_error_line(log) == "ERROR DataError: record 7"
    log.write_text("INFO started\nKilled\n")
    assert last_error_line(log) == "Killed"
    assert last_error_line(tmp_path / "none") == ""


def test_every_exit_code_has_a_meaning() -> None:
    assert "SIGSEGV" in meaning_of(139)
    assert meaning_of(3).startswith("it ended without a reason")
    assert all(meaning_of(code) for code in range(256))


def test_free_ports_are_different_and_free() -> None:
    ports = free_ports(20)
    assert len(set(ports)) == 20

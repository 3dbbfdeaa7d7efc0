"""What is shown of a local run: what nodes and coordinator answer, the table, and plain lines."""

import json
import time
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from tests.unit.crew import wait_for
from tests.unit.fake_node import serve

from pcmoe_operator.local.ports import free_ports
from pcmoe_operator.local.processes import Member
from pcmoe_operator.local.view import (
    CoordinatorState,
    LiveView,
    MemberState,
    PlainView,
    Progress,
    waiting_for,
)
from pcmoe_operator.local.watch import CoordinatorStatus, NodeStatus, RoundLine, RoundsTail, Watch


def status(**changes: Any) -> NodeStatus:
    given = {"phase": "TRAINING", "round": 1, "rounds": 4, "step": 25, "steps": 100, "peers": 2} | changes
    parsed = NodeStatus.parse(json.dumps(given).encode())
    assert parsed is not None
    return parsed


def state(name: str, now: NodeStatus | None, **changes: Any) -> MemberState:
    return MemberState(**{"name": name, "exit_code": None, "status": now, "new_rounds": ()} | changes)


def coordinator(**changes: Any) -> CoordinatorState:
    """One that answers, with this in its status."""
    parsed = CoordinatorStatus.parse(
        json.dumps({"state": "RUNNING", "round": 1, "members": []} | changes).encode()
    )
    assert parsed is not None
    return CoordinatorState(status=parsed)


SILENT = CoordinatorState()


class Plain:
    """A plain view with a clock of its own."""

    def __init__(self) -> None:
        self.now = 0.0
        self._out = StringIO()
        self._view = PlainView(Console(file=self._out, width=200), clock=lambda: self.now)

    def told(self, *members: MemberState, by: CoordinatorState | None = None) -> list[str]:
        """What it prints when it is shown this, without the time of day."""
        begin = len(self._out.getvalue())
        self._view.update(members, by or coordinator())
        return [line.partition(" ")[2] for line in self._out.getvalue()[begin:].splitlines()]


WAITS = status(phase="WAITING", view=1)
LOADED = status(phase="WAITING", view=0)


def test_what_a_run_waits_for_is_named() -> None:
    loading = [state("a", None), state("b", status(phase="CONNECTING"))]
    assert waiting_for(loading, SILENT) == "loading the model: a"
    connecting = [
        state("a", status(phase="CONNECTING", peersConnected=1)),
        state("b", status(phase="CONNECTING", peersConnected=2)),
    ]
    assert waiting_for(connecting, coordinator()) == "connecting to each other: a 1/2, b 2/2"
    assert waiting_for(connecting, SILENT) == "waiting for the coordinator"
    assert waiting_for([state("a", status())], coordinator()) == ""
    loaded = [state("a", LOADED), state("b", status(phase="LOADING"))]
    assert waiting_for(loaded, coordinator()) == "loading the model: b"
    assert waiting_for([state("a", LOADED)], SILENT) == "waiting for the coordinator"
    assert waiting_for([state("a", LOADED)], coordinator(members=[{"name": "b", "connected": False}])) == (
        "waiting for b"
    )


def test_a_run_waits_for_who_was_started_again_also_before_its_peers_notice() -> None:
    for phase in ("LOADING", "CONNECTING"):
        back = [state("a", status()), state("b", status(phase=phase), restarts=1)]
        assert waiting_for(back, coordinator()) == "waiting for b to come back"
    assert waiting_for([state("a", status()), state("b", status(), restarts=1)], coordinator()) == ""


def test_a_node_whose_peers_never_waited_goes_on_too() -> None:
    view = Plain()
    view.told(state("a", status()), state("b", status()))
    view.told(state("a", status()), state("b", status(), restarting=True, restarts=1))
    assert view.told(state("a", status(phase="CONNECTING", view=2)), state("b", None, restarts=1)) == [
        "a: waits for the others"
    ]
    assert view.told(state("a", status()), state("b", status(), restarts=1)) == [
        "a: goes on, 1 of 4 rounds done",
        "b: goes on, 1 of 4 rounds done",
    ]


@pytest.mark.parametrize(
    ("members", "by", "whom"),
    [
        ([state("a", WAITS), state("b", status(), restarting=True)], coordinator(), "b"),
        ([state("a", WAITS), state("b", None), state("c", status(phase="LOADING"))], coordinator(), "b, c"),
        ([state("a", WAITS), state("b", status(), exit_code=137)], coordinator(), "b"),
        ([state("a", WAITS), state("b", status(), exit_code=0)], SILENT, "the coordinator"),
        ([state("a", WAITS), state("b", WAITS)], CoordinatorState(restarting=True), "the coordinator"),
        ([state("a", WAITS)], coordinator(members=[{"name": "b", "connected": False}, 7]), "b"),
        ([state("a", WAITS), state("b", WAITS)], coordinator(), "the others"),
    ],
)
def test_whoever_waits_says_for_whom(members: list[MemberState], by: CoordinatorState, whom: str) -> None:
    assert waiting_for(members, by) == f"waiting for {whom} to come back"
    assert f"a: waits for {whom} to come back" in Plain().told(*members, by=by)


def test_a_plain_view_tells_that_a_run_goes_on_and_why_it_waited() -> None:
    view = Plain()
    assert view.told(state("a", status()), state("b", status())) == []
    lost = coordinator(state="FORMING", reason="a lost b: it closed its connection")
    waiting = view.told(state("a", WAITS), state("b", status(), restarting=True), by=lost)
    assert waiting == ["a: waits for b to come back", "coordinator: a lost b: it closed its connection"]
    loading = state("b", status(phase="LOADING"))
    assert view.told(state("a", WAITS), loading, by=lost) == ["b: loads its model and data"]
    joining = status(phase="CONNECTING", view=2)
    assert view.told(state("a", joining), state("b", LOADED), by=lost) == ["b: waits for the others"]
    assert view.told(state("a", joining), state("b", joining), by=lost) == []
    assert view.told(state("a", status()), state("b", status(phase="EVALUATING")), by=lost) == [
        "a: goes on, 1 of 4 rounds done",
        "b: goes on, 1 of 4 rounds done",
    ]
    assert view.told(state("a", status(phase="EVALUATING")), state("b", status()), by=lost) == []


def test_who_was_first_seen_waiting_goes_on_too() -> None:
    view = Plain()
    view.told(state("a", WAITS), state("b", None))
    assert view.told(state("a", status()), state("b", status())) == ["a: goes on, 1 of 4 rounds done"]


def test_a_start_is_told_as_a_start_and_not_as_a_return() -> None:
    view = Plain()
    assert view.told(state("a", LOADED), state("b", None)) == ["a: waits for the others"]
    assert view.told(state("a", status(phase="CONNECTING")), state("b", LOADED)) == [
        "b: waits for the others"
    ]
    assert view.told(state("a", status()), state("b", status())) == []


def test_a_coordinator_that_failed_for_good_is_told_and_one_that_was_stopped_is_not() -> None:
    assert Plain().told(by=CoordinatorState(exit_code=66)) == [
        "coordinator: ended with exit code 66: something this machine must have is missing"
    ]
    assert Plain().told(by=CoordinatorState(exit_code=143, stopped=True)) == []


def test_a_silent_plain_run_says_what_it_waits_for() -> None:
    view = Plain()
    assert view.told(state("a", None)) == []
    view.now = 31.0
    assert view.told(state("a", None)) == ["still loading the model: a"]
    view.now = 62.0
    assert view.told(state("a", status()), state("b", status(step=24))) == ["still training: step 24 of 100"]


def test_the_time_left_follows_the_participant_that_is_furthest_behind() -> None:
    now = [0.0]
    progress = Progress(clock=lambda: now[0])
    assert progress.measure([state("a", status(step=0)), state("b", None)]) == (0.0, None)
    progress.measure([state("a", status(step=0)), state("b", status(step=0))])
    now[0] = 10.0
    share, left = progress.measure([state("a", status(step=40)), state("b", status(step=25))])
    assert share == 0.25
    assert left == pytest.approx(30.0)


def test_going_back_to_an_earlier_round_keeps_the_share_until_all_are_back_and_estimates_anew() -> None:
    now = [0.0]
    progress = Progress(clock=lambda: now[0])
    progress.measure([state("a", status(step=20)), state("b", status(step=20))])
    now[0] = 10.0
    progress.measure([state("a", status(step=50)), state("b", status(step=50))])
    for away in (state("b", status(), restarting=True), state("b", status(phase="LOADING", step=0))):
        assert progress.measure([state("a", status(phase="WAITING", step=50)), away]) == (0.5, None)
    back = [state("a", status(step=10)), state("b", status(step=10))]
    assert progress.measure(back) == (0.1, None)
    now[0] = 20.0
    assert progress.measure([state("a", status(step=20)), state("b", status(step=20))])[1] == pytest.approx(
        80.0
    )


def test_the_live_table_shows_every_participant_and_the_progress() -> None:
    out = StringIO()
    with LiveView(Console(file=out, width=140, force_terminal=True), "pilot") as view:
        view.update([state("berlin", status(heldOutLoss=2.5)), state("lyon", None)], coordinator())
    text = out.getvalue()
    for expected in ("pilot", "berlin", "lyon", "25/100", "2.500", "STARTING", "loading the model: lyon"):
        assert expected in text
    assert "coordinator" in text
    assert "restarts" not in text


@pytest.mark.parametrize("width", [80, 140])
def test_the_live_table_counts_restarts_once_there_are_any(width: int) -> None:
    out = StringIO()
    with LiveView(Console(file=out, width=width, force_terminal=True), "pilot") as view:
        view.update([state("a", WAITS), state("b", status(), restarting=True, restarts=17)], coordinator())
    for expected in ("restarts", "17", "RESTARTING", "WAITING", "waiting for b to come back"):
        assert expected in out.getvalue()


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
        view.update([state("a", status(), new_rounds=(line,))], coordinator())
        view.update([state("a", status(), exit_code=0)], coordinator())
    assert all(text in out.getvalue() for text in ("4/4", "100/100", "2.000", "DONE", "100%"))


def test_a_node_that_went_back_is_shown_where_it_is_and_not_at_the_last_round_that_was_written() -> None:
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
        view.update([state("a", status(round=3, step=75), new_rounds=(line,))], coordinator())
    assert "3/4" in out.getvalue()
    assert "4/4" not in out.getvalue()


def test_a_narrow_terminal_gets_fewer_columns_instead_of_cut_ones() -> None:
    out = StringIO()
    with LiveView(Console(file=out, width=80, force_terminal=True), "pilot") as view:
        view.update([state("north-hospital", status(phase="CONNECTING"))], coordinator())
    text = out.getvalue()
    assert "north-hospital" in text
    assert "held-out" in text
    assert "received" not in text


@pytest.mark.parametrize("answer", [b"", b"[]", b"{", b"\xff", b'"text"'])
def test_an_answer_that_is_no_status_is_ignored(answer: bytes) -> None:
    assert NodeStatus.parse(answer) is None
    assert CoordinatorStatus.parse(answer) is None


def test_text_in_a_status_is_made_printable_and_short() -> None:
    parsed = NodeStatus.parse(
        json.dumps({"phase": "\x1b[31mX" + "y" * 100, "step": True, "trainLoss": "2"}).encode()
    )
    assert parsed is not None
    assert parsed.phase.isprintable()
    assert len(parsed.phase) == 20
    assert (parsed.step, parsed.train_loss) == (0, None)


def test_an_answer_from_before_a_restart_says_nothing_of_what_was_started(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    serve(f"127.0.0.1:{port}", {"phase": "TRAINING"})
    member = Member(name="a", folder=tmp_path, status_url=f"http://127.0.0.1:{port}", command=(), threads=1)
    with Watch([member], NodeStatus.parse) as watch:
        wait_for(lambda: watch.latest("a") is not None, "an answer")
        began = time.monotonic()
        assert watch.latest("a", since=began) is None
        wait_for(lambda: watch.latest("a", since=began) is not None, "the next answer")


def test_a_half_written_round_is_told_once_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "rounds.jsonl"
    tail = RoundsTail(path)
    assert tail.new() == []
    path.write_text('{"round": 0, "step": 0}\n{"round": 1, "st')
    assert [line.round for line in tail.new()] == [0]
    with path.open("a") as file:
        file.write('ep": 5}\n')
    assert [(line.round, line.step) for line in tail.new()] == [(1, 5)]


def test_a_round_is_told_once_whoever_else_asks_how_far_a_node_is_and_however_often_it_starts(
    tmp_path: Path,
) -> None:
    path = tmp_path / "rounds.jsonl"
    tail = RoundsTail(path)
    assert tail.highest() == 0
    path.write_text('{"round": 0, "step": 0}\n{"round": 1, "step": 5}\n')
    assert tail.highest() == 1
    assert [line.round for line in tail.new()] == [0, 1]
    with path.open("a") as file:  # a later life begins from the start
        file.write('{"round": 0, "step": 0}\n')
    assert tail.highest() == 1
    assert [line.round for line in tail.new()] == [0]
    assert tail.new() == []


def test_rounds_from_before_a_resumed_run_are_not_told(tmp_path: Path) -> None:
    path = tmp_path / "rounds.jsonl"
    path.write_text('{"round": 0, "step": 0}\n{"round": 1, "step": 5}\n')
    tail = RoundsTail(path, from_end=True)
    assert (tail.new(), tail.highest()) == ([], 0)


@pytest.mark.parametrize(
    "answer", [b"[" * 200_000, b'{"a":' * 100_000, b'{"trainLoss": 1' + b"0" * 400 + b"}", b"\xff", b"[]"]
)
def test_an_answer_that_no_node_would_give_ends_nothing(answer: bytes) -> None:
    status = NodeStatus.parse(answer)
    assert status is None or status.train_loss is None

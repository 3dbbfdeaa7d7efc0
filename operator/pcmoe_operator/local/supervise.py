"""Runs the members of a local run to their end, shows how far they are, and leaves nothing running."""

import os
import select
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import FrameType

from pcmoe_operator.local.failure import Failure, first_cause
from pcmoe_operator.local.processes import STOP_SECONDS, Member, NodeProcess, stop_all
from pcmoe_operator.local.view import MemberState, View
from pcmoe_operator.local.watch import RoundsTail, Watch

TICK_SECONDS = 0.25
GRACE_SECONDS = 3.0
"""So long the others may go on after a first failure: their own words help to tell cause from consequence."""
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """How a run ended."""

    failure: Failure | None = None
    stopped_by: int | None = None
    """The signal that stopped it, if one did."""

    @property
    def exit_code(self) -> int:
        """0, the code of the node that failed first, or 128 + signal."""
        if self.stopped_by is not None:
            return 128 + self.stopped_by
        return self.failure.exit_code if self.failure else 0


class _StopRequest:
    """A signal that arrived, and a pipe that wakes whoever waits for it."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self.count = 0
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._writer, False)

    def handle(self, number: int, _frame: FrameType | None) -> None:
        self.signal = self.signal or number
        self.count += 1
        os.write(self._writer, b"!")

    def wait(self, seconds: float) -> None:
        """Return after `seconds`, or at once when a signal arrives."""
        if select.select([self._reader], [], [], seconds)[0]:
            os.read(self._reader, 64)

    def close(self) -> None:
        os.close(self._reader)
        os.close(self._writer)


@contextmanager
def _stop_signals() -> Iterator[_StopRequest]:
    """Catch the signals that ask to stop, for as long as the run lasts. Main thread only."""
    request = _StopRequest()
    before = {number: signal.signal(number, request.handle) for number in STOP_SIGNALS}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        request.close()


def supervise(members: Sequence[Member], view: View, *, resumed: bool = False) -> Outcome:
    """Start every member, wait for all of them, and tell how it went. No node is left when this returns."""
    with ExitStack() as stack:
        request = stack.enter_context(_stop_signals())
        tails = {m.name: RoundsTail(m.rounds_file, from_end=resumed) for m in members}
        nodes: list[NodeProcess] = []
        stack.callback(stop_all, nodes)
        for member in members:
            nodes.append(NodeProcess(member))
        watch = stack.enter_context(Watch(members))
        stack.enter_context(view)
        failed_at: float | None = None
        while True:
            view.update([_state_of(node, watch, tails[node.member.name]) for node in nodes])
            codes = [node.poll() for node in nodes]
            if request.signal is not None or None not in codes:
                break
            if any(codes):
                failed_at = failed_at or time.monotonic()
                if time.monotonic() - failed_at > GRACE_SECONDS:
                    break
            request.wait(TICK_SECONDS)
        _end(nodes, request, view)
        view.update([_state_of(node, watch, tails[node.member.name]) for node in nodes])
        failure = None if request.signal is not None else first_cause(nodes)
        return Outcome(failure=failure, stopped_by=request.signal)


def _end(nodes: Sequence[NodeProcess], request: _StopRequest, view: View) -> None:
    """Stop what still runs; another signal while waiting shortens the wait to nothing."""
    running = [node for node in nodes if node.poll() is None]
    if not running:
        return
    view.say(f"stopping {', '.join(node.member.name for node in running)} (at most {STOP_SECONDS:.0f} s)")
    for node in running:
        node.terminate()
    deadline, patience = time.monotonic() + STOP_SECONDS, request.count
    while any(node.poll() is None for node in running):
        if time.monotonic() > deadline or request.count > patience:
            break
        request.wait(TICK_SECONDS / 2)
    stop_all(running, seconds=0.0)


def _state_of(node: NodeProcess, watch: Watch, tail: RoundsTail) -> MemberState:
    return MemberState(
        name=node.member.name,
        exit_code=node.poll(),
        status=watch.latest(node.member.name),
        new_rounds=tuple(tail.new()),
    )

"""Everybody in a local run at once: their keepers, and what is known of how far they are."""

import time
from collections.abc import Sequence
from contextlib import ExitStack
from types import TracebackType

from pcmoe_operator.local.failure import Failure, first_cause
from pcmoe_operator.local.keeper import Keeper
from pcmoe_operator.local.processes import STOP_SECONDS, Crew, MemberProcess, stop_all
from pcmoe_operator.local.restarts import Policy
from pcmoe_operator.local.signals import StopRequest
from pcmoe_operator.local.view import CoordinatorState, MemberState, View
from pcmoe_operator.local.watch import CoordinatorStatus, NodeStatus, RoundsTail, Watch

GRACE_SECONDS = 3.0
"""So long the others may go on after a first failure: their own words help to tell cause from consequence."""
STOP_TICK_SECONDS = 0.1


class Company:
    """Started when entered; when it is left, no process is."""

    def __init__(self, crew: Crew, *, resumed: bool) -> None:
        """`resumed`: rounds that are written down already are not told again."""
        policy = Policy.of_nodes(crew.on_peer_loss)
        self._tails = {m.name: RoundsTail(m.rounds_file, from_end=resumed) for m in crew.members}
        self._nodes = [Keeper(m, policy, self._tails[m.name].highest) for m in crew.members]
        self._coordinator = Keeper(crew.coordinator, Policy.COORDINATOR, self._committed)
        self._all = (self._coordinator, *self._nodes)
        self._watch = Watch(crew.members, NodeStatus.parse)
        self._coordinator_watch = Watch((crew.coordinator,), CoordinatorStatus.parse)
        self._failed_at: float | None = None
        self._ending = False
        self._stack = ExitStack()

    def __enter__(self) -> "Company":
        with ExitStack() as stack:
            stack.callback(self._leave_nothing)
            for keeper in self._all:
                keeper.start()
            stack.enter_context(self._watch)
            stack.enter_context(self._coordinator_watch)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def tend(self) -> list[str]:
        """Notice who ended, start again whom the policy says; returns what there is to tell."""
        told = []
        for keeper in self._all:
            told.append(keeper.tend(may_restart=not self._ending))
            if keeper.exit_code and self._failed_at is None:
                self._failed_at, self._ending = time.monotonic(), True
        return [sentence for sentence in told if sentence]

    @property
    def over(self) -> bool:
        """Whether every node has ended for good, or one failed and the others have had their time."""
        if all(keeper.exit_code is not None for keeper in self._nodes):
            return True
        return self._failed_at is not None and time.monotonic() - self._failed_at > GRACE_SECONDS

    def failure(self) -> Failure | None:
        """Why it failed; None if every node has ended well, or ended because it was told to."""
        if all(keeper.exit_code == 0 for keeper in self._nodes):
            return None
        return first_cause([keeper.last_end for keeper in self._all if keeper.last_end])

    def show(self, view: View) -> None:
        """Show this moment."""
        view.update([self._state_of(keeper) for keeper in self._nodes], self._coordinator_state())

    def stop(self, request: StopRequest, view: View) -> None:
        """Stop what still runs, the coordinator last; another signal shortens the wait to nothing."""
        self._ending = True
        deadline, patience = time.monotonic() + STOP_SECONDS, request.count
        running = _running(self._nodes)
        if running:
            names = ", ".join(process.member.name for process in running)
            view.say(f"stopping {names} (at most {STOP_SECONDS:.0f} s)")
        for processes in (running, _running([self._coordinator])):
            for process in processes:
                process.terminate()
            while any(process.poll() is None for process in processes):
                if time.monotonic() > deadline or request.count > patience:
                    break
                request.wait(STOP_TICK_SECONDS)
            stop_all(processes, seconds=0.0)
        self.tend()

    def _leave_nothing(self) -> None:
        stop_all(_running(self._all))

    def _committed(self) -> int:
        status = self._coordinator_watch.latest(self._coordinator.member.name)
        return status.round if status else 0

    def _state_of(self, keeper: Keeper) -> MemberState:
        name = keeper.member.name
        return MemberState(
            name=name,
            exit_code=keeper.exit_code,
            restarting=keeper.restarting,
            restarts=keeper.restarts,
            status=self._watch.latest(name, keeper.started_at),
            new_rounds=tuple(self._tails[name].new()),
        )

    def _coordinator_state(self) -> CoordinatorState:
        keeper = self._coordinator
        return CoordinatorState(
            exit_code=keeper.exit_code,
            restarting=keeper.restarting,
            restarts=keeper.restarts,
            stopped=keeper.process is not None and keeper.process.told_to_stop,
            status=self._coordinator_watch.latest(keeper.member.name, keeper.started_at),
        )


def _running(keepers: Sequence[Keeper]) -> list[MemberProcess]:
    return [k.process for k in keepers if k.process is not None and k.process.poll() is None]

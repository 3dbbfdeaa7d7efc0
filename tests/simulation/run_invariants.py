"""What must hold from view to view, whatever crashes: it compares what the disks hold with what is said of them."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tests.simulation.disk import Disk
from tests.simulation.faults import COORDINATOR_ONLY
from tests.simulation.invariants import Journal, Watch, require
from tests.simulation.scenario import Scenario

from pcmoe_node.errors import DivergedError, IdentityError, PeerLostError, ResourceError
from pcmoe_node.protocol.membership import Commit, Fail, Failure, Notice, Order, View

if TYPE_CHECKING:
    from tests.simulation.process import Process


class RunWatch:
    """Sees every event of a run that concerns views, rounds and processes."""

    def __init__(self, scenario: Scenario, disks: Sequence[Disk], trace: bool) -> None:
        """`disks`: what each participant holds at any moment."""
        self.journal = Journal(trace)
        self.seen = self.journal.seen
        self.struck: set[int] = set()
        """Who has lost its disk."""
        self.failed: set[int] = set()
        """Who has ended the run by a failure of its own."""
        self._scenario = scenario
        self._disks = disks
        self._floor = max(disk.committed for disk in disks)
        """The newest round that anybody was told to be committed: no way leads back before it."""
        self._numbers = [disk.number for disk in disks]
        self._parents: dict[int, tuple[int, int]] = {}
        """Digest of a round to its number and the digest of the round before."""
        self._views: dict[str, Watch] = {}
        self._first: dict[str, int] = {}
        """Digest of the round that each view began with."""
        self._formed: set[str] = set()
        self._committed: set[tuple[str, int]] = set()
        self._trained: dict[int, str] = {}
        self._codes: dict[int, int] = {}
        self._calm = all(fault.kind in COORDINATOR_ONLY for fault in scenario.faults)

    def lost_disk(self, member: int) -> None:
        """A participant's disk is gone; what is put in its place is empty."""
        self.struck.add(member)
        self._numbers[member] = 0

    # The coordinator

    def told(self, member: int, notice: Notice) -> None:
        """The coordinator said this to somebody."""
        if notice.view is not None and notice.view.mark not in self._formed:
            self._formed.add(notice.view.mark)
            self._check_formed(notice.view)
        if notice.mark and notice.committed and (notice.mark, notice.committed) not in self._committed:
            self._committed.add((notice.mark, notice.committed))
            self.seen["round committed"] += 1
            self._check_all_hold(notice.committed, "was committed")

    def _check_formed(self, view: View) -> None:
        self.seen["view formed"] += 1
        what = f"view {view.number} begins at round {view.round}"
        require(view.round >= self._floor, f"committed: {what}; round {self._floor} is committed")
        for member, incarnation in view.members:
            disk = self._disks[member]
            if view.round and disk.owner == incarnation:
                require(view.round in disk.rounds, f"view: {what}, but {member} holds {disk.held()}")

    def _check_all_hold(self, number: int, what: str) -> None:
        histories = {}
        for member, disk in enumerate(self._disks):
            if member not in self.struck:
                require(
                    disk.newest >= number,
                    f"commit: round {number} {what}, but {member} holds {disk.held()}",
                )
                histories[member] = self._history(disk, number)
        require(
            len(set(histories.values())) <= 1,
            f"commit: round {number} {what}, but it stems from different histories: {histories}",
        )
        self._floor = max(self._floor, number)

    def _history(self, disk: Disk, number: int) -> int:
        """Digest of the round on this disk, or of the one from which its newest was computed."""
        held = min(each for each in disk.rounds if each >= number)
        history = disk.rounds[held]
        while held > number and history in self._parents:
            held, history = self._parents[history]
        return history

    # Processes

    def ordered(self, process: "Process", order: Order, notice: Notice) -> None:
        """A process was given this order; it has not followed it."""
        if isinstance(order, Commit):
            mark = process.view.mark if process.view else "none"
            require(
                mark == notice.mark,
                f"stale: {process.name} took a commit of view {notice.mark} while in {mark}",
            )
        if isinstance(order, Fail):
            self._check_failure(process, order.failure)

    def _check_failure(self, process: "Process", failure: Failure) -> None:
        lost = [member for member in self.struck if f"participant {member} holds none" in failure.reason]
        stale = self._disks[process.me].owner != process.incarnation
        right = {
            ResourceError.exit_code: bool(lost),
            IdentityError.exit_code: stale,
            DivergedError.exit_code: failure.origin in self.failed,
        }
        require(right.get(failure.code, False), f"failure: {process.name} was told {failure}")

    def accepted(self, process: "Process", view: View) -> None:
        """A process has kept the number of a view."""
        before, self._numbers[process.me] = self._numbers[process.me], view.number
        require(before < view.number, f"monotonic: {process.name} accepts view {view.number} after {before}")

    def entered(self, process: "Process", view: View, history: int) -> Watch:
        """A process enters a view with the round of this digest; the watch of that view."""
        name = f"{process.name} enters view {view.number}"
        require(view.incarnation(process.me) == process.incarnation, f"stale: {name}, which names {view}")
        owner = self._disks[process.me].owner
        require(owner == process.incarnation, f"stale: {name}; {owner} was started since")
        require(
            view.round >= self._floor,
            f"committed: {name} at round {view.round}; round {self._floor} is committed",
        )
        first = self._first.setdefault(view.mark, history)
        require(first == history, f"history: {name} with round {view.round} of another history than others")
        if view.mark not in self._views:
            self._views[view.mark] = Watch(self._scenario.beginning_at(view.round), view.mark, self.journal)
        return self._views[view.mark]

    def linked(self, dialer: "Process", listener: "Process") -> None:
        """Two processes have connected."""
        for one, other in ((dialer, listener), (listener, dialer)):
            self._check_peer(one, other, other.view.mark if other.view else "none")

    def frame(self, process: "Process", peer: "Process", mark: str) -> None:
        """A process takes a message of this peer, from a connection of the view with this mark."""
        self._check_peer(process, peer, mark)

    def _check_peer(self, process: "Process", peer: "Process", mark: str) -> None:
        view = process.view
        if view is None or view.mark != mark or view.incarnation(peer.me) != peer.incarnation:
            require(False, f"stale: {process.name} in {view} hears {peer.name} of view {mark}")

    def begins(self, process: "Process") -> None:
        """A process is connected to all peers of its view."""
        assert process.view is not None
        number, mark = process.view.number, process.view.mark
        first = self._trained.setdefault(number, mark)
        require(first == mark, f"monotonic: {process.name} trains in {mark}, others in {first} of {number}")

    def left(self, process: "Process", reason: str) -> None:
        """A process leaves its view before its end."""
        view = process.view
        begun = view is not None and self._trained.get(view.number) == view.mark
        self.seen["view left"] += begun
        require(
            not (self._calm and begun),
            f"absence: {process.name} left its view ({reason}), and only the coordinator was away",
        )

    # Rounds

    def stored(self, process: "Process", number: int, history: int, before: int) -> None:
        """A round is durable, computed from the round of the digest `before`."""
        self._parents[history] = (number - 1, before)
        self.seen["round stored"] += 1

    def changed(self, process: "Process") -> None:
        """A process has stored or deleted rounds."""
        disk = self._disks[process.me]
        if process.me not in self.struck:
            require(
                disk.newest >= self._floor,
                f"committed: {process.name} holds {disk.held()}; round {self._floor} is committed",
            )

    def said_done(self, process: "Process") -> None:
        """A process vouches for it that everybody holds the last round."""
        last = self._scenario.rounds
        committed = self._disks[process.me].committed
        require(committed == last, f"farewell: {process.name} says DONE, round {committed} is committed")
        self._check_all_hold(last, f"is vouched for by {process.name}")

    # The end

    def ended(self, process: "Process", code: int, reason: str) -> None:
        """A process ended for good."""
        if code == IdentityError.exit_code:
            owner = self._disks[process.me].owner
            require(owner != process.incarnation, f"stale: {process.name}, the newest, ended as superseded")
            self.seen["superseded"] += 1
            return
        if code == 0:
            disk = self._disks[process.me]
            complete = disk.finished and disk.newest == disk.committed == self._scenario.rounds
            require(complete, f"farewell: {process.name} ended with {disk}")
        self.seen[f"ended with {code}"] += 1
        self._codes[process.me] = code

    def waited(self, process: "Process") -> None:
        """A process gives up waiting for its peers: right only if one of them has ended."""
        require(bool(self.failed | self.struck), f"waited in vain: {process} for connections")

    def over(self) -> None:
        """Everybody has ended: with 0, or because a disk was lost."""
        codes = set(self._codes.values())
        allowed = {0}
        if self.struck:
            allowed.add(ResourceError.exit_code)
        if self.failed:
            allowed.add(DivergedError.exit_code)
        waited = {member for member, code in self._codes.items() if code == PeerLostError.exit_code}
        if codes & {ResourceError.exit_code, DivergedError.exit_code} or waited <= self.struck:
            allowed.add(PeerLostError.exit_code)
        require(codes <= allowed, f"waited in vain: exit codes {self._codes}, disks lost: {self.struck}")

"""One process of a participant, from its start to its end: what the real shell around the core does."""

from collections.abc import Callable
from typing import TYPE_CHECKING, NoReturn

from tests.simulation.disk import Disk
from tests.simulation.faults import Kind
from tests.simulation.invariants import InvariantError
from tests.simulation.links import CRASHED, EndedError, Link
from tests.simulation.network import Message, Wire
from tests.simulation.node import Node
from tests.simulation.sessions import Contact, Session

from pcmoe_node.errors import DivergedError, IdentityError, PeerLostError
from pcmoe_node.protocol.membership import (
    Accept,
    Commit,
    Fail,
    Failure,
    Leave,
    Member,
    Notice,
    Order,
    View,
)

if TYPE_CHECKING:
    from tests.simulation.world import World

REJOIN_TIMEOUT = 5000.0
"""So long a process waits for a view; longer than all that goes wrong in a run."""
LINK_TIMEOUT = 2000.0
"""So long it waits for the connections of a view."""


class Process:
    """Holds a `Member` and, within a view, a `Node`."""

    def __init__(self, world: "World", me: int, disk: Disk, member: type[Member]) -> None:
        """Takes the disk: from now on no earlier process may write to it."""
        self.me = me
        self.incarnation = f"{world.network.luck.getrandbits(32):08x}"
        self.name = f"{me} ({self.incarnation})"
        self.disk = disk
        self.alive = True
        self.node: Node | None = None
        self.links: dict[int, Link] = {}
        self._world = world
        self._network = world.network
        self._luck = world.network.luck
        self.contact = Contact(world, self)
        self._wire: Wire | None = None
        self._history = 0
        self._begun = False
        """Linked with all peers of the view."""
        self._over = False
        """No step of the view is left."""
        self._epoch = 0
        """Counts views accepted and left: what was begun before the last of these is void."""
        self._last = world.scenario.rounds
        disk.owner = self.incarnation
        self._member = member(
            me=me,
            members=world.scenario.members,
            incarnation=self.incarnation,
            last_round=self._last,
            number=disk.number,
            committed=disk.committed,
            rounds=disk.held(),
        )

    def __str__(self) -> str:
        return f"process {self.name}: {self._member.report()}, linked with {sorted(self.links)}, {self.node}"

    # Start and end

    def start(self) -> None:
        """From the start of the process."""
        if self.disk.finished:
            self._end(0)
        self.after(self._luck.random() * 5, self.contact.dial)
        self.after(self._luck.choice((0.1, 5.0, 40.0)), self._loaded)
        self.after(REJOIN_TIMEOUT, self._waited_in_vain, self._epoch)

    def fail(self) -> None:
        """An error of its own ends the run for everybody."""
        self._member.fail(Failure(code=DivergedError.exit_code, origin=self.me, reason="diverged"))
        self._report()
        self._end(DivergedError.exit_code)

    def ended(self, clean: bool) -> None:
        """The process is gone: its peers notice sooner or later."""
        self.alive = False
        self._hang_up(clean)
        self.contact.end(clean)

    def after(self, delay: float, action: Callable[..., None], *arguments: object) -> None:
        """Call `action(*arguments)` once `delay` has passed, if this process still lives."""
        self._network.after(delay, self._run, action, arguments)

    def _run(self, action: Callable[..., None], arguments: tuple[object, ...]) -> None:
        if self.alive:
            action(*arguments)

    def _end(self, code: int, reason: str = "") -> NoReturn:
        raise EndedError(self, code, reason)

    def _point(self, name: str) -> None:
        self._world.note(self.name, "is at", name)
        if self._world.strikes(self, name):
            self._world.watch.seen[f"crash when {name}"] += 1
            self._end(CRASHED)

    def _own_disk(self) -> Disk:
        """The disk, to be written to; it may have been taken by another process since."""
        if self.disk.owner != self.incarnation:
            self._end(IdentityError.exit_code, "another process has the disk")
        return self.disk

    def _loaded(self) -> None:
        self._point("loading")
        self._member.loaded()
        self._report()

    def _waited_in_vain(self, epoch: int) -> None:
        if epoch != self._epoch:
            return
        if self._member.committed == self._last:
            # Others may have finished and be gone, and no coordinator knows of it any more.
            self._world.watch.seen["finished alone"] += 1
            self._own_disk().finished = True
            self._end(0)
        self._end(PeerLostError.exit_code, f"nobody offered a view: {self._member.missing}")

    # The coordinator

    def session_lost(self, session: Session) -> None:
        """The session is noticed to be broken."""
        if self.alive:
            self.contact.lost(session)

    def welcomed(self) -> None:
        """A new session with the coordinator: tell it all, unless another process was started since."""
        self._own_disk()
        self._report()

    def hear(self, session: Session, notice: Notice) -> None:
        """A notice arrived; one of a session before this one is void."""
        if self.alive and self.contact.session is session:
            self._world.note(self.name, "hears", notice)
            for order in self._member.notice(notice):
                self._world.watch.ordered(self, order, notice)
                self._obey(order)

    def _report(self) -> None:
        self.contact.say(self._member.report())

    def _obey(self, order: Order) -> None:
        if isinstance(order, Accept):
            self._accept(order.view)
        elif isinstance(order, Leave):
            self._leave(order.reason)
        elif isinstance(order, Commit):
            self._commit(order.round)
        elif isinstance(order, Fail):
            self._end(order.failure.code, order.failure.reason)
        else:
            self._world.watch.seen["told to finish"] += 1
            self._own_disk().finished = True
            self._end(0)

    # Into a view and out of it

    @property
    def view(self) -> View | None:
        """The view this process is in."""
        return self._member.view

    def _accept(self, view: View) -> None:
        self._epoch += 1
        self._report()
        self._point("accepted")
        self._own_disk().accept(view.number)
        self._world.watch.accepted(self, view)
        self._point("persisted")
        self._soon(self._drop, view)

    def _drop(self, view: View) -> None:
        disk = self._own_disk()
        self._world.watch.seen["rollback"] += disk.newest > view.round
        disk.drop_after(view.round)
        self._world.watch.changed(self)
        self._member.stored(disk.held())
        self._point("dropped")
        self._soon(self._enter, view)

    def _enter(self, view: View) -> None:
        world = self._world
        rounds = self._own_disk().rounds
        self._history = rounds[view.round] if view.round else 0
        watch = world.watch.entered(self, view, self._history)
        self._begun = self._over = False
        self._wire = Wire(self._network, self._carry)
        scenario = world.beginning_at(view.round)
        self.node = Node(self.me, scenario, self._wire, watch, world.machine(scenario, self.me), self)
        self.node.history = self._history
        self._member.entered(self.disk.held())
        self._point("entered")
        self._report()
        self._link_up(self._epoch)
        self.after(LINK_TIMEOUT, self._not_linked, self._epoch)

    def _soon(self, action: Callable[[View], None], view: View) -> None:
        """At once or after a while, unless the view is over by then."""
        if self._luck.random() < 0.5:
            action(view)
        else:
            self.after(
                self._luck.random() * self._luck.choice((5.0, 40.0)),
                self._if_still,
                self._epoch,
                action,
                view,
            )

    def _if_still(self, epoch: int, action: Callable[[View], None], view: View) -> None:
        if epoch == self._epoch:
            action(view)

    def _leave(self, reason: str) -> None:
        self._world.note(self.name, "leaves its view:", reason)
        self._world.watch.left(self, reason)
        self._hang_up(clean=True)
        self._epoch += 1
        self._member.left(reason)
        self._report()
        self.after(REJOIN_TIMEOUT, self._waited_in_vain, self._epoch)

    # Peers

    def accepts(self, peer: "Process") -> bool:
        """Whether a connection from this process is one of the view."""
        mine, other = self._member.view, peer.view
        if not self.alive or not peer.alive or mine is None or other is None:
            return False
        named = mine.incarnation(peer.me) == peer.incarnation and mine.number == other.number
        return named and mine.mark == other.mark

    def _link_up(self, epoch: int) -> None:
        if epoch != self._epoch:
            return
        peers = range(self._world.scenario.members)
        unlinked = [peer for peer in peers if peer != self.me and peer not in self.links]
        if not unlinked:
            self._linked()
            return
        for peer in unlinked:
            # The smaller number dials.
            target = self._world.listening(peer)
            if self.me < peer and target is not None and not self._world.cut_until(self.me, peer):
                self._dial(target)
        if any(self.me < peer for peer in unlinked):
            self.after(2.0 + 6.0 * self._luck.random(), self._link_up, epoch)

    def _not_linked(self, epoch: int) -> None:
        if epoch == self._epoch and not self._begun:
            self._world.watch.waited(self)
            self._leave("not everybody came")

    def _dial(self, target: "Process") -> None:
        if not target.accepts(self) or not self.accepts(target):
            self._world.watch.seen["connection refused"] += 1
            return
        assert self._member.view is not None
        link = Link((self, target), self._member.view.mark)
        self._world.watch.linked(self, target)
        self.links[target.me] = target.links[self.me] = link
        for process in link.ends:
            if len(process.links) == self._world.scenario.members - 1:
                process.after(self._luck.random(), process._link_up, process._epoch)

    def _linked(self) -> None:
        if self.node is not None and self._wire is not None and not self._begun:
            self._begun = True
            self._point("linked")
            self._world.watch.begins(self)
            self._wire.later(self.node.start)

    def _carry(self, to: int, message: Message) -> None:
        link = self.links.get(to)
        if link is not None:
            arrival = self._network.send(link.beyond(self).arrives, link, message)
            link.quiet = max(link.quiet, arrival)

    def arrives(self, link: Link, message: Message) -> None:
        """A message of a peer arrived; while the two can't reach one another it waits."""
        if not self.alive or self.links.get(message.sender) is not link or self.node is None:
            self._world.watch.seen["frame of a view that is over"] += 1
            return
        until = self._world.cut_until(self.me, message.sender)
        if until:
            delay = until - self._network.now + self._luck.random()
            self._network.after(delay, self.arrives, link, message)
            return
        self._world.watch.frame(self, link.beyond(self), link.mark)
        self.node.receive(message)

    def peer_gone(self, link: Link, reason: str) -> None:
        """A peer closed its end, or was silent for too long."""
        peer = link.beyond(self).me
        if not self.alive or self.links.get(peer) is not link or self.node is None:
            return
        until = self._world.cut_until(self.me, peer)
        if until and reason != Kind.PARTITION:
            self._network.after(until - self._network.now + 2.0, self.peer_gone, link, reason)
        elif self.node.said_done(peer):
            del self.links[peer]
        else:
            self._world.watch.seen["peer lost"] += 1
            self._leave(f"participant {peer}: {reason}")

    def _hang_up(self, clean: bool) -> None:
        """The node of this view is thrown away, its peers hear or see that it is gone."""
        if self._wire is not None:
            self._wire.cut = True
        self.node = self._wire = None
        links, self.links = self.links, {}
        for link in links.values():
            wait = self._luck.random() * self._luck.choice((1.0, 60.0))
            if clean:
                wait = max(link.quiet - self._network.now, 0.0) + self._luck.random()
            self._network.after(wait, link.beyond(self).peer_gone, link, "closed" if clean else "lost")

    # Rounds: what the node asks of its process

    def checkpoint(self, round_number: int, history: int, then: Callable[[], None]) -> None:
        """A round is over; now and then storing it is slow."""
        assert self._wire is not None
        self._wire.after(self._luck.choice((0.1, 1.0, 30.0)), self._store, round_number, history, then)

    def _store(self, round_number: int, history: int, then: Callable[[], None]) -> None:
        self._point("storing")
        self._own_disk().rounds[round_number] = history
        self._world.watch.stored(self, round_number, history, self._history)
        self._history = history
        self._point("stored")
        self._prune()
        then()

    def _prune(self) -> None:
        self.disk.prune()
        self._world.watch.changed(self)
        self._member.stored(self.disk.held())
        self._report()

    def _commit(self, round_number: int) -> None:
        self._point("committing")
        self._own_disk().committed = round_number
        self._point("committed")
        self._prune()
        self._say_done()

    def trained(self) -> None:
        """No step is left."""
        self._over = True
        self._say_done()

    def _say_done(self) -> None:
        node = self.node
        if node is not None and self._over and self.disk.committed == self._last:
            self._point("done")
            self._world.watch.said_done(self)
            node.say_done()

    def peer_done(self) -> None:
        """A peer vouches for it that everybody holds the last round."""
        if self.disk.newest != self._last:
            raise InvariantError(f"farewell: {self.name} heard DONE and holds {self.disk.held()}")
        if self.disk.committed < self._last:
            self._member.committed = self._last
            self._commit(self._last)

    def everybody_done(self) -> None:
        """Nobody needs anybody any more."""
        self._point("finishing")
        self._own_disk().finished = True
        self._point("marked")
        self._member.finish()
        self._report()
        self._end(0)

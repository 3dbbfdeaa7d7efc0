"""The coordinator's process, and the sessions that nodes have with it: in order, until they break."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from tests.simulation.network import Network

from pcmoe_node.protocol.coordinator import Coordinator, Tell
from pcmoe_node.protocol.membership import Notice, Report

if TYPE_CHECKING:
    from tests.simulation.process import Process
    from tests.simulation.world import World


class Session:
    """A connection between one process and one coordinator. What is under way when it breaks is lost."""

    def __init__(self, network: Network, process: "Process", coordinator: "CoordinatorProcess") -> None:
        """Not open before `CoordinatorProcess.open` was called with it."""
        self.process = process
        self.coordinator = coordinator
        self.broken = False
        self._network = network
        self._arrivals = {"report": 0.0, "notice": 0.0}

    def report(self, report: Report) -> None:
        """From the node."""
        self._send("report", self.coordinator.hear, self, report)

    def beat(self) -> None:
        """From the node, now and then."""
        arrival = self._arrival("report", self._network.beat_luck.random())
        self._network.after_beat(arrival, self._arrive, self.coordinator.beaten, (self,))

    def notice(self, notice: Notice) -> None:
        """From the coordinator."""
        self._send("notice", self.process.hear, self, notice)

    def break_(self) -> None:
        """Both sides notice after a while."""
        if not self.broken:
            self.broken = True
            for notices, longest in ((self.process, 100.0), (self.coordinator, 200.0)):
                wait = self._network.luck.choice((1.0, 30.0, longest)) * self._network.luck.random()
                self._network.after(wait, notices.session_lost, self)

    def close(self) -> None:
        """The node says good-bye: what it has said arrives first."""
        self._send("report", self._closed)

    def _closed(self) -> None:
        self.broken = True
        self.coordinator.session_lost(self)

    def _send(self, way: str, deliver: Callable[..., None], *arguments: object) -> None:
        luck = self._network.luck
        delay = self._arrival(way, luck.random() * luck.choice((1.0, 1.0, 3.0, 20.0, 80.0)))
        self._network.after(delay, self._arrive, deliver, arguments)

    def _arrival(self, way: str, delay: float) -> float:
        """How long from now: never before what was sent before."""
        now = self._network.now
        self._arrivals[way] = max(now + delay, self._arrivals[way] + 1e-6)
        return self._arrivals[way] - now

    def _arrive(self, deliver: Callable[..., None], arguments: tuple[object, ...]) -> None:
        if not self.broken:
            deliver(*arguments)


class Contact:
    """How a process keeps in touch with the coordinator: it dials whenever it has no session."""

    def __init__(self, world: "World", process: "Process") -> None:
        """Begins with `dial`."""
        self.session: Session | None = None
        self._world = world
        self._process = process
        self._said: Report | None = None
        """What the session has carried last."""

    def dial(self) -> None:
        """Look for a coordinator, now and then, until there is one."""
        luck = self._world.network.luck
        coordinator = self._world.coordinator()
        if coordinator is None:
            self._process.after(5.0 + 10.0 * luck.random(), self.dial)
        else:
            session = Session(self._world.network, self._process, coordinator)
            self._process.after(luck.random(), self._open, session)

    def _open(self, session: Session) -> None:
        if session.coordinator.open(session):
            self.session, self._said = session, None
            self._process.welcomed()
            self._beat(session)
        else:
            self.dial()

    def _beat(self, session: Session) -> None:
        network = self._world.network
        if session is self.session and not session.broken and self._process.alive:
            session.beat()
            network.after_beat(5.0 + 10.0 * network.beat_luck.random(), self._beat, session)

    def lost(self, session: Session) -> None:
        """The session is noticed to be broken."""
        if session is self.session:
            self.session = None
            self._process.after(self._world.reconnect_after(self._process.me), self.dial)

    def say(self, report: Report) -> None:
        """Send it, if it is new to the coordinator and there is a session."""
        if self.session is not None and report != self._said:
            self._said = report
            self.session.report(report)

    def break_session(self) -> None:
        """The session breaks."""
        if self.session is not None:
            self.session.break_()

    def end(self, clean: bool) -> None:
        """The process ends: with a good-bye, or without."""
        if self.session is not None:
            self.session.close() if clean else self.session.break_()


class CoordinatorProcess:
    """A process around the coordinator under test. It keeps nothing: the next one knows nothing of it."""

    def __init__(self, world: "World", core: Coordinator) -> None:
        """Nobody is connected."""
        self.core = core
        self.alive = True
        self._world = world
        self._sessions: dict[tuple[int, str], Session] = {}

    def __str__(self) -> str:
        return f"coordinator: view {self.core.view}, missing {self.core.missing()}, {self.core.present()}"

    def open(self, session: Session) -> bool:
        """A process dials. A second session of the same process takes the place of its first."""
        if not self.alive:
            return False
        process = session.process
        self._sessions[process.me, process.incarnation] = session
        self.core.connected(process.me, process.incarnation)
        return True

    def hear(self, session: Session, report: Report) -> None:
        """A report arrived."""
        process = session.process
        if self.alive and self._sessions.get((process.me, process.incarnation)) is session:
            self._world.note("coordinator hears", report, "from", process.name)
            self._tell(self.core.report(process.me, process.incarnation, report))

    def beaten(self, session: Session) -> None:
        """A beat arrived."""
        key = (session.process.me, session.process.incarnation)
        if self.alive and self._sessions.get(key) is session:
            self._tell(self.core.alive(*key))

    def session_lost(self, session: Session) -> None:
        """A session is noticed to be gone."""
        key = (session.process.me, session.process.incarnation)
        if self.alive and self._sessions.get(key) is session:
            del self._sessions[key]
            self._tell(self.core.disconnected(*key))

    def crash(self) -> None:
        """All it knew is gone."""
        self.alive = False
        for session in self._sessions.values():
            session.break_()

    def _tell(self, tells: list[Tell]) -> None:
        for count, tell in enumerate(tells):
            if count and self._world.strikes_coordinator():
                self.crash()
                return
            session = self._sessions.get((tell.member, tell.incarnation))
            if session is not None and not session.broken:
                self._world.note("coordinator tells", tell.member, tell.incarnation, tell.notice)
                self._world.watch.told(tell.member, tell.notice)
                session.notice(tell.notice)

"""Views and commits, from one participant's side. A pure state machine; `coordinator.py` is the other side.

A *view* is a numbered list of the incarnations that train together, and the stored round they begin from. Nodes and
coordinator tell each other where they stand, whole, whenever it changes and whenever they connect anew, so a lost
message or a restarted coordinator needs no protocol of its own:

    node  ──Report──▶ coordinator     "I hold rounds 4 and 5, am in no view, and want one"
    node  ◀──Notice── coordinator     "view 7 begins at round 5"; "round 6 is committed"; "view 7 is over"

What makes it safe:

- A view is accepted only with a higher number than any before, and only by a node that is in none. Whoever has
  asked for a view has left its old one, and takes no commit of it any more.
- On entering, rounds after the view's are dropped *before* the node reports that it is in, so a commit never counts a
  round of the same number from before the rollback.
- A commit says that every member of the view holds the round durably. It only permits deleting older rounds.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field

from pcmoe_node.errors import ProtocolError


@dataclass(frozen=True, kw_only=True, slots=True)
class View:
    """Who trains together, and from where."""

    number: int
    round: int
    """The stored round that everybody takes up; 0 is the state before any training."""
    members: tuple[tuple[int, str], ...]
    """(participant, incarnation), ascending."""

    @property
    def mark(self) -> str:
        """Short digest of all of it: two views of one number from two coordinators are told apart."""
        text = f"{self.number}|{self.round}|" + "|".join(f"{who} {which}" for who, which in self.members)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def incarnation(self, participant: int) -> str | None:
        """The incarnation of a participant that is in, or None."""
        return dict(self.members).get(participant)


@dataclass(frozen=True, kw_only=True, slots=True)
class Failure:
    """An error that ends the run for everybody."""

    code: int
    """Exit code of its class (`errors.py`)."""
    origin: int | None
    """Participant where it began; None: the coordinator found it."""
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """Where a node stands."""

    view: int = 0
    """The highest number of a view it ever accepted."""
    mark: str = ""
    """Of the view it is in; empty: it is in none."""
    ready: bool = False
    """It has loaded, and can enter a view."""
    rounds: tuple[int, ...] = ()
    """Rounds it holds durably, ascending."""
    committed: int = 0
    """The highest round it knows to be committed."""
    finished: int = 0
    """The last round of a run that everybody has taken leave of; 0 while it goes on."""
    lost: str = ""
    """Why it left its last view, for people."""
    failure: Failure | None = None
    """It ends, and why."""

    @property
    def holds(self) -> bool:
        """It is in no view and wants one."""
        return self.ready and not self.mark

    @property
    def newest(self) -> int:
        """Its newest round; 0: none."""
        return max(self.rounds, default=0)


@dataclass(frozen=True, kw_only=True, slots=True)
class Notice:
    """What the coordinator knows that concerns one node."""

    view: View | None = None
    """A view to enter, or entered already."""
    mark: str = ""
    """Mark of the view that stands, if the node is of it; a coordinator that was started anew knows only that."""
    over: int = 0
    """Views up to this number are over."""
    reason: str = ""
    """Why the last one is, for people."""
    committed: int = 0
    """Newest committed round of the view with this mark."""
    finished: int = 0
    """The last round of a run that everybody has taken leave of: nobody needs anybody any more."""
    missing: tuple[tuple[int, str], ...] = ()
    """Who keeps a view from forming, and what it does instead, for people."""
    failure: Failure | None = None


@dataclass(frozen=True, slots=True)
class Accept:
    """Enter this view: remember its number durably, drop rounds after its round, call `entered`, connect, go on."""

    view: View


@dataclass(frozen=True, slots=True)
class Leave:
    """The view is over: stop, close its connections, call `left`."""

    reason: str


@dataclass(frozen=True, slots=True)
class Commit:
    """Everybody holds this round: remember it durably; older ones may be deleted."""

    round: int


@dataclass(frozen=True, slots=True)
class Finish:
    """The last round is committed and nobody needs this node: it may end, done."""


@dataclass(frozen=True, slots=True)
class Fail:
    """The run is over for everybody."""

    failure: Failure


Order = Accept | Leave | Commit | Finish | Fail


@dataclass(slots=True)
class Member:
    """One node's part. The caller feeds notices and what it did, and sends `report()` whenever that changed."""

    me: int
    members: int
    """Participants of the agreement."""
    incarnation: str
    last_round: int
    """Rounds of the whole run."""
    number: int = 0
    """The highest view ever accepted; kept on disk."""
    committed: int = 0
    """Kept on disk."""
    rounds: tuple[int, ...] = ()
    ready: bool = False
    view: View | None = None
    """The view this node is in."""
    missing: tuple[tuple[int, str], ...] = ()
    """Who keeps a view from forming, as last told."""
    _entering: View | None = field(default=None, init=False)
    _reported: int = field(init=False)
    """`number`, but as before an accepted view until that is entered: on its way in, a node has left nothing."""
    _lost: str = field(default="", init=False)
    _finished: int = field(default=0, init=False)
    _failure: Failure | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self._reported = self.number

    # What this node does

    def loaded(self) -> None:
        """Ready to enter a view."""
        self.ready = True

    def entered(self, rounds: tuple[int, ...]) -> None:
        """The accepted view's number is on disk, later rounds are gone; `rounds` is what is left."""
        if self._entering is None:
            raise RuntimeError("no view was accepted")
        self.view, self._entering, self.rounds = self._entering, None, rounds
        self._reported, self._lost = self.number, ""

    def left(self, reason: str) -> None:
        """The view is left, its connections are closed; ask for a new one."""
        self.view = self._entering = None
        self._reported, self._lost = self.number, reason

    def stored(self, rounds: tuple[int, ...]) -> None:
        """A round is on disk, durably; `rounds` is what there is now."""
        self.rounds = rounds

    def finish(self) -> None:
        """Everybody has taken leave of everybody, the last round is committed."""
        self._finished = self.last_round

    def fail(self, failure: Failure) -> None:
        """This node ends, and so does the run."""
        self._failure = failure

    def report(self) -> Report:
        """Where this node stands."""
        return Report(
            view=self._reported,
            mark=self.view.mark if self.view else "",
            ready=self.ready and self._entering is None,
            rounds=self.rounds,
            committed=self.committed,
            finished=self._finished,
            lost=self._lost,
            failure=self._failure,
        )

    # What arrives

    def notice(self, notice: Notice) -> list[Order]:
        """What the coordinator says. A `ProtocolError` names what it may not say."""
        self.missing = notice.missing
        if notice.failure is not None:
            return [Fail(notice.failure)]
        current = self.view or self._entering
        if current is not None:
            if notice.over >= current.number:
                return [Leave(notice.reason)]
            return self._commit(current, notice)
        if self.ready and notice.finished >= self.last_round and self.committed >= self.last_round:
            return [Finish()]
        if self.ready and notice.view is not None:
            return self._offered(notice.view)
        return []

    # Inside

    def _commit(self, current: View, notice: Notice) -> list[Order]:
        same = notice.mark == current.mark
        if self.view is None or not same or notice.committed <= self.committed:
            return []
        if notice.committed > max(self.rounds, default=0):
            raise ProtocolError(
                f"the coordinator says that round {notice.committed} is committed, which this node does not hold"
            )
        if notice.committed not in self.rounds:
            # The word was long on its way: newer rounds are here, and this one has made room for them.
            return []
        self.committed = notice.committed
        return [Commit(notice.committed)]

    def _offered(self, view: View) -> list[Order]:
        if view.number <= self.number or view.incarnation(self.me) != self.incarnation:
            return []
        strangers = [who for who, _ in view.members if not 0 <= who < self.members]
        if strangers:
            raise ProtocolError(
                f"the coordinator names participant {strangers[0]}, who is not in the agreement"
            )
        if view.round < self.committed:
            raise ProtocolError(
                f"the coordinator wants view {view.number} to begin at round {view.round}; "
                f"round {self.committed} is committed already"
            )
        if view.round and view.round not in self.rounds:
            raise ProtocolError(
                f"the coordinator wants view {view.number} to begin at round {view.round}, "
                "which this node does not hold"
            )
        self.number, self._entering = view.number, view
        return [Accept(view)]


def common_round(reports: Mapping[str, Report]) -> tuple[int, str | None]:
    """(the newest round everybody can take up, None), or (0, who lost what), given each participant's report.

    A participant is at most one round behind the others, because no step of a round is decided before everybody has
    stored the round before; and nobody is behind a committed round. Whoever is has lost its disk; and so has whoever
    knows of no view while others hold rounds, since everybody is in every view.
    """
    newest = max(report.newest for report in reports.values())
    blank = [name for name, report in reports.items() if newest and not report.view and not report.rounds]
    least = max(newest - 1, *(report.committed for report in reports.values()), 1 if blank else 0)
    common = set.intersection(*({0, *report.rounds} for report in reports.values()))
    if max(common) >= least:
        return max(common), None
    behind = blank or [name for name, report in reports.items() if report.newest < least] or sorted(reports)
    holds = "; ".join(f"{name} holds {_shown(reports[name].rounds)}" for name in behind)
    return 0, (
        f"checkpoints are lost or not mounted: others have stored round {newest} and everybody must hold round "
        f"{least} or a later one, but {holds}"
    )


def _shown(rounds: tuple[int, ...]) -> str:
    if not rounds:
        return "none"
    return ("round " if len(rounds) == 1 else "rounds ") + ", ".join(map(str, rounds[-4:]))

"""The coordinator's mind: which view stands, and which rounds every member holds. A pure state machine.

It keeps nothing on disk. All that it knows comes from the reports of the nodes that are connected now, so one that is
started anew knows everything again once they have reported, and says nothing that depends on a report it lacks:

- A view is formed only when *every* participant of the agreement has reported that it is in none, and since it was
  last offered one: an older report knows nothing of the rounds that it may have stored in that.
- A round is committed only when every member of the standing view has reported from inside it that it holds it.
- A view is over as soon as one member's report can't be of it: it has started again, has left it, or is in another.
"""

from dataclasses import dataclass, field

from pcmoe_node.errors import IdentityError, ResourceError
from pcmoe_node.protocol.membership import Failure, Notice, Report, View, common_round


@dataclass(frozen=True, slots=True)
class Tell:
    """Send this notice to a member's session."""

    member: int
    incarnation: str
    notice: Notice


@dataclass(frozen=True, slots=True)
class _Standing:
    """The view that stands: formed here, or learned from members that are in it."""

    number: int
    mark: str
    incarnations: tuple[str, ...]
    view: View | None
    """None where it was learned: a coordinator before this one has formed it."""


@dataclass(slots=True)
class Coordinator:
    """Feed it what arrives; each call returns the notices that are new."""

    names: tuple[str, ...]
    """Participants of the agreement, in order."""
    committed: int = field(init=False, default=0)
    """The newest round that every member of the standing view holds, as far as this coordinator knows."""
    over: int = field(init=False, default=0)
    """Views up to this number are over."""
    reason: str = field(init=False, default="")
    finished: int = field(init=False, default=0)
    failure: Failure | None = field(init=False, default=None)
    _present: dict[int, tuple[str, Report]] = field(init=False, default_factory=dict)
    _standing: _Standing | None = field(init=False, default=None)
    _top: int = field(init=False, default=0)
    _arrived: dict[str, int] = field(init=False, default_factory=dict)
    """Every incarnation that ever connected, in order."""
    _newest: dict[int, str] = field(init=False, default_factory=dict)
    """The incarnation of each member that came last and has reported; an earlier one is never heard again."""
    _condemned: frozenset[str] = field(init=False, default=frozenset())
    """Incarnations that `failure` concerns; whoever starts after it begins anew."""
    _told: dict[int, tuple[str, Notice]] = field(init=False, default_factory=dict)
    _ended: dict[int, str] = field(init=False, default_factory=dict)
    """Why a member ended, until it starts again: whoever comes later and waits for it is told."""
    _offered: dict[str, int] = field(init=False, default_factory=dict)
    """Number of the view that an incarnation was offered last in its session."""
    _inside: int = field(init=False, default=0)
    """The highest number of a view that somebody reported from inside."""
    _heard: set[int] = field(init=False, default_factory=set)
    """Members whose session was alive since then: what they said before still holds."""

    # What arrives

    def report(self, member: int, incarnation: str, report: Report) -> list[Tell]:
        """A member says where it stands. A report of a later incarnation replaces that of the one before."""
        self._arrive(incarnation)
        newest = self._newest.setdefault(member, incarnation)
        if self._arrived[incarnation] < self._arrived[newest]:
            return [Tell(member, incarnation, Notice(failure=self._superseded(member)))]
        self._newest[member] = incarnation
        tells = []
        before = self._present.get(member)
        if before is not None and before[0] != incarnation:
            tells.append(Tell(member, before[0], Notice(failure=self._superseded(member))))
        if self._standing is None or report.mark != self._standing.mark:
            # Whoever is elsewhere is answered: what it was told last may have crossed what it says.
            self._told.pop(member, None)
        self._present[member] = (incarnation, report)
        self._top = max(self._top, report.view)
        if report.mark and report.view > self._inside:
            self._inside = report.view
            self._heard.clear()
        self._heard.add(member)
        self.finished = max(self.finished, report.finished)
        self._ended.pop(member, None)
        if report.failure is not None:
            self._ended[member] = report.failure.reason
            if incarnation not in self._condemned:
                self._fail(report.failure)
        return tells + self._judge()

    def alive(self, member: int, incarnation: str) -> list[Tell]:
        """A member's session has carried a beat: what it reported last is still so."""
        if member in self._heard or self._present.get(member, ("",))[0] != incarnation:
            return []
        self._heard.add(member)
        return self._judge()

    def connected(self, member: int, incarnation: str) -> None:
        """A member's session is new: whatever it was told before may be lost, and what it said may be old."""
        self._arrive(incarnation)
        self._offered.pop(incarnation, None)
        if self._present.get(member, ("",))[0] == incarnation:
            del self._present[member]
            self._told.pop(member, None)

    def disconnected(self, member: int, incarnation: str) -> list[Tell]:
        """A member's session is gone. That alone ends no view: its peers may well reach it."""
        if self._present.get(member, ("",))[0] == incarnation:
            del self._present[member]
            self._told.pop(member, None)
        return self._judge()

    def refused(self, member: int, code: int, reason: str) -> list[Tell]:
        """A participant that proved who it is can't take part (its agreement differs, say).

        While no view stands nobody trains, and nobody will: all end. One that stands is none of its business.
        """
        if self._standing is not None or any(report.mark for _, report in self._present.values()):
            return []
        self._ended[member] = reason
        self._fail(Failure(code=code, origin=member, reason=reason))
        return self._judge()

    # What is known

    @property
    def view(self) -> int:
        """Number of the view that stands; 0: none."""
        return self._standing.number if self._standing else 0

    @property
    def round(self) -> int:
        """The newest round that anybody knows to be committed."""
        return max(self.committed, *(report.committed for _, report in self._present.values()), 0)

    def present(self) -> dict[int, tuple[str, Report]]:
        """(incarnation, report) of every member that is connected."""
        return dict(self._present)

    def missing(self) -> tuple[tuple[int, str], ...]:
        """Who keeps a view from forming, and what it does instead."""
        found = []
        for member in range(len(self.names)):
            if member not in self._present:
                ended = self._ended.get(member)
                found.append((member, "is not connected" + (f": it ended, {ended}" if ended else "")))
                continue
            report = self._present[member][1]
            if not report.ready:
                found.append((member, "is loading"))
            elif report.mark:
                found.append((member, "is leaving its view"))
            elif self._owes_an_answer(member):
                found.append((member, "has not answered yet"))
        return tuple(found)

    # Inside

    def _arrive(self, incarnation: str) -> None:
        self._arrived.setdefault(incarnation, len(self._arrived))

    def _owes_an_answer(self, member: int) -> bool:
        incarnation, report = self._present[member]
        return report.view < self._offered.get(incarnation, 0)

    def _fail(self, failure: Failure) -> None:
        self.failure, self._condemned = failure, frozenset(self._arrived)

    def _superseded(self, member: int) -> Failure:
        reason = f"another process of {self.names[member]} has started since"
        return Failure(code=IdentityError.exit_code, origin=member, reason=reason)

    def _judge(self) -> list[Tell]:
        """From what is known to who must be told what."""
        if self._standing is not None:
            self._check_standing(self._standing)
        if self._standing is None:
            self._learn()
        if self._standing is None:
            self._form()
        if self._standing is not None:
            self._count(self._standing)
        tells = []
        for member, (incarnation, _) in self._present.items():
            notice = self._notice(member, incarnation)
            if self._told.get(member) != (incarnation, notice):
                self._told[member] = (incarnation, notice)
                if notice.view is not None:
                    self._offered[incarnation] = notice.view.number
                tells.append(Tell(member, incarnation, notice))
        return tells

    def _check_standing(self, standing: _Standing) -> None:
        for member, (incarnation, report) in self._present.items():
            name = self.names[member]
            if incarnation != standing.incarnations[member]:
                self._end(standing.number, f"{name} has started again")
            elif report.mark and report.mark != standing.mark:
                self._end(standing.number, f"{name} is in another view")
            elif not report.mark and report.view >= standing.number:
                self._end(standing.number, f"{name} left it" + (f": {report.lost}" if report.lost else ""))

    def _learn(self) -> None:
        """What members say of a view that was formed elsewhere."""
        number = max((report.view for _, report in self._present.values() if report.mark), default=0)
        if not number:
            return
        inside = {
            m: report for m, (_, report) in self._present.items() if report.mark and report.view == number
        }
        marks = {report.mark for report in inside.values()}
        outside = [self.names[m] for m in self._present if self._is_outside(m, number)]
        if outside or len(marks) > 1:
            # Every participant is in every view: one that somebody is not in, nor on the way in, is over.
            self._end(number, f"{outside[0]} is not in it" if outside else "there are two of this number")
        elif len(inside) == len(self.names) and number > self.over:
            incarnations = tuple(self._present[m][0] for m in range(len(self.names)))
            self._standing = _Standing(number, marks.pop(), incarnations, None)
            self.committed = 0

    def _is_outside(self, member: int, number: int) -> bool:
        """Whether a member's report proves that it isn't in this view, nor on the way in.

        One from before the view proves it only while its session lives: the member may have gone to the coordinator
        that formed the view, and this one not have noticed yet.
        """
        report = self._present[member][1]
        if report.view >= number:
            return not report.mark
        return (report.holds or bool(report.mark)) and member in self._heard

    def _end(self, number: int, reason: str) -> None:
        if number > self.over:
            self.over, self.reason = number, reason
        self._standing = None
        self._top = max(self._top, number)

    def _form(self) -> None:
        """A new view, once everybody has asked for one."""
        reports = {self.names[m]: report for m, (_, report) in self._present.items()}
        if len(reports) < len(self.names) or not all(report.holds for report in reports.values()):
            return
        if any(self._owes_an_answer(member) for member in self._present):
            return
        if any(incarnation in self._condemned for incarnation, _ in self._present.values()):
            return
        first, lost = common_round(reports)
        if lost is not None:
            self._fail(Failure(code=ResourceError.exit_code, origin=None, reason=lost))
            return
        members = tuple((m, self._present[m][0]) for m in range(len(self.names)))
        self._top += 1
        view = View(number=self._top, round=first, members=members)
        self._standing = _Standing(view.number, view.mark, tuple(i for _, i in members), view)
        self.committed = 0

    def _count(self, standing: _Standing) -> None:
        """Commit what every member holds, by reports from inside this view."""
        reports = [report for _, report in self._present.values() if report.mark == standing.mark]
        if len(reports) == len(self.names):
            self.committed = max(self.committed, min(report.newest for report in reports))

    def _notice(self, member: int, incarnation: str) -> Notice:
        standing = self._standing
        failure = self.failure if incarnation in self._condemned else None
        if standing is not None and standing.incarnations[member] == incarnation:
            return Notice(
                view=standing.view,
                mark=standing.mark,
                over=self.over,
                committed=self.committed,
                failure=failure,
            )
        return Notice(
            over=self.over,
            reason=self.reason,
            finished=self.finished,
            missing=tuple(each for each in self.missing() if each[0] != member),
            failure=failure,
        )

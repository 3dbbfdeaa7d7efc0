"""Coordinators, members, processes and disks with one planted bug each."""

from tests.simulation.disk import Disk
from tests.simulation.process import Process

from pcmoe_node.protocol.coordinator import Coordinator, Tell, _Standing
from pcmoe_node.protocol.membership import Commit, Member, Notice, Order, Report, View, common_round


def stand(coordinator: Coordinator, first: int, members: tuple[tuple[int, str], ...]) -> None:
    """Form a view, as `Coordinator` does once it has the round."""
    coordinator._top += 1
    view = View(number=coordinator._top, round=first, members=members)
    coordinator._standing = _Standing(view.number, view.mark, tuple(i for _, i in members), view)
    coordinator.committed = 0


class CommitsOnOneReport(Coordinator):
    """Commits what one member holds."""

    def _count(self, standing: _Standing) -> None:
        reports = [report for _, report in self._present.values() if report.mark == standing.mark]
        self.committed = max([self.committed, *(report.newest for report in reports)])


class FormsOnOneReport(Coordinator):
    """Takes the newest round that anybody reports."""

    def _form(self) -> None:
        reports = [report for _, report in self._present.values()]
        if len(reports) == len(self.names) and all(report.holds for report in reports):
            members = tuple((m, self._present[m][0]) for m in range(len(self.names)))
            stand(self, max(report.newest for report in reports), members)


class NamesRoundZero(Coordinator):
    """Takes a participant that has not reported yet for one that holds nothing."""

    def _form(self) -> None:
        present = {m: report for m, (_, report) in self._present.items()}
        if present and all(report.holds for report in present.values()):
            reports = {str(m): present.get(m, Report(view=1)) for m in range(len(self.names))}
            incarnations = [self._present.get(m, ("",))[0] for m in range(len(self.names))]
            stand(self, common_round(reports)[0], tuple(enumerate(incarnations)))


class TakesLostDiskForNew(Coordinator):
    """Begins anew where it should say that a disk is lost."""

    def _form(self) -> None:
        reports = {self.names[m]: report for m, (_, report) in self._present.items()}
        if len(reports) == len(self.names) and all(report.holds for report in reports.values()):
            members = tuple((m, self._present[m][0]) for m in range(len(self.names)))
            stand(self, common_round(reports)[0], members)


class LastReportWins(Coordinator):
    """Takes the process that reported last for the one that was started last."""

    def report(self, member: int, incarnation: str, report: Report) -> list[Tell]:
        self._arrived[incarnation] = max(self._arrived.values(), default=0) + 1
        return super().report(member, incarnation, report)


class KnowsNamesOnly(Coordinator):
    """Does not look at incarnations: whoever has the name is in the view."""

    def _judge(self) -> list[Tell]:
        if self._standing is not None:
            now = tuple(
                self._present[m][0] if m in self._present else incarnation
                for m, incarnation in enumerate(self._standing.incarnations)
            )
            self._standing = _Standing(self._standing.number, self._standing.mark, now, self._standing.view)
        return super()._judge()


class AnyIncarnation(Member):
    """Enters a view that names another process of its name."""

    def _offered(self, view: View) -> list[Order]:
        mine = self.incarnation
        self.incarnation = view.incarnation(self.me) or mine
        orders = super()._offered(view)
        self.incarnation = mine
        return orders


class CommitsAfterLeaving(Member):
    """Takes every commit of a round that it holds."""

    def notice(self, notice: Notice) -> list[Order]:
        orders = super().notice(notice)
        if not orders and notice.committed > self.committed and notice.committed in self.rounds:
            self.committed = notice.committed
            orders = [Commit(notice.committed)]
        return orders


class ConnectsToAnybody(Process):
    """Takes a connection of whoever is in a view."""

    def accepts(self, peer: Process) -> bool:
        return self.alive and peer.alive and self.view is not None and peer.view is not None


class EntersBeforeDropping(Process):
    """Says that it is in while rounds from before the rollback are still there."""

    def _drop(self, view: View) -> None:
        self._soon(self._enter, view)
        self.after(200.0, self._if_still, self._epoch, self._drop_late, view)

    def _drop_late(self, view: View) -> None:
        self.disk.drop_after(view.round)


class WritesToTakenDisk(Process):
    """Does not look whose disk it is."""

    def _own_disk(self) -> Disk:
        return self.disk


class ForgetsNumber(Disk):
    """Views are remembered in memory only."""

    def accept(self, number: int) -> None:
        pass


class KeepsOne(Disk):
    """Deletes a round as soon as it has a newer one."""

    def prune(self) -> None:
        self.rounds = {self.newest: self.rounds[self.newest]}


class KeepsWhatIsRolledBack(Disk):
    """Does not delete what is newer than the round that a view begins from."""

    def drop_after(self, first: int) -> None:
        pass

"""Runs a local run to its end: keeps everybody going, shows how far they are, and leaves nothing running."""

from contextlib import ExitStack
from dataclasses import dataclass

from pcmoe_operator.local.certificates import Renewals
from pcmoe_operator.local.company import Company
from pcmoe_operator.local.failure import Failure
from pcmoe_operator.local.processes import Crew
from pcmoe_operator.local.signals import stop_signals
from pcmoe_operator.local.view import View

TICK_SECONDS = 0.25


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """How a run ended."""

    failure: Failure | None = None
    stopped_by: int | None = None
    """The signal that stopped it, if one did."""

    @property
    def exit_code(self) -> int:
        """0, the code of the process that failed first, or 128 + signal."""
        if self.stopped_by is not None:
            return 128 + self.stopped_by
        return self.failure.exit_code if self.failure else 0


def supervise(crew: Crew, view: View, *, resumed: bool = False) -> Outcome:
    """Start everybody, wait until all nodes have ended, and tell how it went. No process is left when this returns.

    Who dies is started again as `restarts` says; an end that is for good ends the run.
    """
    with ExitStack() as stack:
        request = stack.enter_context(stop_signals())
        company = stack.enter_context(Company(crew, resumed=resumed))
        stack.enter_context(view)
        renewals = Renewals(crew.leaves, view.say)
        while request.signal is None and not company.over:
            for sentence in company.tend():
                view.say(sentence)
            renewals.tend()
            company.show(view)
            request.wait(TICK_SECONDS)
        company.stop(request, view)
        company.show(view)
        failure = None if request.signal is not None else company.failure()
        return Outcome(failure=failure, stopped_by=request.signal)

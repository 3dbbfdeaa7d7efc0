"""Keeps one member of a local run running: starts its process, notices its end, starts it again."""

import time
from collections.abc import Callable

from pcmoe_operator.local.failure import End, how_it_ended, last_error_line
from pcmoe_operator.local.processes import Member, MemberProcess
from pcmoe_operator.local.restarts import BACK_OFF_SECONDS, Policy, what_next


class Keeper:
    """One member over all the lives of its process."""

    def __init__(
        self,
        member: Member,
        policy: Policy,
        reached: Callable[[], int],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`reached`: the last round it has stored; one that is new lets its restarts be counted anew."""
        self.member = member
        self.process: MemberProcess | None = None
        self.started_at = 0.0
        """Beginning of its present life, by the clock."""
        self.restarts = 0
        """Over the whole run."""
        self.exit_code: int | None = None
        """Once it has ended for good."""
        self.last_end: End | None = None
        """The end of its last life, until it has got further since."""
        self._policy = policy
        self._reached = reached
        self._clock = clock
        self._best = 0
        self._tries = 0
        self._restart_at: float | None = None

    @property
    def restarting(self) -> bool:
        """Whether its next life is due, and has not begun."""
        return self._restart_at is not None

    def start(self) -> None:
        """Begin a life."""
        self._restart_at = None
        self.started_at = self._clock()
        self.process = MemberProcess(self.member)

    def tend(self, *, may_restart: bool) -> str | None:
        """Look after it. Returns what there is to tell: that it will be started again."""
        if self.exit_code is not None or self.process is None:
            return None
        if self._restart_at is not None:
            if not may_restart:
                self._restart_at, self.exit_code = None, self.process.poll()
            elif self._clock() >= self._restart_at:
                self.start()
            return None
        code = self.process.poll()
        self._note_progress()  # after poll: whoever has ended has written all that it will write
        return None if code is None else self._note_end(self.process, code, may_restart)

    def _note_progress(self) -> None:
        reached = self._reached()
        if reached > self._best:
            self._best, self._tries, self.last_end = reached, 0, None

    def _note_end(self, process: MemberProcess, code: int, may_restart: bool) -> str | None:
        pause = what_next(code, self._tries, self._policy) if may_restart else None
        self.last_end = End(
            name=self.member.name,
            code=code,
            at=self._clock(),
            words=last_error_line(self.member.log_file, process.log_start),
            log_file=self.member.log_file,
            told_to_stop=process.told_to_stop,
            final=pause is None,
            tries=self._tries,
        )
        if pause is None:
            self.exit_code = code
            return None
        self._tries += 1
        self.restarts += 1
        self._restart_at = self._clock() + pause
        count = "" if self._policy is Policy.COORDINATOR else f" ({self._tries} of {len(BACK_OFF_SECONDS)})"
        return f"{self.member.name}: {how_it_ended(code)}; started again in {pause:g} s{count}"

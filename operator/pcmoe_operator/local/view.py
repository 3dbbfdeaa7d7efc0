"""What the user sees while a run goes on: a table that renews itself, or plain lines without a terminal."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from types import TracebackType
from typing import Protocol

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from pcmoe_operator.constants import COORDINATOR
from pcmoe_operator.local.failure import meaning_of
from pcmoe_operator.local.watch import CoordinatorStatus, NodeStatus, RoundLine
from pcmoe_operator.units import duration, loss, size

STILL_SECONDS = 30.0
"""A plain view that had nothing to tell for so long says what it waits for."""
COMING = ("RESTARTING", "STARTING", "LOADING", "CONNECTING")
"""Phases of a participant that doesn't train yet, or not yet again, and isn't waiting for somebody else."""
AT_WORK = ("TRAINING", "EVALUATING", "CHECKPOINT")


@dataclass(frozen=True, kw_only=True, slots=True)
class MemberState:
    """One participant at one moment."""

    name: str
    exit_code: int | None
    """None until it has ended for good."""
    restarting: bool = False
    """Whether it has ended, and is about to be started again."""
    restarts: int = 0
    """How often it was started again in this run."""
    status: NodeStatus | None
    new_rounds: tuple[RoundLine, ...]
    """Rounds finished since the last update."""

    @property
    def phase(self) -> str:
        """Its phase; the process's end counts more than its last status."""
        if self.exit_code is not None:
            return "DONE" if self.exit_code == 0 else f"ENDED {self.exit_code}"
        if self.restarting:
            return "RESTARTING"
        return self.status.phase if self.status else "STARTING"

    @property
    def left_behind(self) -> bool:
        """Whether it trained, lost somebody, and waits for them."""
        return self.phase == "WAITING" and self.status is not None and self.status.view > 0

    @property
    def returning(self) -> bool:
        """Whether it was there, died, and isn't back yet; its peers may not even have noticed."""
        return self.restarts > 0 and self.phase in COMING


@dataclass(frozen=True, kw_only=True, slots=True)
class CoordinatorState:
    """The coordinator at one moment."""

    exit_code: int | None = None
    """None until it has ended for good."""
    restarting: bool = False
    restarts: int = 0
    stopped: bool = False
    """Whether the run needs it no more."""
    status: CoordinatorStatus | None = None
    """None before its first answer."""

    @property
    def phase(self) -> str:
        """What it does."""
        if self.stopped:
            return "STOPPED"
        if self.exit_code is not None:
            return f"ENDED {self.exit_code}"
        if self.restarting:
            return "RESTARTING"
        return self.status.state if self.status else "STARTING"

    @property
    def answers(self) -> bool:
        """Whether nodes can reach it, as far as we know."""
        return self.phase not in COMING and self.exit_code is None


class View(Protocol):
    """Shows a run. Entered when it starts, left when it ends."""

    def __enter__(self) -> "View": ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def update(self, members: Sequence[MemberState], coordinator: CoordinatorState) -> None:
        """Show this moment; called a few times a second."""

    def say(self, sentence: str) -> None:
        """Tell something once."""


def waiting_for(members: Sequence[MemberState], coordinator: CoordinatorState) -> str:
    """What holds up a run that doesn't train, or nothing."""
    if any(m.left_behind or m.returning for m in members):
        return f"waiting for {absent(members, coordinator)} to come back"
    early = [m.name for m in members if m.phase in ("RESTARTING", "STARTING", "LOADING")]
    if early:
        return f"loading the model: {', '.join(early)}"
    joining = [m for m in members if m.phase == "CONNECTING" and m.status]
    waiting = any(m.phase == "WAITING" for m in members)
    if (joining or waiting) and not coordinator.answers:
        return f"waiting for the {COORDINATOR}"
    if joining:
        links = ", ".join(
            f"{m.name} {m.status.peers_connected}/{m.status.peers}" for m in joining if m.status
        )
        return f"connecting to each other: {links}"
    return f"waiting for {absent(members, coordinator)}" if waiting else ""


def absent(members: Sequence[MemberState], coordinator: CoordinatorState) -> str:
    """Whom those wait for who wait: whose process isn't back, or else whom the coordinator misses."""
    names = [m.name for m in members if m.phase in COMING or m.exit_code]
    if not names and not coordinator.answers:
        return f"the {COORDINATOR}"
    if not names and coordinator.status:
        names = list(coordinator.status.missing)
    return ", ".join(names) or "the others"


class Progress:
    """Done and remaining: the share of steps of whoever is furthest behind, and an estimate."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._share = 0.0
        self._began: tuple[float, int] | None = None

    def measure(self, members: Sequence[MemberState]) -> tuple[float, float | None]:
        """Share done in [0, 1], and seconds left where an estimate is possible.

        While somebody starts again, the share stays and there is no estimate; going back to before the first step
        that was seen begins a new one.
        """
        known = [m.status for m in members if m.status and m.status.steps and m.phase not in COMING]
        if len(known) < len(members) or not known:
            return self._share, None
        last = min(known, key=lambda status: status.step)
        self._share = last.step / last.steps
        if self._began is None or last.step < self._began[1]:
            self._began = (self._clock(), last.step)
        began, first = self._began
        done = last.step - first
        left = (last.steps - last.step) * (self._clock() - began) / done if done > 0 else None
        return self._share, left


class LiveView:
    """A table of the participants with a progress bar, renewed in place; it stays when the run ends."""

    def __init__(self, console: Console, title: str) -> None:
        self._title = title
        self._progress = Progress()
        self._started = time.monotonic()
        self._live = Live(console=console, refresh_per_second=4, transient=False)
        self._console = console
        self._last: dict[str, RoundLine] = {}

    def __enter__(self) -> "LiveView":
        self._live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.__exit__(kind, error, trace)

    def update(self, members: Sequence[MemberState], coordinator: CoordinatorState) -> None:
        """Draw the table anew."""
        members = [self._with_last_round(member) for member in members]
        share, left = self._progress.measure(members)
        elapsed = f"{duration(time.monotonic() - self._started)} elapsed"
        note = waiting_for(members, coordinator) or (f"about {duration(left)} left" if left else "")
        bar = Table.grid(padding=(0, 1))
        bar.add_row(
            ProgressBar(total=1.0, completed=share, width=30),
            f"{share:4.0%}",
            Text(" · ".join(filter(None, [elapsed, note])), style="dim"),
        )
        columns = COLUMNS if self._console.width >= WIDE else NARROW_COLUMNS
        self._live.update(Group(status_table(self._title, members, coordinator, columns), bar))

    def say(self, sentence: str) -> None:
        """Print above the table."""
        self._console.print(Text(sentence))

    def _with_last_round(self, member: MemberState) -> MemberState:
        """A node that ends leaves a status from before its last round; what it wrote down is newer."""
        if member.new_rounds:
            self._last[member.name] = member.new_rounds[-1]
        line, status = self._last.get(member.name), member.status
        if member.exit_code is None or line is None or status is None or line.round < status.round:
            return member
        held_out = status.held_out_loss if line.held_out_loss is None else line.held_out_loss
        newer = replace(status, round=line.round, step=max(line.step, status.step), held_out_loss=held_out)
        return replace(member, status=newer)


COLUMNS: dict[str, Callable[[NodeStatus], str]] = {
    "round": lambda status: f"{status.round}/{status.rounds}",
    "step": lambda status: f"{status.step}/{status.steps}",
    "loss": lambda status: loss(status.train_loss),
    "held-out": lambda status: loss(status.held_out_loss),
    "tokens/s": lambda status: f"{status.tokens_per_second:,.0f}",
    "sent": lambda status: size(status.bytes_sent),
    "received": lambda status: size(status.bytes_received),
    "memory": lambda status: size(status.rss_bytes),
}
WIDE = 112
"""Terminals of fewer columns get fewer."""
NARROW_COLUMNS = {heading: COLUMNS[heading] for heading in ("round", "loss", "held-out", "tokens/s", "sent")}


def status_table(
    title: str,
    members: Sequence[MemberState],
    coordinator: CoordinatorState,
    columns: Mapping[str, Callable[[NodeStatus], str]],
) -> RenderableType:
    """The table of one moment; how often somebody was started again is in it once anybody was."""
    table = Table(title=title, title_justify="left", title_style="bold", expand=False)
    table.add_column("participant", style="bold", no_wrap=True)
    table.add_column("phase", no_wrap=True)
    restarted = coordinator.restarts + sum(member.restarts for member in members) > 0
    for heading in (*(("restarts",) if restarted else ()), *columns):
        table.add_column(heading, justify="right", no_wrap=True)
    for member in members:
        status = member.status
        restarts = [str(member.restarts)] if restarted else []
        cells = [cell(status) if status else "" for cell in columns.values()]
        table.add_row(member.name, Text(member.phase, style=_style(member)), *restarts, *cells)
    restarts = [str(coordinator.restarts)] if restarted else []
    table.add_row(
        Text(COORDINATOR, style="dim"), Text(coordinator.phase, style=_style(coordinator, "dim")), *restarts
    )
    return table


def _style(state: MemberState | CoordinatorState, usual: str = "yellow") -> str:
    if state.phase == "RESTARTING" or state.phase.startswith("ENDED"):
        return "red"
    return {"DONE": "green", "TRAINING": "cyan", "EVALUATING": "cyan"}.get(state.phase, usual)


class PlainView:
    """One line per participant and round, one per change of phase, and a word when nothing happens long."""

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console
        self._clock = clock
        self._phases: dict[str, str] = {}
        self._held_up: set[str] = set()
        self._reason = ""
        self._spoke = clock()

    def __enter__(self) -> "PlainView":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing to undo."""

    def update(self, members: Sequence[MemberState], coordinator: CoordinatorState) -> None:
        """Tell what is new."""
        for member in members:
            for line in member.new_rounds:
                self.say(f"{member.name}: {round_sentence(line)}")
            before = self._phases.get(member.name)
            if member.phase != before:
                self._phases[member.name] = member.phase
                self._tell(f"{member.name}: ", self._news(before, member, absent(members, coordinator)))
        if coordinator.phase != self._phases.get(COORDINATOR):
            self._phases[COORDINATOR] = coordinator.phase
            self._tell(f"{COORDINATOR}: ", _ended(coordinator))
        self._tell_reason(coordinator.status)
        if self._clock() - self._spoke > STILL_SECONDS:
            self.say(f"still {waiting_for(members, coordinator) or _training(members)}")

    def _news(self, before: str | None, member: MemberState, absent: str) -> str:
        """What to tell of a participant whose phase is new, or nothing."""
        if member.exit_code:
            return _ended(member)
        if member.left_behind or (before in AT_WORK and member.phase not in (*AT_WORK, "DONE")):
            self._held_up.add(member.name)
        if member.left_behind:
            return f"waits for {absent} to come back"
        if member.phase in AT_WORK and member.name in self._held_up and member.status:
            self._held_up.discard(member.name)
            return f"goes on, {member.status.round} of {member.status.rounds} rounds done"
        return "" if before == "WAITING" and member.phase == "CONNECTING" else _TOLD.get(member.phase, "")

    def _tell(self, who: str, news: str) -> None:
        if news:
            self.say(who + news)

    def _tell_reason(self, status: CoordinatorStatus | None) -> None:
        """Why somebody waits, once: what the coordinator heard from whoever noticed it."""
        if self._held_up and status and status.reason != self._reason:
            self._reason = status.reason
            self._tell(f"{COORDINATOR}: ", status.reason)

    def say(self, sentence: str) -> None:
        """One line with the time of day."""
        self._spoke = self._clock()
        now = datetime.now().astimezone().strftime("%H:%M:%S")
        self._console.print(f"{now} {sentence}", markup=False, highlight=False, soft_wrap=True)


_TOLD = {
    "LOADING": "loads its model and data",
    "WAITING": "waits for the others",
    "CONNECTING": "waits for the others",
    "DONE": "is done",
}


def _training(members: Sequence[MemberState]) -> str:
    known = [m.status for m in members if m.status]
    last = min(known, key=lambda status: status.step, default=None)
    return f"training: step {last.step} of {last.steps}" if last else "training"


def _ended(state: MemberState | CoordinatorState) -> str:
    """That somebody has failed for good, or nothing."""
    if not state.phase.startswith("ENDED") or not state.exit_code:
        return ""
    return f"ended with exit code {state.exit_code}: {meaning_of(state.exit_code)}"


def round_sentence(line: RoundLine) -> str:
    """A finished round in one line."""
    held_out = f"held-out loss {loss(line.held_out_loss)}" if line.held_out_loss is not None else ""
    if line.round == 0:
        return f"before training: {held_out or 'not evaluated'}"
    speed = f"{line.tokens / line.seconds:,.0f} tokens/s" if line.seconds > 0 else ""
    parts = [
        f"training loss {loss(line.train_loss)}",
        held_out,
        speed,
        f"sent {size(line.bytes_sent)}, received {size(line.bytes_received)}",
        duration(line.seconds),
    ]
    return f"round {line.round} (step {line.step}): " + ", ".join(filter(None, parts))

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

from pcmoe_operator.local.failure import meaning_of
from pcmoe_operator.local.watch import NodeStatus, RoundLine
from pcmoe_operator.units import duration, loss, size

STILL_SECONDS = 30.0
"""A plain view that had nothing to tell for so long says what it waits for."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MemberState:
    """One participant at one moment."""

    name: str
    exit_code: int | None
    """None while its process runs."""
    status: NodeStatus | None
    new_rounds: tuple[RoundLine, ...]
    """Rounds finished since the last update."""

    @property
    def phase(self) -> str:
        """Its phase; the process's end counts more than its last status."""
        if self.exit_code is not None:
            return "DONE" if self.exit_code == 0 else f"ENDED {self.exit_code}"
        return self.status.phase if self.status else "STARTING"


class View(Protocol):
    """Shows a run. Entered when it starts, left when it ends."""

    def __enter__(self) -> "View": ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def update(self, members: Sequence[MemberState]) -> None:
        """Show this moment; called a few times a second."""

    def say(self, sentence: str) -> None:
        """Tell something once."""


def waiting_for(members: Sequence[MemberState]) -> str:
    """What holds up a run that doesn't train yet, or nothing."""
    early = [m.name for m in members if m.phase in ("STARTING", "LOADING")]
    if early:
        return f"loading the model: {', '.join(early)}"
    joining = [m for m in members if m.phase == "CONNECTING" and m.status]
    if joining:
        links = ", ".join(
            f"{m.name} {m.status.peers_connected}/{m.status.peers}" for m in joining if m.status
        )
        return f"connecting to each other: {links}"
    return ""


class Progress:
    """Done and remaining: the share of steps of whoever is furthest behind, and an estimate."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._began: tuple[float, int] | None = None

    def measure(self, members: Sequence[MemberState]) -> tuple[float, float | None]:
        """Share done in [0, 1], and seconds left where an estimate is possible."""
        known = [m.status for m in members if m.status and m.status.steps]
        if len(known) < len(members) or not known:
            return 0.0, None
        last = min(known, key=lambda status: status.step)
        if self._began is None:
            self._began = (self._clock(), last.step)
        began, first = self._began
        done = last.step - first
        left = (last.steps - last.step) * (self._clock() - began) / done if done > 0 else None
        return last.step / last.steps, left


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

    def update(self, members: Sequence[MemberState]) -> None:
        """Draw the table anew."""
        members = [self._with_last_round(member) for member in members]
        share, left = self._progress.measure(members)
        elapsed = f"{duration(time.monotonic() - self._started)} elapsed"
        note = waiting_for(members) or (f"about {duration(left)} left" if left else "")
        bar = Table.grid(padding=(0, 1))
        bar.add_row(
            ProgressBar(total=1.0, completed=share, width=30),
            f"{share:4.0%}",
            Text(" · ".join(filter(None, [elapsed, note])), style="dim"),
        )
        columns = COLUMNS if self._console.width >= WIDE else NARROW_COLUMNS
        self._live.update(Group(status_table(self._title, members, columns), bar))

    def say(self, sentence: str) -> None:
        """Print above the table."""
        self._console.print(Text(sentence))

    def _with_last_round(self, member: MemberState) -> MemberState:
        """A node that ends leaves a status from before its last round; what it wrote down is newer."""
        if member.new_rounds:
            self._last[member.name] = member.new_rounds[-1]
        line, status = self._last.get(member.name), member.status
        if line is None or status is None or line.round < status.round:
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
    title: str, members: Sequence[MemberState], columns: Mapping[str, Callable[[NodeStatus], str]]
) -> RenderableType:
    """The table of one moment."""
    table = Table(title=title, title_justify="left", title_style="bold", expand=False)
    table.add_column("participant", style="bold", no_wrap=True)
    table.add_column("phase", no_wrap=True)
    for heading in columns:
        table.add_column(heading, justify="right", no_wrap=True)
    for member in members:
        status = member.status
        cells = [cell(status) if status else "" for cell in columns.values()]
        table.add_row(member.name, Text(member.phase, style=_style(member)), *cells)
    return table


def _style(member: MemberState) -> str:
    if member.exit_code:
        return "red"
    return {"DONE": "green", "TRAINING": "cyan", "EVALUATING": "cyan"}.get(member.phase, "yellow")


class PlainView:
    """One line per participant and round, one per change of phase, and a word when nothing happens long."""

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console
        self._clock = clock
        self._phases: dict[str, str] = {}
        self._spoke = clock()

    def __enter__(self) -> "PlainView":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing to undo."""

    def update(self, members: Sequence[MemberState]) -> None:
        """Tell what is new."""
        for member in members:
            for line in member.new_rounds:
                self.say(f"{member.name}: {round_sentence(line)}")
            if (
                member.phase != self._phases.get(member.name)
                and member.phase in _TOLD
                or _just_failed(member, self._phases)
            ):
                self.say(f"{member.name}: {_phase_sentence(member)}")
            self._phases[member.name] = member.phase
        if self._clock() - self._spoke > STILL_SECONDS:
            self.say(f"still {waiting_for(members) or _training(members)}")

    def say(self, sentence: str) -> None:
        """One line with the time of day."""
        self._spoke = self._clock()
        now = datetime.now().astimezone().strftime("%H:%M:%S")
        self._console.print(f"{now} {sentence}", markup=False, highlight=False, soft_wrap=True)


_TOLD = {"LOADING": "loads its model and data", "CONNECTING": "waits for the others", "DONE": "is done"}


def _training(members: Sequence[MemberState]) -> str:
    known = [m.status for m in members if m.status]
    last = min(known, key=lambda status: status.step, default=None)
    return f"training: step {last.step} of {last.steps}" if last else "training"


def _just_failed(member: MemberState, before: dict[str, str]) -> bool:
    return bool(member.exit_code) and before.get(member.name) != member.phase


def _phase_sentence(member: MemberState) -> str:
    if member.exit_code:
        return f"ended with exit code {member.exit_code}: {meaning_of(member.exit_code)}"
    return _TOLD[member.phase]


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

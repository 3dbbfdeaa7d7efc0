"""After a local run: what each participant gets alone, and one process over everybody's data, for comparison.

Each baseline is a process of `pcmoe_node.baselines` that reads the participants' own configurations, and so trains on
the same tokens in the same order. The union is possible only because all data lie on this machine.
"""

import hashlib
import json
import sys
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pcmoe_node.baselines.settings import Kind
from pcmoe_operator.errors import UsageError
from pcmoe_operator.local.failure import Failure, last_error_line
from pcmoe_operator.local.folder import PRIVATE_FOLDER
from pcmoe_operator.local.prepare import PreparedRun
from pcmoe_operator.local.processes import Member, MemberProcess, stop_all
from pcmoe_operator.local.signals import StopRequest, stop_signals
from pcmoe_operator.local.watch import RoundsTail
from pcmoe_operator.pki import write_private
from pcmoe_operator.units import duration, loss

COMMAND = (sys.executable, "-m", "pcmoe_node.baselines")
FOLDER = "baselines"
DONE = "done.json"
AT_ONCE = 2
"""Processes at a time, where there are cores for them: each may hold the whole model."""
TICK_SECONDS = 0.25
STILL_SECONDS = 30.0
"""So often it is told how far those are that run."""
COMPARED = (
    "model",
    "placement",
    "training",
    "dataset",
    "order_secret_file",
    "gradient_checkpointing",
    "device",
)
"""Parts of a configuration that a baseline depends on. One made with others is made anew."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Baseline:
    """One process to run, and where its figures go."""

    kind: Kind
    names: tuple[str, ...]
    """Participants whose data it trains on."""
    member: Member
    settings: str
    """Digest of what it depends on."""

    @property
    def title(self) -> str:
        """What to call it."""
        return f"baseline {self.kind}" + (f" of {self.names[0]}" if self.kind is not Kind.UNION else "")

    @property
    def done(self) -> bool:
        """Whether it was finished, with the settings of today."""
        try:
            return bool(json.loads((self.member.folder / DONE).read_text())["settings"] == self.settings)
        except (OSError, ValueError, KeyError, TypeError):
            return False

    def start(self) -> MemberProcess:
        """Begin it, from the beginning."""
        folder = self.member.folder
        folder.mkdir(mode=PRIVATE_FOLDER, parents=True, exist_ok=True)
        (folder / DONE).unlink(missing_ok=True)
        self.member.log_file.unlink(missing_ok=True)
        return MemberProcess(self.member)

    def finish(self) -> None:
        """Remember that it is done."""
        write_private(self.member.folder / DONE, json.dumps({"settings": self.settings}) + "\n")

    def tails(self, output: Path) -> dict[str, RoundsTail]:
        """The journals that it writes, by participant."""
        return {name: RoundsTail(output / self.kind / name / "log" / "rounds.jsonl") for name in self.names}


def baselines_of(prepared: PreparedRun) -> list[Baseline]:
    """Every baseline of a run, the longest first. Its configurations must be written."""
    names = tuple(member.name for member in prepared.crew.members)
    threads = min(member.threads for member in prepared.crew.members)
    alone = [(kind, (name,)) for kind in (Kind.ALONE_ALL, Kind.ALONE_SHARD) for name in names]
    return [_baseline(prepared, threads, kind, of) for kind, of in [(Kind.UNION, names), *alone]]


def run_baselines(prepared: PreparedRun, say: Callable[[str], None]) -> int | None:
    """Run those that are missing and tell how each went; the signal that stopped them, if one did.

    One that fails is told like any other, and the others go on. No process is left when this returns.
    """
    every = baselines_of(prepared)
    missing = deque(baseline for baseline in every if not baseline.done)
    at_once = max(1, min(AT_ONCE, prepared.folder.load().cores // every[0].member.threads))
    if not missing:
        say(f"All {len(every)} baselines are there already")
        return None
    say(
        f"{len(missing)} of {len(every)} baselines to run, {at_once} at a time: {prepared.folder.path / FOLDER}"
    )
    running: list[_Running] = []
    with stop_signals() as request:
        try:
            _work_off(missing, running, at_once, say, request)
        finally:
            stop_all([one.process for one in running])
        return request.signal


class _Running:
    """A baseline under way."""

    def __init__(self, baseline: Baseline) -> None:
        self.baseline = baseline
        self.process = baseline.start()
        self.tails = baseline.tails(baseline.member.folder.parents[len(baseline.names) == 1])
        self.began = time.monotonic()

    @property
    def round(self) -> int:
        return max(tail.highest() for tail in self.tails.values())

    def ended(self, code: int) -> str:
        """What to tell of its end."""
        title, log = self.baseline.title, self.baseline.member.log_file
        if code:
            words = last_error_line(log, self.process.log_start)
            return Failure(participant=title, exit_code=code, last_line=words, log_file=log).sentence()
        self.baseline.finish()
        losses = {
            name: [line.held_out_loss for line in tail.new() if line.held_out_loss is not None]
            for name, tail in self.tails.items()
        }
        shown = ", ".join(f"{name} {loss(found[-1] if found else None)}" for name, found in losses.items())
        return f"{title}: held-out loss {shown} ({duration(time.monotonic() - self.began)})"


def _work_off(
    missing: deque[Baseline],
    running: list[_Running],
    at_once: int,
    say: Callable[[str], None],
    request: StopRequest,
) -> None:
    """Start, wait, tell, until none is left or somebody asks to stop; `running` are those to be stopped then."""
    spoke = time.monotonic()
    while (missing or running) and request.signal is None:
        while missing and len(running) < at_once:
            running.append(_Running(missing.popleft()))
        for one in list(running):
            code = one.process.poll()
            if code is not None:
                running.remove(one)
                say(one.ended(code))
                spoke = time.monotonic()
        if running and time.monotonic() - spoke > STILL_SECONDS:
            say("; ".join(f"{one.baseline.title}: round {one.round}" for one in running))
            spoke = time.monotonic()
        request.wait(TICK_SECONDS)


def _baseline(prepared: PreparedRun, threads: int, kind: Kind, names: tuple[str, ...]) -> Baseline:
    folder, output = prepared.folder, prepared.folder.path / FOLDER
    own = output / kind if kind is Kind.UNION else output / kind / names[0]
    given = [argument for name in names for argument in ("--config", str(folder.config(name)))]
    return Baseline(
        kind=kind,
        names=names,
        member=Member(
            name=f"{kind} {' '.join(names)}",
            folder=own,
            status_url="",
            command=(*COMMAND, "--kind", kind, *given, "--output", str(output)),
            threads=threads,
        ),
        settings=_digest([folder.config(name) for name in names]),
    )


def _digest(configs: list[Path]) -> str:
    try:
        told = [json.loads(path.read_text()) for path in configs]
        parts = [{key: one[key] for key in COMPARED} for one in told]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{configs[0]}: can't be used for a baseline: {type(error).__name__}") from error
    return "sha256:" + hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

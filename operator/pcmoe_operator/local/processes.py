"""Processes of a local run: started in their own session, ended by SIGTERM, and by SIGKILL where that doesn't help."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pcmoe_operator.constants import COORDINATOR
from pcmoe_operator.local import tether
from pcmoe_operator.local.certificates import Leaf

STOP_SECONDS = 10.0
"""So long a node may take to end after SIGTERM."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Member:
    """One participant of a local run, or its coordinator, as the runner sees it."""

    name: str
    folder: Path
    """Its folder in the run: configuration, certificates, log, checkpoints."""
    status_url: str
    command: tuple[str, ...]
    """What to start: an absolute path and its arguments."""
    threads: int
    """Threads of one numeric operation; also given to libraries that read them from the environment."""

    @property
    def log_file(self) -> Path:
        """Everything its process prints, over all its lives."""
        return self.folder / ("coordinator.log" if self.name == COORDINATOR else "node.log")

    @property
    def rounds_file(self) -> Path:
        """One JSON object per finished round of a participant."""
        return self.folder / "log" / "rounds.jsonl"


@dataclass(frozen=True, kw_only=True, slots=True)
class Crew:
    """Everybody in a local run, and what keeps them going."""

    members: tuple[Member, ...]
    """The participants."""
    coordinator: Member
    on_peer_loss: Literal["Fail", "Wait"]
    leaves: tuple[Leaf, ...] = ()
    """Their certificates."""


class MemberProcess:
    """One life of a member. `poll` is cheap and may be called often."""

    def __init__(self, member: Member) -> None:
        """Start it; its output is added to the end of its log."""
        self.member = member
        self.told_to_stop = False
        with member.log_file.open("ab") as log:
            self.log_start = log.seek(0, os.SEEK_END)
            """Where in the log this life begins."""
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", tether.__file__, str(os.getpid()), *member.command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C in the terminal reaches the runner alone
                env=_environment(member.threads, os.environ),
            )

    @property
    def pid(self) -> int:
        """Process number."""
        return self._process.pid

    def poll(self) -> int | None:
        """Exit code, `128 + n` for signal n, or None while it runs."""
        code = self._process.poll()
        return 128 - code if code is not None and code < 0 else code

    def terminate(self) -> None:
        """Ask it to stop."""
        if self.poll() is None:
            self.told_to_stop = True
            self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """End it, and what it may have started, now."""
        self.told_to_stop = True
        self._signal(signal.SIGKILL)
        self._process.wait()

    def wait(self, deadline: float) -> bool:
        """Whether it ended before `deadline` (monotonic seconds)."""
        try:
            self._process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            return False
        return True

    def _signal(self, number: int) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.pid, number)


def stop_all(nodes: Iterable[MemberProcess], seconds: float = STOP_SECONDS) -> None:
    """End every process: SIGTERM to all, `seconds` for all together, then SIGKILL to the rest."""
    nodes = list(nodes)
    for node in nodes:
        node.terminate()
    deadline = time.monotonic() + seconds
    for node in nodes:
        if not node.wait(deadline):
            node.kill()


def _environment(threads: int, inherited: Mapping[str, str]) -> dict[str, str]:
    """A process's environment: unbuffered output, `threads` for numeric libraries, no model hub."""
    return {
        **inherited,
        "PYTHONUNBUFFERED": "1",
        "OMP_NUM_THREADS": str(threads),
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }

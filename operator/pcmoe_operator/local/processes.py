"""Node processes: started in their own session, ended by SIGTERM, and by SIGKILL where that doesn't help."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pcmoe_operator.local import tether

STOP_SECONDS = 10.0
"""So long a node may take to end after SIGTERM."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Member:
    """One participant of a local run, as the runner sees it."""

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
        """Everything the node prints."""
        return self.folder / "node.log"

    @property
    def rounds_file(self) -> Path:
        """One JSON object per finished round."""
        return self.folder / "log" / "rounds.jsonl"


class NodeProcess:
    """A running node. `poll` is cheap and may be called often."""

    def __init__(self, member: Member) -> None:
        """Start the node; its output is added to the end of its log."""
        self.member = member
        self.told_to_stop = False
        self.ended_at: float | None = None
        """Monotonic time at which the end was seen."""
        with member.log_file.open("ab") as log:
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
        if code is None:
            return None
        if self.ended_at is None:
            self.ended_at = time.monotonic()
        return 128 - code if code < 0 else code

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
        self.poll()

    def wait(self, deadline: float) -> bool:
        """Whether it ended before `deadline` (monotonic seconds)."""
        try:
            self._process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            return False
        self.poll()
        return True

    def _signal(self, number: int) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.pid, number)


def stop_all(nodes: Iterable[NodeProcess], seconds: float = STOP_SECONDS) -> None:
    """End every node: SIGTERM to all, `seconds` for all together, then SIGKILL to the rest."""
    nodes = list(nodes)
    for node in nodes:
        node.terminate()
    deadline = time.monotonic() + seconds
    for node in nodes:
        if not node.wait(deadline):
            node.kill()


def _environment(threads: int, inherited: Mapping[str, str]) -> dict[str, str]:
    """The node's environment: unbuffered output, `threads` for numeric libraries, no model hub."""
    return {
        **inherited,
        "PYTHONUNBUFFERED": "1",
        "OMP_NUM_THREADS": str(threads),
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }

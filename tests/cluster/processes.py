"""A process of the control plane: with a log, a deadline for becoming ready, and no life beyond that of its test."""

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from ssl import SSLContext

from tests.cluster.errors import ProcessError

from pcmoe_operator.local import tether

TAIL_LINES = 25
STOP_SECONDS = 20.0


class Process:
    """One running program. Linux kills it when the thread that started it ends, however that comes about."""

    def __init__(self, name: str, command: Sequence[str | Path], folder: Path) -> None:
        self.name = name
        self.log = folder / f"{name}.log"
        self._command, self._folder = command, folder
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-I", tether.__file__, str(os.getpid()), *map(str, command)],
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                # A proxy between a test and its own loopback is never wanted, nor is the user's own cluster.
                env={
                    key: value
                    for key, value in os.environ.items()
                    if key.upper() not in ("HTTP_PROXY", "HTTPS_PROXY", "KUBECONFIG")
                },
            )

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether it still runs."""
        return self._process.poll() is None

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        self._process.kill()
        self._process.wait(STOP_SECONDS)

    def again(self) -> "Process":
        """The same program once more, with the same log."""
        return Process(self.name, self._command, self._folder)

    def tail(self) -> str:
        """The end of its log, and where that lies."""
        lines = self.log.read_text(errors="replace").splitlines()[-TAIL_LINES:]
        return "\n".join([f"the end of {self.log}:", *lines])

    def wait_ready(self, ready: Callable[[], bool], seconds: float) -> None:
        """Ask until it is ready.

        Raises:
            ProcessError: it ended, or was not ready in time.
        """
        end = time.monotonic() + seconds
        while not ready():
            if not self.running:
                raise ProcessError(f"{self.name} ended with {self._process.returncode}; {self.tail()}")
            if time.monotonic() > end:
                raise ProcessError(f"{self.name} was not ready within {seconds:g} s; {self.tail()}")
            time.sleep(0.05)  # between two looks; the deadline is above


def answers(url: str, context: SSLContext, token: str | None = None) -> bool:
    """Whether an address answers with 200, to somebody who trusts only what `context` does."""
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    opener = urllib.request.build_opener(
        urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context)
    )
    try:
        with opener.open(urllib.request.Request(url, headers=headers), timeout=5) as answer:
            return bool(answer.status == 200)
    except (OSError, urllib.error.URLError):
        return False


def free_ports(count: int) -> list[int]:
    """So many loopback ports that nobody listens on, all different. Another process may still be faster: try again."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]

"""Processes that begin where importing a node ends: they are forked off one that has imported it.

Torch and transformers take three seconds of a core to import, more than most tests of a few steps take after it, and
the suite starts hundreds of nodes. What is forked is a process like any other, with a number, log, signals and exit
code of its own, and runs the same `__main__`. Whether that starts by itself is tested where interpreters are started
(tests/training/test_node_cli.py, tests/faults/test_pcmoe_run.py, tests/e2e); benchmarks start them too.
"""

import atexit
import functools
import gc
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol, TypedDict

START_SECONDS = 90.0
"""For the import, on a busy machine."""
PACKET = 1 << 16


class Asked(TypedDict):
    """What a nursery is asked for."""

    arguments: list[str]
    env: dict[str, str]


class Spawned(Protocol):
    """A process that was started, as `subprocess.Popen` is one."""

    pid: int

    def poll(self) -> int | None:
        """Exit code (less than 0: the signal that ended it), or None while it runs."""

    def wait(self, timeout: float | None = None) -> int:
        """The same once it has ended; raises `subprocess.TimeoutExpired`."""

    def send_signal(self, sig: int) -> None:
        """Send a signal, if it runs."""

    def kill(self) -> None:
        """SIGKILL."""


Spawn = Callable[[Sequence[str], Path, Mapping[str, str]], Spawned]
"""How a process is started: what follows `python`, its log, and what is added to its environment."""


def interpreter(arguments: Sequence[str], log: Path, env: Mapping[str, str]) -> Spawned:
    """Start a Python of its own; `log` gets what it says."""
    with log.open("ab") as file:
        command = [sys.executable, *arguments]
        return subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env={**os.environ, **env})


def forked(arguments: Sequence[str], log: Path, env: Mapping[str, str]) -> Spawned:
    """The same, forked off this process's nursery. `arguments`: `-m`, a module and its own, or a script and its own."""
    return _nursery().start(arguments, log, {**os.environ, **env})


@functools.cache
def _nursery() -> "Nursery":
    made = Nursery()
    atexit.register(made.close)
    return made


class Nursery:
    """The process that forks, and what it has told."""

    def __init__(self) -> None:
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        command = [sys.executable, __file__, str(theirs.fileno())]
        env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
        self._process = subprocess.Popen(
            command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, env=env
        )
        theirs.close()
        self._ended: dict[int, int] = {}

    def start(self, arguments: Sequence[str], log: Path, env: Mapping[str, str]) -> "Child":
        """Fork one."""
        with log.open("ab") as file:
            asked = Asked(arguments=list(arguments), env=dict(env))
            socket.send_fds(self._control, [json.dumps(asked).encode()], [file.fileno()])
        end = time.monotonic() + START_SECONDS
        while True:
            assert select.select([self._control], [], [], end - time.monotonic())[0], (
                "the nursery says nothing"
            )
            if (pid := self._hear()) is not None:
                return Child(self, pid)

    def ended(self, pid: int) -> int | None:
        """How one has ended, if it has."""
        while pid not in self._ended and select.select([self._control], [], [], 0)[0]:
            self._hear()
        return self._ended.get(pid)

    def close(self) -> None:
        """End it; it takes along what still runs."""
        self._control.close()
        self._process.wait(20)

    def _hear(self) -> int | None:
        """Take up one message; the number of a new process, if it tells of one."""
        said = self._control.recv(PACKET)
        assert said, f"the nursery has ended with {self._process.wait(5)}"
        started, pid, code = json.loads(said)
        if started:
            return int(pid)
        self._ended[pid] = code
        return None


class Child:
    """One process of a nursery."""

    def __init__(self, nursery: Nursery, pid: int) -> None:
        self._nursery = nursery
        self.pid = pid

    def poll(self) -> int | None:
        """Its exit code, or None while it runs."""
        return self._nursery.ended(self.pid)

    def wait(self, timeout: float | None = None) -> int:
        """Its exit code once it has ended."""
        end = time.monotonic() + (timeout or START_SECONDS)
        while (code := self.poll()) is None:
            if time.monotonic() > end:
                raise subprocess.TimeoutExpired(str(self.pid), timeout or START_SECONDS)
            time.sleep(0.01)  # between two looks; the deadline is above
        return code

    def send_signal(self, sig: int) -> None:
        """Send a signal, if it runs."""
        if self.poll() is None:
            os.kill(self.pid, sig)

    def kill(self) -> None:
        """SIGKILL."""
        self.send_signal(signal.SIGKILL)


# The nursery's own process


def main() -> None:
    """Fork what is asked for, and tell how each ends, until the one that asks is gone."""
    control = socket.socket(fileno=int(sys.argv[1]))
    sys.path.insert(0, str(Path(__file__).parents[2]))
    import pcmoe_node.__main__
    import pcmoe_node.coordination.__main__  # noqa: F401

    gc.freeze()
    hears, tells = os.pipe()
    os.set_blocking(tells, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.set_wakeup_fd(tells)
    children: set[int] = set()
    while True:
        ready = select.select([control.fileno(), hears], [], [])[0]
        if hears in ready:
            os.read(hears, PACKET)
            for pid, code in _reaped():
                children.discard(pid)
                control.send(json.dumps([False, pid, code]).encode())
        if control.fileno() in ready:
            asked, files, _, _ = socket.recv_fds(control, PACKET, 1)
            if not asked:
                break
            children.add(pid := _fork(json.loads(asked), files[0], (control.fileno(), hears, tells)))
            os.close(files[0])
            control.send(json.dumps([True, pid, 0]).encode())
    for pid in children:
        os.kill(pid, signal.SIGKILL)


def _reaped() -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return found
        if pid == 0:
            return found
        found.append((pid, os.waitstatus_to_exitcode(status)))


def _fork(asked: Asked, log: int, own: Sequence[int]) -> int:
    threads = os.listdir("/proc/self/task")
    assert len(threads) == 1, f"a process with {len(threads)} threads can't be forked"
    pid = os.fork()
    if pid == 0:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for target in (1, 2):
            os.dup2(log, target)
        for file in (*own, log):
            os.close(file)
        _run(asked)
    return pid


def _run(asked: Asked) -> None:
    """Be the program that is asked for, and end with its exit code."""
    code = 1
    try:
        [first, *rest], env = asked["arguments"], asked["env"]
        os.environ.clear()
        os.environ.update(env)
        if first == "-m":
            sys.argv = rest
            runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
        else:
            sys.argv = [first, *rest]
            runpy.run_path(first, run_name="__main__")
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    main()

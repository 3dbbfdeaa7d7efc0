"""Lanes: one stack per travelling micro-batch, of which only the one that was given the turn runs.

A model's forward is somebody else's code, so a micro-batch that waits for a host must keep its stack. Each lane is
a thread, but never runs beside another: the conductor gives a lane the turn, and gets it back when the lane waits
or ends. So the node's logic reads as if there were one thread, and no lock is needed anywhere.
"""

import threading
from collections.abc import Callable
from typing import Protocol

import torch


class Awaited(Protocol):
    """Something a lane waits for."""

    @property
    def ready(self) -> bool:
        """Whether the lane may go on."""


class _Cancelled(BaseException):
    """Unwinds a lane whose run has ended; not an `Exception`, so that no model code swallows it."""


class Lane:
    """Runs `work` on its own stack, in turns."""

    def __init__(self, work: Callable[[], None], name: str, phase: str = "forward") -> None:
        self._work = work
        self._turn = threading.Semaphore(0)
        self._back = threading.Semaphore(0)
        self._cancelled = False
        self._error: BaseException | None = None
        self.awaited: Awaited | None = None
        self.finished = False
        self.phase = phase
        """What the lane does, for the clock."""
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    @property
    def ready(self) -> bool:
        """Whether there is anything to run now."""
        return not self.finished and (self.awaited is None or self.awaited.ready)

    def resume(self) -> None:
        """Run until the lane waits or ends; raises what the lane raised. Called by the conductor."""
        self._turn.release()
        self._back.acquire()
        if self._error is not None:
            raise self._error

    def wait(self, awaited: Awaited) -> None:
        """Give the turn back until `awaited` is ready. Called on the lane's own stack.

        Never inside autograd: torch runs one backward thread per device for the whole process, and a backward that
        waits for a peer, whose backward waits for us, is a deadlock.
        """
        if torch._C._current_graph_task_id() != -1:
            raise AssertionError("a wait inside autograd: the graph was not cut here")
        self.awaited = awaited
        self._back.release()
        self._turn.acquire()
        self.awaited = None
        if self._cancelled:
            raise _Cancelled

    def cancel(self) -> None:
        """Unwind the lane's stack and end its thread."""
        if not self.finished:
            self._cancelled = True
            self._turn.release()
            self._back.acquire()
        self._thread.join()

    def _run(self) -> None:
        self._turn.acquire()
        try:
            if not self._cancelled:
                self._work()
        except _Cancelled:
            pass
        except BaseException as error:
            self._error = error
        finally:
            self.finished = True
            self._back.release()

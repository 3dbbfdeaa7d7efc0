"""Waiting with a deadline, for tests that look at a cluster from outside."""

import time
from collections.abc import Callable
from typing import TypeVar

from tests.cluster.errors import WaitError

T = TypeVar("T")


def eventually(what: str, probe: Callable[[], T | None], *, within: float, every: float = 0.1) -> T:
    """The probe's first answer that counts as true.

    Args:
        what: What is waited for, for the error.
        probe: Asked again and again; an exception ends the wait.
        within: Seconds until giving up.
        every: Seconds between two looks.

    Raises:
        WaitError: it did not come; the message has the last answer.
    """
    end = time.monotonic() + within
    while not (answer := probe()):
        if time.monotonic() > end:
            raise WaitError(f"{what}: not within {within:g} s; the last answer was {answer!r}")
        time.sleep(every)
    return answer

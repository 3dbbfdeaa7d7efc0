"""Says on the terminal what goes on, and how long each part took."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def phase(name: str) -> Iterator[None]:
    """One part of a test."""
    began = time.monotonic()
    say(f"… {name}")
    yield
    say(f"  {name}: {time.monotonic() - began:.1f} s")


def say(text: str) -> None:
    """A line past pytest's capture, so that it is seen at once."""
    stream = sys.__stderr__ or sys.stderr
    stream.write(f"{text}\n")
    stream.flush()

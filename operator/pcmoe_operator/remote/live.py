"""A consortium as it goes on: what `pcmoe watch` shows, and what `--wait` waits for."""

import asyncio
import contextlib
import json
import sys
from collections.abc import Callable
from datetime import datetime
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self

from pcmoe_operator.constants import KIND
from pcmoe_operator.errors import OperatorError
from pcmoe_operator.remote import tables
from pcmoe_operator.remote.access import CONSORTIA, Access
from pcmoe_operator.remote.following import Told, follow, merged
from pcmoe_operator.remote.session import NotThereError, Object, RefusedError
from pcmoe_operator.remote.summary import details, event, last_seen, news
from pcmoe_operator.remote.verdict import verdict_of

if TYPE_CHECKING:
    from rich.console import RenderableType

EVENTS_KEPT = 5
FAILED = 1
"""The exit code of a command that saw a consortium fail."""


class LateError(OperatorError):
    """What was waited for has not come in time."""

    exit_code = 75


async def look(access: Access, name: str) -> tuple[Object, str]:
    """A consortium as it is now, and why its events are not in it, or nothing."""
    consortium, events = await asyncio.gather(
        access.consortium(name), access.events(name), return_exceptions=True
    )
    if isinstance(consortium, BaseException):
        raise consortium
    if isinstance(events, RefusedError):
        return details(consortium, []), f"No events: {events}."
    if isinstance(events, BaseException):
        raise events
    return details(consortium, events), ""


class View(Protocol):
    """Shows a consortium. Entered before the first update, left after the last."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def update(self, shown: Object, lines: list[str], lost: str) -> None:
        """How it stands, what is new, and, while the API server is away, how that shows."""


class Watched:
    """A consortium and its events, put together from what watches tell."""

    def __init__(self, name: str) -> None:
        self.consortium: Object | None = None
        self.shown: Object | None = None
        """Its `summary.details`."""
        self._name = name
        self._events: list[Object] = []
        self._history = True
        """Whether events that are told happened before we came."""
        self.lost = ""
        """How the API server was lost; empty while it answers."""

    def take(self, told: Told) -> list[str]:
        """Take something new; gives back what to say of it."""
        if told.object is None:
            return self._server(told)
        if told.resource == "events":
            return [] if told.gone else self._event(told.object)
        if told.gone:
            raise NotThereError(f"the consortium {self._name} was deleted", 404)
        self.consortium = told.object
        return self._renewed()

    def _renewed(self) -> list[str]:
        if self.consortium is None:
            return []
        before, self.shown = self.shown, details(self.consortium, self._events)
        return news(before, self.shown)

    def _event(self, raw: Object) -> list[str]:
        kept = [each for each in self._events if each["metadata"]["uid"] != raw["metadata"]["uid"]]
        self._events = sorted([*kept, raw], key=last_seen)[-EVENTS_KEPT:]
        lines = self._renewed()
        if self._history:
            return lines
        said = event(raw)
        return [*lines, f"{said['type']} {said['reason']}: {said['message']}"]

    def _server(self, told: Told) -> list[str]:
        if told.lost:
            first, self.lost = not self.lost, told.lost
            return [f"{told.lost}; it is tried again every second"] if first else []
        if told.resource == "events":
            self._history = False
        again, self.lost = bool(self.lost), ""
        return ["the API server answers again"] if again else []


async def watch(
    access: Access, name: str, view: View, done: Callable[[Object], int | None], seconds: float | None = None
) -> int:
    """Show a consortium until `done` of its object gives an exit code.

    Raises:
        NotThereError: it isn't there, or is deleted.
        LateError: `seconds` have passed.
    """
    await access.consortium(name)
    watched = Watched(name)
    sources = (
        follow(access, CONSORTIA, fields=f"metadata.name={name}"),
        follow(access, "events", fields=f"involvedObject.kind={KIND},involvedObject.name={name}"),
    )
    try:
        async with asyncio.timeout(seconds), contextlib.aclosing(merged(*sources)) as all_told:
            async for told in all_told:
                lines = watched.take(told)
                if watched.shown is None or watched.consortium is None:
                    continue
                view.update(watched.shown, lines, watched.lost)
                code = done(watched.consortium)
                if code is not None:
                    return code
    except TimeoutError:
        said = tables.headline(watched.shown) if watched.shown else name
        raise LateError(f"not within {seconds:g} s; {said}") from None
    raise AssertionError("a watch has no end of its own")


def ended(consortium: Object) -> int | None:
    """The exit code of a consortium that has Completed or Failed."""
    end = verdict_of(consortium).end
    return None if end is None else FAILED if end == "Failed" else 0


class LiveView:
    """A table that is renewed in place."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.live import Live

        self._shown: Object | None = None
        self._lost = ""
        self._live = Live(console=Console(highlight=False), refresh_per_second=1, get_renderable=self._render)

    def __enter__(self) -> Self:
        self._live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.__exit__(kind, error, trace)

    def update(self, shown: Object, lines: list[str], lost: str) -> None:
        """Draw it anew."""
        self._shown, self._lost = shown, lost
        self._live.refresh()

    def _render(self) -> "RenderableType":
        from rich.text import Text

        if self._shown is None:
            return Text("")
        problem = f"{self._lost}; as it was before:" if self._lost else ""
        parts = tables.all_about(self._shown, problem)
        console = self._live.console
        lines = tables.laid_out(*parts, width=console.width, colour=not console.no_color)
        return Text.from_ansi("\n".join(lines))


class PlainView:
    """A line for whatever is new, with the time of day."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing to undo."""

    def update(self, shown: Object, lines: list[str], lost: str) -> None:
        """Say what is new."""
        for line in lines:
            sys.stdout.write(f"{_clock()} {line}\n")
        sys.stdout.flush()


class JsonView(PlainView):
    """The whole as a line of JSON whenever something is new."""

    def update(self, shown: Object, lines: list[str], lost: str) -> None:
        """Write it."""
        if lines:
            sys.stdout.write(json.dumps(shown, ensure_ascii=False) + "\n")
            sys.stdout.flush()


class SilentView(PlainView):
    """Nothing; for whoever only waits."""

    def update(self, shown: Object, lines: list[str], lost: str) -> None:
        """Say nothing."""


def _clock() -> str:
    return datetime.now().astimezone().strftime("%H:%M:%S")

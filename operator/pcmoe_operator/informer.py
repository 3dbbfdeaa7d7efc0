"""Lists one resource of one namespace and watches it for ever, as the reflectors of client-go do.

For Jobs and pods, of which many consortia bring tens of thousands of changes: kopf spends about a millisecond on each.
"""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import aiohttp
from pydantic_core import from_json

from pcmoe_operator.cluster import ClusterError
from pcmoe_operator.watch_session import CHUNK, CONNECT_SECONDS, LIST_SECONDS, SILENT, Backoffs
from pcmoe_operator.world import trimmed

log = logging.getLogger(__name__)

Object = dict[str, Any]
SHORT_SECONDS = 1.0
"""Between two listings at least; and a watch that tells nothing and ends sooner has failed: no storm of requests."""


TRANSIENT = (aiohttp.ClientError, OSError, TimeoutError, ValueError, ClusterError)
"""What is tried again for ever. Whether that helps is for the liveness probe to say: it misses the watch."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """What is listed and watched."""

    url: str
    """Of all objects of one kind in one namespace."""
    kind: tuple[str, str]
    """API version and kind."""
    label: str
    """Only those that have it."""
    seconds: int
    """How long one watch lasts; the API server ends it then."""


class Informer:
    """Tells by `saw(event, object)` what is there and what changes; `event` is None for what a listing has, and DELETED
    for what is gone, also unseen. `restarted()` is called when the place was lost, and all is listed anew.
    """

    def __init__(
        self,
        session: aiohttp.ClientSession,
        source: Source,
        saw: Callable[[str | None, Object], None],
        restarted: Callable[[], None],
    ) -> None:
        self._session = session
        self._source = source
        self._selector = {"labelSelector": source.label}
        self._saw = saw
        self._restarted = restarted
        self._there: dict[str, Object] = {}
        """What was told, by name."""
        self._version = ""
        self.listed = asyncio.Event()
        """All that was there at the start has been told."""

    async def run(self) -> None:
        """List and watch for ever."""
        while True:
            await self._list_at_last()
            self.listed.set()
            began = time.monotonic()
            await self._follow()
            self._restarted()
            log.info("%s is listed anew: the watch had lost its place", self._source.url)
            await asyncio.sleep(max(0.0, began + SHORT_SECONDS - time.monotonic()))

    # Listing

    async def _list_at_last(self) -> None:
        for pause in Backoffs():
            try:
                await self._list()
                return
            except TRANSIENT as error:
                log.warning("%s can't be listed: %s", self._source.url, _words(error))
                await asyncio.sleep(pause)

    async def _list(self) -> None:
        """Tell of all that is there, and of what was and is no more."""
        listed: dict[str, Object] = {}
        timeout = aiohttp.ClientTimeout(total=LIST_SECONDS, sock_connect=CONNECT_SECONDS)
        query, (api_version, _) = {**self._selector, "limit": str(CHUNK)}, self._source.kind
        while True:
            async with self._session.get(self._source.url, params=query, timeout=timeout) as answer:
                _accept(answer)
                page = await answer.json()
            for each in page["items"]:
                listed[each["metadata"]["name"]] = {**each, "apiVersion": api_version}
            if not page["metadata"].get("continue"):
                break
            query["continue"] = page["metadata"]["continue"]
        self._version = page["metadata"]["resourceVersion"]
        for name, known in list(self._there.items()):
            if name not in listed or listed[name]["metadata"]["uid"] != known["metadata"]["uid"]:
                self._tell("DELETED", known)
        for each in listed.values():
            self._tell(None, each)

    # Watching

    async def _follow(self) -> None:
        """Watch from the newest version on, in one watch after the other, until the API server has lost the place."""
        pauses = iter(Backoffs())
        while True:
            began, told = time.monotonic(), False
            try:
                async with aclosing(self._events()) as events:
                    async for event in events:
                        if event["type"] == "ERROR":
                            return
                        self._hear(event["type"], event["object"])
                        told = True
                if told or time.monotonic() - began >= SHORT_SECONDS:
                    pauses = iter(Backoffs())
                    continue
            except TRANSIENT as error:
                if isinstance(error, ClusterError) and error.status == HTTPStatus.GONE:
                    return  # the version is forgotten
                if told:
                    pauses = iter(Backoffs())
                log.warning("the watch of %s has ended: %s", self._source.url, _words(error))
            await asyncio.sleep(next(pauses))

    async def _events(self) -> AsyncGenerator[Mapping[str, Any], None]:
        """What one watch tells, as the API server sends it."""
        query = {"watch": "true", "allowWatchBookmarks": "true", **self._selector}
        query |= {"resourceVersion": self._version, "timeoutSeconds": str(self._source.seconds)}
        timeout = aiohttp.ClientTimeout(
            total=None, sock_connect=CONNECT_SECONDS, sock_read=self._source.seconds * SILENT
        )
        async with self._session.get(self._source.url, params=query, timeout=timeout) as answer:
            _accept(answer)
            rest = b""
            async for chunk in answer.content.iter_any():
                *lines, rest = (rest + chunk).split(b"\n")
                for line in lines:
                    yield from_json(line)
            if rest:
                yield from_json(rest)

    def _hear(self, event: str, seen: Object) -> None:
        self._version = seen["metadata"]["resourceVersion"]
        if event != "BOOKMARK":
            self._tell(event, trimmed(seen, self._source.kind[1]))

    def _tell(self, event: str | None, seen: Object) -> None:
        if event == "DELETED":
            self._there.pop(seen["metadata"]["name"], None)
        else:
            self._there[seen["metadata"]["name"]] = seen
        self._saw(event, seen)


def _accept(answer: aiohttp.ClientResponse) -> None:
    if answer.status != HTTPStatus.OK:
        raise ClusterError(f"GET {answer.url.path}", answer.status, answer.reason or "")


def _words(error: Exception) -> str:
    return str(error) or type(error).__name__

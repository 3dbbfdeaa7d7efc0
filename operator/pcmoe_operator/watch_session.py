"""How watches talk to the API server: patient where a token is refused, each answer told, each listing cut down."""

import asyncio
import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import aiohttp

from pcmoe_operator.access import Access
from pcmoe_operator.constants import API_VERSION, KIND
from pcmoe_operator.tracing import Call, trace
from pcmoe_operator.world import trimmed

log = logging.getLogger(__name__)

CONSORTIA = "pcmoeconsortia"
KINDS: Mapping[str, tuple[str, str]] = {
    CONSORTIA: (API_VERSION, KIND),
    "jobs": ("batch/v1", "Job"),
    "pods": ("v1", "Pod"),
}
"""Watched, by the name of the resource."""
WATCHED = frozenset(kind for _, kind in KINDS.values())
CONNECT_SECONDS = 10.0
LIST_SECONDS = 60.0
CHUNK = 500
"""Objects in a page of a listing."""
LOGIN_SECONDS = 5.0
SILENT = 4 / 3
"""A watch that says nothing for so many times the seconds that one lasts is dead: a bookmark comes before its end."""


class Backoffs:
    """Seconds between attempts at a request, without an end: a watch outlives the API server's absence."""

    def __iter__(self) -> Iterator[float]:
        yield from (1, 1, 2, 3)
        while True:
            yield 5


class Page(aiohttp.ClientResponse):
    """A page of a listing, cut down as it arrives: all pages are kept until what is in them has been told."""

    async def json(self, **options: Any) -> Any:
        """The answer's object."""
        found = await super().json(**options)
        kind = found.get("kind", "").removesuffix("List")
        if "items" in found and kind in WATCHED:
            found["items"] = [trimmed(each, kind) for each in found["items"]]
        return found


def watch_session(
    access: Access, refused: Callable[[Call, str], None], answered: Callable[[Call, str], None]
) -> aiohttp.ClientSession:
    """A session for watches. `answered(call, code)` at the head of each answer.

    `refused` hears of those that were asked again, with a token that was read anew.
    """

    async def again(
        request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
    ) -> aiohttp.ClientResponse:
        while True:
            answer = await handler(request)
            if answer.status != 401:
                return answer
            # kopf would close this session, also under its other watches, which end then.
            answer.close()
            refused(Call.of(request.method, request.url), "401")
            log.warning("%s %s: the token is refused; it is read anew", request.method, request.url.path)
            await asyncio.sleep(LOGIN_SECONDS)

    return access.session(again, trace_configs=[trace(answered)], response_class=Page)

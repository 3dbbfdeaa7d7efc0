"""What is in a cluster now, and whatever becomes of it: a list and watches that outlive the server's."""

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass

from pcmoe_operator.remote.access import Access
from pcmoe_operator.remote.session import AccessError, NoAnswerError, Object

BREATH_SECONDS = 1.0
"""Between two tries to reach a server that was there, or two watches that end at once."""
GONE = 410
"""The server has forgotten the version from which to go on."""
PASSING = (GONE, 429, 500)
"""What a server says that will say something else soon."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Told:
    """Something new of one object, or of the watch itself."""

    resource: str
    gone: bool = False
    """Whether the object is there no more."""
    object: Object | None = None
    """None: all that is there has been told; or the server is lost, and `lost` says how."""
    lost: str = ""


async def follow(
    access: Access, resource: str, *, labels: str = "", fields: str = ""
) -> AsyncGenerator[Told]:
    """Every object that is there, a word that these are all, then every change, for ever.

    A server that goes away is told of once, and waited for; one that never answered, or says no, is an error.
    """
    known: dict[str, Object] = {}
    reached, lost = False, False
    while True:
        try:
            found, version = await access.snapshot(resource, labels=labels, fields=fields)
            for told in _news_in_list(resource, known, found):
                yield told
            yield Told(resource=resource)
            reached, lost = True, False
            while True:
                opened = time.monotonic()
                changes = access.changes(resource, version, labels=labels, fields=fields)
                async with contextlib.aclosing(changes):
                    async for kind, each in changes:
                        version = each["metadata"]["resourceVersion"]
                        yield _change(resource, kind, each, known)
                if time.monotonic() - opened < BREATH_SECONDS:
                    await asyncio.sleep(BREATH_SECONDS)  # somebody on the way ends watches at once
        except AccessError as error:
            if not reached or not (isinstance(error, NoAnswerError) or error.status in PASSING):
                raise
            if not lost and error.status != GONE:
                lost = True
                yield Told(resource=resource, lost=str(error))
            await asyncio.sleep(BREATH_SECONDS)


async def merged(*sources: AsyncGenerator[Told]) -> AsyncGenerator[Told]:
    """What several watches tell, as it comes; the first that fails ends all."""
    queue: asyncio.Queue[Told] = asyncio.Queue(maxsize=1000)

    async def pour(source: AsyncGenerator[Told]) -> None:
        async with contextlib.aclosing(source):
            async for told in source:
                await queue.put(told)

    tasks = [asyncio.ensure_future(pour(source)) for source in sources]
    try:
        while True:
            next_ = asyncio.ensure_future(queue.get())
            await asyncio.wait([next_, *tasks], return_when=asyncio.FIRST_COMPLETED)
            if next_.done():
                yield next_.result()
                continue
            next_.cancel()
            for task in tasks:
                if task.done():
                    task.result()
                    return
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _news_in_list(resource: str, known: dict[str, Object], found: list[Object]) -> list[Told]:
    """What a new list says that wasn't known; `known` is brought up to date."""
    fresh = {each["metadata"]["uid"]: each for each in found}
    told = [
        Told(resource=resource, gone=True, object=each) for uid, each in known.items() if uid not in fresh
    ]
    for uid, each in fresh.items():
        old = known.get(uid)
        if old is None or old["metadata"]["resourceVersion"] != each["metadata"]["resourceVersion"]:
            told.append(Told(resource=resource, object=each))
    known.clear()
    known.update(fresh)
    return told


def _change(resource: str, kind: str, each: Object, known: dict[str, Object]) -> Told:
    uid = each["metadata"]["uid"]
    if kind == "DELETED":
        known.pop(uid, None)
    else:
        known[uid] = each
    return Told(resource=resource, gone=kind == "DELETED", object=each)

"""kopf, as a watcher of consortia in every namespace, and informers of their Jobs and pods.

What kopf doesn't do by itself is added here. A handler only notes what it saw; kopf writes neither finalizers nor
annotations. A watch of kopf's that the API server answers with anything but a try-again ends kopf, and with it this
process, which is started again.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import aiohttp
import kopf

from pcmoe_operator.access import Access
from pcmoe_operator.cluster import Cluster, ClusterError, collection
from pcmoe_operator.constants import API_VERSION, GROUP, KIND, VERSION
from pcmoe_operator.health import Health, Watch
from pcmoe_operator.informer import Informer, Source
from pcmoe_operator.objects.names import CONSORTIUM
from pcmoe_operator.tracing import Call
from pcmoe_operator.watch_session import (
    CHUNK,
    CONNECT_SECONDS,
    CONSORTIA,
    KINDS,
    LIST_SECONDS,
    LOGIN_SECONDS,
    SILENT,
    Backoffs,
    watch_session,
)
from pcmoe_operator.world import trimmed

log = logging.getLogger(__name__)

Object = dict[str, Any]
Saw = Callable[[str | None, Object], None]
"""`saw(event, object)`; `event` is DELETED for one that is gone."""
CHILDREN = ("jobs", "pods")
IDLE_SECONDS = 1.0
"""So long kopf keeps a task for an object of which nothing more is told: there are thousands of objects."""
SILENT_SECONDS = 0.5
SYNC_SECONDS = 30.0
SHUT_SECONDS = 10.0
"""Between two looks whether a namespace can be looked after again."""


class Forgetful(kopf.DiffBaseStorage, kopf.ProgressStorage):
    """Keeps nothing of an object, and so copies nothing: what kopf needs to tell changes apart isn't asked for here."""

    def build(self, *, body: Any, extra_fields: Any = None) -> Any:
        """Nothing of the object."""
        return {}

    def fetch(self, **_: Any) -> None:
        """Nothing was kept."""

    def store(self, **_: Any) -> None:
        """Nothing is kept."""

    def purge(self, **_: Any) -> None:
        """Nothing was kept."""

    def touch(self, **_: Any) -> None:
        """Nothing is written."""

    def clear(self, *, essence: Any) -> Any:
        """As it is."""
        return essence


def configured(watch_seconds: int) -> kopf.OperatorSettings:
    """kopf's settings: what it must not write, and after how long it takes a silent connection for a dead one."""
    made = kopf.OperatorSettings()
    made.posting.enabled = False
    made.scanning.disabled = True
    made.persistence.diffbase_storage = made.persistence.progress_storage = Forgetful()
    made.execution.default_backoff = LOGIN_SECONDS
    made.queueing.idle_timeout = IDLE_SECONDS
    made.networking.connect_timeout = CONNECT_SECONDS
    made.networking.request_timeout = LIST_SECONDS
    made.networking.error_backoffs = Backoffs()
    # The API server ends every watch in time, and sends at least a bookmark before.
    made.watching.server_timeout = watch_seconds
    made.watching.inactivity_timeout = watch_seconds * SILENT
    made.watching.connect_timeout = CONNECT_SECONDS
    made.watching.chunk_size = CHUNK
    return made


class Known:
    """What kopf has told to be there; after a new listing it doesn't tell what is there no more."""

    def __init__(self) -> None:
        self._uids: dict[str, str] = {}
        """By name."""

    def saw(self, event: str | None, seen: Object) -> bool:
        """Note it; False for the end of one whose name another has by now."""
        name, uid = seen["metadata"]["name"], seen["metadata"]["uid"]
        if event != "DELETED":
            self._uids[name] = uid
            return True
        if self._uids.get(name, uid) != uid:
            return False
        self._uids.pop(name, None)
        return True

    def snapshot(self) -> Mapping[str, str]:
        """What is known now, to be compared with a listing that begins after it."""
        return dict(self._uids)

    def gone(self, before: Mapping[str, str], listed: Sequence[Object]) -> Iterator[Object]:
        """As much as is known of each that was there before a listing and is not in it."""
        uids = {each["metadata"]["uid"] for each in listed}
        for name, uid in before.items():
            if uid not in uids and self._uids.get(name) == uid:
                yield {"metadata": {"name": name, "uid": uid}}


class Watching:
    """Watches until it is cancelled, and tells of everything by `saw`."""

    def __init__(
        self, cluster: Cluster, health: Health, heard: Callable[[Call, str], None], saw: Saw
    ) -> None:
        self._cluster = cluster
        self._health = health
        self._heard = heard
        self._saw = saw
        self._known: dict[str, Known] = {}
        """Consortia by namespace."""
        self._listed: set[str] = set()
        self._listed_again: asyncio.Queue[str] = asyncio.Queue()
        self._opened: set[str] = set()
        self._all_open = asyncio.Event()
        self._children_listed = asyncio.Event()
        self._told = 0.0

    async def run(
        self, access: Access, namespaces: Sequence[str], watch_seconds: int, ready: asyncio.Event
    ) -> None:
        """Watch for ever, or until a namespace that was shut to us is so no more; `ready` is set once kopf has started.

        One that is shut, since it was deleted and its Role with it, keeps none of the others from being looked after.
        """
        shut = [each for each in namespaces if await self._may_list(each) is False]
        namespaces = [each for each in namespaces if each not in shut] or namespaces
        self._known = {namespace: Known() for namespace in namespaces}
        self._health.expect((resource, namespace) for resource in KINDS for namespace in namespaces)
        async with self._session(access) as session:
            informers = [
                self._informer(session, access.server, (resource, namespace), watch_seconds)
                for resource in CHILDREN
                for namespace in namespaces
            ]
            works = [self._bury(), self._all_listed(informers), *(each.run() for each in informers)]
            if shut:
                works.append(self._until_open(shut))
            own = [asyncio.create_task(work) for work in works]
            tasks = await kopf.spawn_tasks(
                registry=self._registry(access),
                settings=configured(watch_seconds),
                namespaces=namespaces,
                standalone=True,
                ready_flag=ready,
            )
            try:
                # kopf's own way of running them can hang for ever once one of them has failed.
                done, _ = await asyncio.wait([*own, *tasks], return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()
            finally:
                self._health.expect(())
                for task in (*own, *tasks):
                    task.cancel()

    def _informer(self, session: aiohttp.ClientSession, server: str, watch: Watch, seconds: int) -> Informer:
        resource, namespace = watch
        source = Source(
            url=server + collection(*KINDS[resource], namespace),
            kind=KINDS[resource],
            label=CONSORTIUM,
            seconds=seconds,
        )
        return Informer(session, source, self._saw, lambda: self._health.restarted(watch))

    async def _may_list(self, namespace: str) -> bool | None:
        return await self._cluster.may_list(API_VERSION, KIND, namespace)

    async def _until_open(self, shut: Sequence[str]) -> None:
        """Until one of these namespaces can be looked after: that takes watches that begin together."""
        log.warning("%s: nothing is looked after there: no such namespace, or no Role in it", ", ".join(shut))
        while True:
            await asyncio.sleep(SHUT_SECONDS)
            for namespace in shut:
                if await self._may_list(namespace):
                    log.info("%s can be looked after now: starting anew", namespace)
                    return

    async def _all_listed(self, informers: Sequence[Informer]) -> None:
        for each in informers:
            await each.listed.wait()
        self._children_listed.set()
        await asyncio.Event().wait()

    def _registry(self, access: Access) -> kopf.OperatorRegistry:
        registry = kopf.OperatorRegistry()

        @kopf.on.login(registry=registry)
        async def login(**_: Any) -> kopf.AiohttpSession:
            return kopf.AiohttpSession(server=access.server, aiohttp_session=self._session(access))

        @kopf.on.event(GROUP, VERSION, CONSORTIA, registry=registry)
        async def note(event: Any, **_: Any) -> None:
            seen = trimmed(dict(event["object"]), KIND)
            self._told = time.monotonic()
            if self._known[seen["metadata"]["namespace"]].saw(event["type"], seen):
                self._saw(event["type"], seen)

        return registry

    async def synced(self) -> None:
        """Wait until what was there at the start has been told: a look before that would take it for missing.

        kopf opens a watch after its listing, and hands on what was listed one by one; when it falls silent, that's all.
        """
        await self._children_listed.wait()
        await self._all_open.wait()
        end = time.monotonic() + SYNC_SECONDS
        while time.monotonic() < min(end, self._told + SILENT_SECONDS):
            await asyncio.sleep(SILENT_SECONDS / 4)

    def _session(self, access: Access) -> aiohttp.ClientSession:
        return watch_session(access, self._heard, self._answered)

    def _answered(self, call: Call, code: str) -> None:
        """An answer to a request of a watch's."""
        self._heard(call, code)
        if code != "200" or call.resource not in KINDS or call.namespace not in self._known:
            return
        if call.verb == "watch":
            self._health.opened((call.resource, call.namespace))
        if call.resource == CONSORTIA:
            self._kopf_answered(call.namespace, listed=call.verb != "watch")

    def _kopf_answered(self, namespace: str, *, listed: bool) -> None:
        if not listed:
            self._listed.add(namespace)
            self._opened.add(namespace)
            if self._opened >= self._known.keys():
                self._told = time.monotonic()
                self._all_open.set()
        elif namespace in self._listed:  # it was watched before this listing
            self._listed.discard(namespace)
            self._health.restarted((CONSORTIA, namespace))
            self._listed_again.put_nowait(namespace)

    async def _bury(self) -> None:
        """After each new listing, tell of the consortia that have gone unseen."""
        while True:
            namespace = await self._listed_again.get()
            known = self._known[namespace]
            log.info("consortia in %s were listed anew: the watch had lost its place", namespace)
            while True:
                before = known.snapshot()
                try:
                    listed = await self._cluster.list(API_VERSION, KIND, namespace)
                    break
                except ClusterError as error:
                    log.warning("consortia in %s can't be listed: %s", namespace, error)
                    await asyncio.sleep(LOGIN_SECONDS)
            for each in list(known.gone(before, listed)):
                each["metadata"]["namespace"] = namespace
                gone = {"apiVersion": API_VERSION, "kind": KIND, **each}
                if known.saw("DELETED", gone):
                    self._saw("DELETED", gone)

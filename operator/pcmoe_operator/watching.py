"""kopf, as a watcher of three kinds in every namespace; what it doesn't do by itself is added here.

A handler only notes what it saw; kopf writes neither finalizers nor annotations. A watch that the API server answers
with anything but a try-again ends kopf, and with it this process, which is started again.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import aiohttp
import kopf
from kubernetes.aio.client import ApiClient

from pcmoe_operator.cluster import Cluster, ClusterError, by_proxy
from pcmoe_operator.constants import API_VERSION, GROUP, KIND, VERSION
from pcmoe_operator.health import Health, Watch
from pcmoe_operator.objects.names import CONSORTIUM
from pcmoe_operator.tracing import Call, trace
from pcmoe_operator.world import trimmed

log = logging.getLogger(__name__)

Object = dict[str, Any]
Saw = Callable[[str | None, Object], None]
"""`saw(event, object)`; `event` is DELETED for one that is gone."""
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
LOGIN_SECONDS = 5.0
IDLE_SECONDS = 1.0
"""So long kopf keeps a task for an object of which nothing more is told: there are thousands of objects."""
SILENT_SECONDS = 0.5
SYNC_SECONDS = 30.0


class Backoffs:
    """Seconds between attempts at a request of kopf's, without an end: a watch outlives the API server's absence."""

    def __iter__(self) -> Iterator[float]:
        yield from (1, 1, 2, 3)
        while True:
            yield 5


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
    made.watching.inactivity_timeout = watch_seconds * 4 / 3
    made.watching.connect_timeout = CONNECT_SECONDS
    made.watching.chunk_size = CHUNK
    for resource in ("jobs", "pods"):
        made.watching.label_selectors[resource] = CONSORTIUM
    return made


class Page(aiohttp.ClientResponse):
    """A page of a listing, cut down as it arrives: kopf keeps all pages until it has told of what is in them."""

    async def json(self, **options: Any) -> Any:
        """The answer's object."""
        found = await super().json(**options)
        kind = found.get("kind", "").removesuffix("List")
        if "items" in found and kind in WATCHED:
            found["items"] = [trimmed(each, kind) for each in found["items"]]
        return found


class Known:
    """What a watch has told to be there; after a new listing kopf doesn't tell what is there no more."""

    def __init__(self) -> None:
        self._there: dict[str, tuple[str, str | None]] = {}
        """(uid, its consortium) by name."""

    def saw(self, event: str | None, seen: Object) -> bool:
        """Note it; False for the end of one whose name another has by now."""
        metadata = seen["metadata"]
        name, uid = metadata["name"], metadata["uid"]
        if event != "DELETED":
            self._there[name] = (uid, (metadata.get("labels") or {}).get(CONSORTIUM))
            return True
        if self._there.get(name, (uid,))[0] != uid:
            return False
        self._there.pop(name, None)
        return True

    def snapshot(self) -> Mapping[str, tuple[str, str | None]]:
        """What is known now, to be compared with a listing that begins after it."""
        return dict(self._there)

    def gone(
        self, before: Mapping[str, tuple[str, str | None]], listed: Sequence[Object]
    ) -> Iterator[Object]:
        """As much as is known of each that was there before a listing and is not in it."""
        uids = {each["metadata"]["uid"] for each in listed}
        for name, (uid, owner) in before.items():
            if uid not in uids and self._there.get(name, (None,))[0] == uid:
                yield {"metadata": {"name": name, "uid": uid, "labels": {CONSORTIUM: owner} if owner else {}}}


class Watching:
    """Watches until it is cancelled, and tells of everything by `saw`."""

    def __init__(
        self,
        api: ApiClient,
        cluster: Cluster,
        health: Health,
        heard: Callable[[Call, str], None],
        saw: Saw,
    ) -> None:
        self._api = api
        self._cluster = cluster
        self._health = health
        self._heard = heard
        self._saw = saw
        self._known: dict[Watch, Known] = {}
        self._listed: set[Watch] = set()
        self._listed_again: asyncio.Queue[Watch] = asyncio.Queue()
        self._opened: set[Watch] = set()
        self._all_open = asyncio.Event()
        self._told = 0.0

    async def run(self, namespaces: Sequence[str], watch_seconds: int, ready: asyncio.Event) -> None:
        """Watch for ever; `ready` is set once kopf has started."""
        self._known = {(resource, namespace): Known() for resource in KINDS for namespace in namespaces}
        self._health.expect(self._known)
        buried = asyncio.create_task(self._bury())
        tasks = await kopf.spawn_tasks(
            registry=self._registry(),
            settings=configured(watch_seconds),
            namespaces=namespaces,
            standalone=True,
            ready_flag=ready,
        )
        try:
            # kopf's own way of running them can hang for ever once one of them has failed.
            done, _ = await asyncio.wait([buried, *tasks], return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            self._health.expect(())
            for task in (buried, *tasks):
                task.cancel()

    def _registry(self) -> kopf.OperatorRegistry:
        registry = kopf.OperatorRegistry()

        @kopf.on.login(registry=registry)
        async def login(**_: Any) -> kopf.AiohttpSession:
            return kopf.AiohttpSession(server=self._api.configuration.host, aiohttp_session=self._session())

        @kopf.on.event(GROUP, VERSION, CONSORTIA, registry=registry)
        @kopf.on.event("batch", "v1", "jobs", registry=registry)
        @kopf.on.event("", "v1", "pods", registry=registry)
        async def note(event: Any, resource: kopf.Resource, **_: Any) -> None:
            seen = trimmed(dict(event["object"]), KINDS[resource.plural][1])
            known = self._known[resource.plural, seen["metadata"]["namespace"]]
            self._told = time.monotonic()
            if known.saw(event["type"], seen):
                self._saw(event["type"], seen)

        return registry

    async def synced(self) -> None:
        """Wait until what was there at the start has been told: a look before that would take it for missing.

        kopf opens a watch after its listing, and hands on what was listed one by one; when it falls silent, that's all.
        """
        await self._all_open.wait()
        end = time.monotonic() + SYNC_SECONDS
        while time.monotonic() < min(end, self._told + SILENT_SECONDS):
            await asyncio.sleep(SILENT_SECONDS / 4)

    def _session(self) -> aiohttp.ClientSession:
        """A session of kopf's own, which authenticates as the client does, and of which we hear everything."""
        configuration = self._api.configuration

        async def authorize(
            request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
        ) -> aiohttp.ClientResponse:
            while True:
                header = await configuration.get_api_key_with_prefix("BearerToken")
                if header:
                    request.headers["Authorization"] = header
                answer = await handler(request)
                if answer.status != 401:
                    return answer
                # kopf would close this session, also under its other watches, which end then.
                answer.close()
                self._heard(Call.of(request.method, request.url), "401")
                log.warning("%s %s: the token is refused; it is read anew", request.method, request.url.path)
                await asyncio.sleep(LOGIN_SECONDS)

        connector = aiohttp.TCPConnector(limit=0, ssl=self._api.rest_client.ssl_context)
        return aiohttp.ClientSession(
            connector=connector,
            proxy=configuration.proxy,
            trust_env=by_proxy(),
            trace_configs=[trace(self._answered)],
            middlewares=(authorize,),
            response_class=Page,
        )

    def _answered(self, call: Call, code: str) -> None:
        """An answer to a request of kopf's."""
        self._heard(call, code)
        watch = (call.resource, call.namespace)
        if code != "200" or watch not in self._known:
            return
        if call.verb == "watch":
            self._health.opened(watch)
            self._listed.add(watch)
            self._opened.add(watch)
            if self._opened >= self._known.keys():
                self._told = time.monotonic()
                self._all_open.set()
        elif watch in self._listed:  # it was watched before this listing
            self._listed.discard(watch)
            self._health.restarted(watch)
            self._listed_again.put_nowait(watch)

    async def _bury(self) -> None:
        """After each new listing, tell of what has gone unseen."""
        while True:
            watch = await self._listed_again.get()
            resource, namespace = watch
            api_version, kind = KINDS[resource]
            log.info("%s in %s were listed anew: the watch had lost its place", resource, namespace)
            while True:
                before = self._known[watch].snapshot()
                selector = "" if resource == CONSORTIA else CONSORTIUM
                try:
                    listed = await self._cluster.list(api_version, kind, namespace, selector)
                    break
                except ClusterError as error:
                    log.warning("%s in %s can't be listed: %s", resource, namespace, error)
                    await asyncio.sleep(LOGIN_SECONDS)
            for each in list(self._known[watch].gone(before, listed)):
                each["metadata"]["namespace"] = namespace
                gone = {"apiVersion": api_version, "kind": kind, **each}
                if self._known[watch].saw("DELETED", gone):
                    self._saw("DELETED", gone)

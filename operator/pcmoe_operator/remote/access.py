"""What the commands ask of a cluster, in words of its resources.

    async with reach(context, namespace) as access:
        consortium = await access.consortium("hospitals")

The rights are those of whoever the kubeconfig names. Objects are as the API server gives them.
"""

import asyncio
import contextlib
import copy
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Self
from urllib.parse import quote

import aiohttp

from pcmoe_operator.constants import API_VERSION, KIND
from pcmoe_operator.objects.names import CONSORTIUM
from pcmoe_operator.remote.kubeconfig import find_way
from pcmoe_operator.remote.session import (
    OURS,
    REQUEST_SECONDS,
    AccessError,
    Asked,
    NoCRDError,
    NotThereError,
    Object,
    Session,
    as_object,
    open_socket,
)
from pcmoe_operator.remote.summary import last_seen

WATCH_SECONDS = 60
"""A watch ends by itself after so long, and is opened anew; a silent one is dead `REQUEST_SECONDS` later."""
AT_ONCE = 500
"""So many objects in one answer, as kubectl has it."""
STATUS_PORT = 9400
CONSORTIA = "pcmoeconsortia"
MERGE = "application/merge-patch+json"
APIS: Mapping[str, str] = {
    CONSORTIA: OURS,
    "configmaps": "/api/v1",
    "events": "/api/v1",
    "nodes": "/api/v1",
    "persistentvolumeclaims": "/api/v1",
    "pods": "/api/v1",
    "secrets": "/api/v1",
    "services": "/api/v1",
    "deployments": "/apis/apps/v1",
    "replicasets": "/apis/apps/v1",
    "jobs": "/apis/batch/v1",
    "leases": "/apis/coordination.k8s.io/v1",
    "networkpolicies": "/apis/networking.k8s.io/v1",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class LogRange:
    """Which lines of a log."""

    follow: bool = False
    """Go on until the container ends."""
    previous: bool = False
    """Those of the container before the last restart."""
    since: int | None = None
    """Not older than so many seconds."""
    since_time: str | None = None
    """Not older than this moment, RFC 3339."""
    tail: int | None = None
    """The last so many."""
    timestamps: bool = False
    """The moment, RFC 3339 with nanoseconds, and a space before each line."""

    def query(self) -> dict[str, str]:
        """As the API server is asked."""
        asked = {
            "follow": "true" if self.follow else None,
            "previous": "true" if self.previous else None,
            "sinceSeconds": self.since,
            "sinceTime": self.since_time,
            "tailLines": self.tail,
            "timestamps": "true" if self.timestamps else None,
        }
        return {key: str(value) for key, value in asked.items() if value is not None}


class Access(Session):
    """A session with one cluster; see `reach`. Without a namespace named it is about `self.namespace`."""

    def inside(self, namespace: str) -> Self:
        """The same session, about another namespace."""
        other = copy.copy(self)
        other.namespace = namespace
        return other

    # Consortia and what belongs to them

    async def consortia(self, *, everywhere: bool = False) -> list[Object]:
        """All of the namespace, or of all namespaces, in the API server's order: by namespace and name."""
        found = await self.listed(CONSORTIA, everywhere=everywhere)
        return [{"apiVersion": API_VERSION, "kind": KIND, **each} for each in found]

    async def consortium(self, name: str) -> Object:
        """One by its name; `NotThereError` names those that it may have been taken for."""
        try:
            return await self.read(CONSORTIA, name)
        except NoCRDError:
            raise
        except NotThereError:
            raise NotThereError(await self._not_there(name), 404) from None

    async def pods(self, name: str) -> list[Object]:
        """The pods of a consortium: its participants' and the coordinator's, of all attempts."""
        return await self.listed("pods", labels=f"{CONSORTIUM}={name}")

    async def jobs(self, name: str) -> list[Object]:
        """The Jobs of a consortium, of all attempts."""
        return await self.listed("jobs", labels=f"{CONSORTIUM}={name}")

    async def events(self, name: str, kind: str = KIND) -> list[Object]:
        """Events about a consortium, or another object, oldest first."""
        found = await self.listed("events", fields=f"involvedObject.kind={kind},involvedObject.name={name}")
        return sorted(found, key=last_seen)

    async def patch(self, name: str, body: Object) -> Object:
        """Change fields of a consortium by a merge patch; gives back the whole."""
        return await self.send("PATCH", self.path(CONSORTIA, name), body, MERGE)

    async def ask(
        self,
        pod: str,
        path: str,
        port: int = STATUS_PORT,
        *,
        seconds: float = REQUEST_SECONDS,
        most: int | None = None,
    ) -> bytes:
        """GET from a pod, through the API server: `/status`, `/metrics`; `most` bytes, as in `fetch`."""
        asked = Asked(path=f"{self.path('pods', f'{pod}:{port}')}/proxy{path}")
        return await self.fetch(asked, seconds, most)

    async def logs(self, pod: str, wanted: LogRange | None = None) -> AsyncGenerator[str]:
        """The lines of a pod's log, each without its end. Close it (`aclosing`) if you leave before its end.

        With `follow` it goes on until the container ends and may be silent for any time: a dead connection ends it.
        """
        wanted = wanted or LogRange()
        quiet = None if wanted.follow else REQUEST_SECONDS
        async with contextlib.aclosing(
            self.lines(Asked(path=f"{self.path('pods', pod)}/log", query=wanted.query()), quiet)
        ) as lines:
            async for line in lines:
                yield line.decode(errors="replace")

    # Any resource of APIS

    def path(self, resource: str, name: str = "", *, everywhere: bool = False, namespace: str = "") -> str:
        """Where a resource, or an object of it, is."""
        where = (
            "" if everywhere or resource == "nodes" else f"/namespaces/{quote(namespace or self.namespace)}"
        )
        return f"{APIS[resource]}{where}/{resource}" + (f"/{quote(name, safe=':')}" if name else "")

    async def listed(
        self,
        resource: str,
        *,
        labels: str = "",
        fields: str = "",
        everywhere: bool = False,
        namespace: str = "",
    ) -> list[Object]:
        """All objects of a resource that the selectors pick."""
        found, _ = await self.snapshot(
            resource, labels=labels, fields=fields, everywhere=everywhere, namespace=namespace
        )
        return found

    async def snapshot(
        self,
        resource: str,
        *,
        labels: str = "",
        fields: str = "",
        everywhere: bool = False,
        namespace: str = "",
    ) -> tuple[list[Object], str]:
        """The same, and the resource version from which `changes` goes on."""
        path = self.path(resource, everywhere=everywhere, namespace=namespace)
        query = {"labelSelector": labels, "fieldSelector": fields, "limit": str(AT_ONCE)}
        query = {key: value for key, value in query.items() if value}
        found: list[Object] = []
        while True:
            page = as_object(await self.fetch(Asked(path=path, query=query)))
            found += page.get("items") or []
            metadata = page.get("metadata") or {}
            if not metadata.get("continue"):
                return found, str(metadata.get("resourceVersion", ""))
            query["continue"] = metadata["continue"]

    async def changes(
        self, resource: str, version: str, *, labels: str = "", fields: str = ""
    ) -> AsyncGenerator[tuple[str, Object]]:
        """One watch, to its end: (ADDED | MODIFIED | DELETED, object). 410 as `AccessError`: list again."""
        query = {"watch": "true", "resourceVersion": version, "timeoutSeconds": str(WATCH_SECONDS),
                 "labelSelector": labels, "fieldSelector": fields}  # fmt: skip
        query = {key: value for key, value in query.items() if value}
        quiet = WATCH_SECONDS + REQUEST_SECONDS
        async with contextlib.aclosing(
            self.lines(Asked(path=self.path(resource), query=query), quiet)
        ) as lines:
            async for line in lines:
                told = as_object(line)
                if told.get("type") == "ERROR":
                    said = told.get("object") or {}
                    raise AccessError(
                        f"watch of {resource}: {said.get('message')}", int(said.get("code") or 0)
                    )
                yield str(told.get("type")), told.get("object") or {}

    async def read(self, resource: str, name: str, *, namespace: str = "") -> Object:
        """One object."""
        return as_object(await self.fetch(Asked(path=self.path(resource, name, namespace=namespace))))

    async def get(self, path: str, *, seconds: float = REQUEST_SECONDS) -> bytes:
        """Whatever is at a path, such as `/version`."""
        return await self.fetch(Asked(path=path), seconds)

    async def create(self, resource: str, body: Object) -> Object:
        """Make an object in the namespace."""
        return await self.send("POST", self.path(resource), body)

    async def delete(self, resource: str, name: str) -> None:
        """Delete an object, what it owns in the background; one that isn't there is fine."""
        with contextlib.suppress(NotThereError):
            await self.send("DELETE", self.path(resource, name), {"propagationPolicy": "Background"})

    async def send(
        self, method: str, path: str, body: Object, content_type: str = "application/json"
    ) -> Object:
        """A request that changes something; gives back the object of the answer."""
        return as_object(
            await self.fetch(Asked(path=path, method=method, body=body, content_type=content_type))
        )

    async def _not_there(self, name: str) -> str:
        """Where a consortium isn't, and where it may be instead."""
        import difflib

        sentence = f"no consortium {name} in namespace {self.namespace}"
        with contextlib.suppress(AccessError):
            here = [each["metadata"]["name"] for each in await self.consortia()]
            near = difflib.get_close_matches(name, here, n=3, cutoff=0.5)
            if near:
                return f"{sentence}; near that: {', '.join(near)}"
            if here:
                return f"{sentence}; there are: {', '.join(here[:10])}" + (", …" if len(here) > 10 else "")
        with contextlib.suppress(AccessError):
            found = [each["metadata"] for each in await self.consortia(everywhere=True)]
            spaces = [each["namespace"] for each in found if each["name"] == name]
            if spaces:
                return f"{sentence}, but in {', '.join(spaces[:5])}: say --namespace {spaces[0]}"
        return f"{sentence}, and no other there"


@contextlib.asynccontextmanager
async def reach(context: str | None = None, namespace: str | None = None) -> AsyncIterator[Access]:
    """A session with the cluster that kubectl would ask; `UsageError` where there is no way in."""
    way = await asyncio.to_thread(find_way, context, namespace)
    connector = aiohttp.TCPConnector(limit=64, socket_factory=open_socket)
    async with aiohttp.ClientSession(connector=connector, auto_decompress=True) as session:
        yield Access(session, way)

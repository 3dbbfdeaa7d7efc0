"""All that helps to understand a consortium from afar, as one file: what `pcmoe must-gather` takes.

It takes what the rights at hand allow; what couldn't be had is in `problems.txt`. What is left out: `redact`.
"""

import asyncio
import io
import json
import os
import platform
import tarfile
from collections.abc import Awaitable, Coroutine
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from pcmoe_operator.answers import items, part, text_at
from pcmoe_operator.constants import GROUP
from pcmoe_operator.errors import UsageError
from pcmoe_operator.objects.names import CONSORTIUM
from pcmoe_operator.remote.access import CONSORTIA, Access
from pcmoe_operator.remote.redact import clean, clean_text, machine, secret
from pcmoe_operator.remote.session import AccessError, Asked, Object, RefusedError, as_object
from pcmoe_operator.remote.summary import details
from pcmoe_operator.remote.tables import headline

AT_ONCE = 8
"""So many requests at a time."""
LOG_LINES = 20_000
LOG_BYTES = 16_000_000
"""Of each log, at most: the first bytes of its last lines."""
LOG_SECONDS = 60.0
OPERATOR = "app.kubernetes.io/name=pcmoe-operator"
OPERATOR_NAMESPACE = "pcmoe-system"
TABLE = "application/json;as=Table;v=v1;g=meta.k8s.io"
OPERATORS = ("deployments", "pods", "configmaps", "leases")
"""What is taken of the operator."""
Work = tuple[str, Coroutine[Any, Any, None]]
"""What it is about, and what to await."""
KINDS = ("jobs", "pods", "configmaps", "persistentvolumeclaims", "services", "replicasets", "networkpolicies")
"""What carries the consortium's label, or is made for it."""
ABOUT = {
    "consortium.json": "the PCMoEConsortium: manifest and status",
    "status.txt": "what pcmoe status says of it",
    "events.json": "Events of the namespace about it and its objects",
    "secrets.json": "names and types of its Secrets; their values were never asked for",
    "machines.json": "the cluster's nodes: room, taints, conditions",
    "versions.json": "of pcmoe, the API server and its API, and who asked when",
    "problems.txt": "what could not be had, and why",
    "contents.txt": "this list",
}


class Gathered:
    """Files by name, and what could not be had."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.problems: list[str] = []

    def text(self, name: str, text: str) -> None:
        """Keep a text, cleaned."""
        self.files[name] = clean_text(text).encode()

    def json(self, name: str, found: Any) -> None:
        """Keep objects, cleaned."""
        self.files[name] = json.dumps(clean(found), indent=1, ensure_ascii=False).encode() + b"\n"


class Gatherer:
    """Takes all that can be had of a consortium, bit by bit."""

    def __init__(self, access: Access, name: str, operator_namespace: str | None) -> None:
        self._access, self._name = access, name
        self._operator = access.inside(operator_namespace or OPERATOR_NAMESPACE)
        self._found = Gathered()
        self._turn = asyncio.Semaphore(AT_ONCE)
        self._names = {name}
        """What events may be about."""

    async def run(self) -> Gathered:
        """Take it. A missing right is no error: `AccessError` only where there is nothing or nobody to ask."""
        await self._consortium()
        pods: list[Object] = []
        own: list[Object] = []
        await asyncio.gather(
            *(self._try(kind, self._objects(kind, pods)) for kind in KINDS),
            *(
                self._try(f"{kind} in {self._operator.namespace}", self._operators(kind, own))
                for kind in OPERATORS
            ),
            self._try("secrets", self._secrets()),
            self._try("nodes", self._machines()),
            self._try("versions", self._versions()),
        )
        if not own:
            where = self._operator.namespace
            self._found.problems.append(
                f"operator: no pod of it was found in {where}; say --operator-namespace"
            )
        works = [("events", self._events())]
        works += [work for pod in pods for work in self._of_pod(pod)]
        works += [work for pod in own for work in self._logs(self._operator, pod, "operator")]
        await asyncio.gather(*(self._try(what, work) for what, work in works))
        return self._found

    async def _try(self, what: str, work: Awaitable[None]) -> None:
        """Do something; why it can't be done is a problem."""
        async with self._turn:
            try:
                await work
            except AccessError as error:
                self._found.problems.append(f"{what}: {clean_text(str(error))}")

    async def _consortium(self) -> None:
        try:
            consortium = await self._access.consortium(self._name)
        except RefusedError as error:
            self._found.problems.append(f"{CONSORTIA}: {error}")
            return
        self._found.json("consortium.json", consortium)
        self._found.text("status.txt", headline(details(consortium, [])) + "\n")

    async def _objects(self, kind: str, pods: list[Object]) -> None:
        objects = await self._access.listed(kind, labels=f"{CONSORTIUM}={self._name}")
        self._found.json(f"{kind}.json", objects)
        self._names.update(each["metadata"]["name"] for each in objects)
        if kind == "pods":
            pods.extend(objects)

    async def _operators(self, kind: str, pods: list[Object]) -> None:
        objects = await self._operator.listed(kind, labels=OPERATOR)
        self._found.json(f"operator/{kind}.json", objects)
        if kind == "pods":
            pods.extend(objects)

    async def _secrets(self) -> None:
        """As a table, which the API server makes without their values."""
        query = {"labelSelector": f"{CONSORTIUM}={self._name}", "includeObject": "None"}
        asked = Asked(path=self._access.path("secrets"), query=query, accept=TABLE)
        table = as_object(await self._access.fetch(asked))
        if table.get("kind") != "Table":
            raise AccessError("the API server gives no table of Secrets, so nothing of them is taken", 0)
        self._found.json("secrets.json", [secret(row) for row in table.get("rows") or []])

    async def _machines(self) -> None:
        self._found.json("machines.json", [machine(each) for each in await self._access.listed("nodes")])

    async def _versions(self) -> None:
        try:
            own = metadata.version("pcmoe")
        except metadata.PackageNotFoundError:
            own = "(not installed)"
        said = {
            "pcmoe": own,
            "python": platform.python_version(),
            "system": platform.platform(),
            "taken": datetime.now(UTC).isoformat(timespec="seconds"),
            "namespace": self._access.namespace,
            "apiServer": as_object(await self._access.get("/version")),
            "api": as_object(await self._access.get(f"/apis/{GROUP}")),
        }
        self._found.json("versions.json", said)

    async def _events(self) -> None:
        listed = await self._access.listed("events")
        self._found.json("events.json", [each for each in listed if concerns(each, self._names)])

    def _of_pod(self, pod: Object) -> list[Work]:
        """Its logs, and what it answers if it runs."""
        works = self._logs(self._access, pod, "pods")
        if text_at(pod, "status", "phase") == "Running":
            name = pod["metadata"]["name"]
            works += [(f"{path} of {name}", self._answer(name, path)) for path in ("/status", "/metrics")]
        return works

    async def _answer(self, pod: str, path: str) -> None:
        data = await self._access.ask(pod, path, most=LOG_BYTES)
        suffix = "json" if path == "/status" else "txt"
        self._found.text(f"pods/{pod}{path}.{suffix}", data.decode(errors="replace"))

    def _logs(self, access: Access, pod: Object, folder: str) -> list[Work]:
        name = pod["metadata"]["name"]
        works = [(f"log of {name}", self._log(access, name, folder, previous=False))]
        statuses = items(part(pod, "status"), "containerStatuses")
        if any(each.get("restartCount") for each in statuses):
            what = f"log of {name} before its last restart"
            works.append((what, self._log(access, name, folder, previous=True)))
        return works

    async def _log(self, access: Access, pod: str, folder: str, *, previous: bool) -> None:
        query = {"tailLines": str(LOG_LINES), "limitBytes": str(LOG_BYTES), "timestamps": "true"}
        query |= {"previous": "true"} if previous else {}
        data = await access.fetch(Asked(path=f"{access.path('pods', pod)}/log", query=query), LOG_SECONDS)
        self._found.text(
            f"{folder}/{pod}/{'previous' if previous else 'log'}.txt", data.decode(errors="replace")
        )


def concerns(event: Object, names: set[str]) -> bool:
    """Whether an Event is about one of these, or about a pod that is gone but was named after one."""
    about = text_at(event, "involvedObject", "name")
    return about in names or any(about.startswith((f"{each}-", f"{each}.")) for each in names)


def write(found: Gathered, path: Path, now: datetime) -> list[Object]:
    """Write all as one file that only its owner can read; gives back what it holds.

    Raises:
        UsageError: the file is there already, or can't be written.
    """
    if found.problems:
        found.text("problems.txt", "".join(f"{each}\n" for each in sorted(found.problems)))
    contents = [
        {"file": file, "bytes": len(data), "about": ABOUT.get(file, "")}
        for file, data in sorted(found.files.items())
    ]
    lines = [f"{each['bytes']:>10}  {each['file']}  {each['about']}".rstrip() + "\n" for each in contents]
    found.text("contents.txt", "".join(lines))
    folder = path.name.removesuffix(".tar.gz").removesuffix(".tgz")
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise UsageError(f"{path}: is there already; name another file with --output") from None
    except OSError as error:
        raise UsageError(f"{path}: can't be written: {error.strerror}") from error
    with os.fdopen(descriptor, "wb") as file, tarfile.open(fileobj=file, mode="w:gz") as archive:
        for each, data in sorted(found.files.items()):
            entry = tarfile.TarInfo(f"{folder}/{each}")
            entry.size, entry.mtime, entry.mode = len(data), int(now.timestamp()), 0o600
            archive.addfile(entry, io.BytesIO(data))
    return contents


def usual_name(name: str, now: datetime) -> Path:
    """The file that a bundle is written to if nobody names one."""
    return Path(f"{name}-must-gather-{now.astimezone(UTC):%Y%m%dT%H%M%SZ}.tar.gz")

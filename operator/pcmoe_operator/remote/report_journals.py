"""Participants' journals in a cluster.

Each comes from its running pod, by way of the API server; otherwise from its checkpoint volume, read by a pod that is
made for that and deleted whatever happens. What can't be had is told in a sentence.
"""

import asyncio
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pcmoe_operator.answers import Object, items, part, printable, text_at
from pcmoe_operator.constants import COORDINATOR
from pcmoe_operator.errors import UsageError
from pcmoe_operator.objects.names import PARTICIPANT, ROLE, Owner
from pcmoe_operator.objects.network import STATUS
from pcmoe_operator.remote.access import STATUS_PORT, Access
from pcmoe_operator.remote.report_pod import end_of, reading_pod, waits_for
from pcmoe_operator.remote.report_status import attempt_of, newest_job
from pcmoe_operator.remote.session import REQUEST_SECONDS, AccessError, Asked
from pcmoe_operator.report.parts import MAX_BYTES, Part, part_of, unpacked
from pcmoe_operator.report.timeline import Happening

ANSWER_SECONDS = 60.0
"""Deadline of a journal on its way."""
READ_SECONDS = 180.0
"""So long a reading pod may take to be placed, to have its image, and to print."""
LOOK_SECONDS = 0.5
DELETE_SECONDS = 15.0
AT_ONCE = 16
"""So many journals are fetched at a time."""
MAX_LOG_BYTES = 2 * MAX_BYTES
MAX_WORDS_BYTES = 64 * 1024
"""Of the log of a pod that failed."""
Tell = Callable[[str], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Listing:
    """Objects, or the sentence why there are none."""

    found: Sequence[Object]
    refused: str = ""


@dataclass(kw_only=True)
class Journals:
    """The journals of one consortium; see the module's description."""

    access: Access
    consortium: Object
    jobs: Listing
    pods: Listing
    make_pods: bool
    tell: Tell
    read_seconds: float = READ_SECONDS

    async def all_of(self, here: Sequence[str]) -> tuple[dict[str, Part], dict[str, str]]:
        """The parts of the participants that run here, and why the others' aren't there."""
        few = asyncio.Semaphore(AT_ONCE)

        async def one(name: str) -> Part | str:
            async with few:
                try:
                    return await self._part(name)
                except (AccessError, UsageError) as error:
                    return printable(str(error))

        async with asyncio.TaskGroup() as group:
            asked = {name: group.create_task(one(name)) for name in here}
        found = {name: task.result() for name, task in asked.items()}
        parts = {name: each for name, each in found.items() if isinstance(each, Part)}
        return parts, {name: each for name, each in found.items() if isinstance(each, str)}

    async def coordinators(self) -> Sequence[Happening]:
        """What the coordinator wrote down, while its pod runs; its journal goes with it."""
        pod = self._running(ROLE, COORDINATOR)
        if pod is None:
            return ()
        try:
            return (await self._told_by(pod, COORDINATOR, REQUEST_SECONDS)).events
        except (AccessError, UsageError):
            return ()

    async def _part(self, name: str) -> Part:
        pod = self._running(PARTICIPANT, name)
        if pod is None:
            return await self._stored(name, "")
        try:
            return await self._told_by(pod, name)
        except AccessError as error:
            first = str(error)
        try:
            return await self._stored(name, text_at(pod, "spec", "nodeName"))
        except (AccessError, UsageError) as error:
            raise UsageError(
                f"its pod didn't tell ({first}), and its volume can't be read ({error})"
            ) from None

    def _running(self, label: str, value: str) -> Object | None:
        """The pod that runs now, of the last attempt."""
        own = [
            pod
            for pod in self.pods.found
            if text_at(pod, "metadata", "labels", label) == value
            and text_at(pod, "status", "phase") == "Running"
            and not text_at(pod, "metadata", "deletionTimestamp")
        ]
        return max(own, key=attempt_of, default=None)

    async def _told_by(self, pod: Object, name: str, seconds: float = ANSWER_SECONDS) -> Part:
        """From a running pod, through the API server."""
        port = _status_port(pod)
        pod_name = text_at(pod, "metadata", "name")
        answer = await self.access.ask(pod_name, "/report", port, seconds=seconds, most=MAX_BYTES)
        return part_of(answer, name)

    async def _stored(self, name: str, node: str) -> Part:
        """From the volume, by a pod that is gone when this returns or raises."""
        if not self.make_pods:
            raise UsageError("its pod doesn't run, and no pod may be made to read its volume")
        job = newest_job(self.jobs.found, name)
        if job is None:
            raise UsageError(self.jobs.refused or "it has no Job, so nobody says where its journal is")
        owner = _owner(self.consortium, self.access.namespace)
        pod_name = f"{owner.name}.{name}.report-{secrets.token_hex(4)}"
        body = reading_pod(owner, name, job, pod_name, node)
        self.tell(f"{name}: reading its volume with the pod {pod_name}")
        try:
            await self.access.create("pods", body)
            return part_of(unpacked(await self._printed(pod_name)), name)
        finally:
            await self._remove(pod_name)

    async def _printed(self, pod_name: str) -> bytes:
        """The log of a reading pod once it has ended well."""
        pod: Object = {}
        try:
            async with asyncio.timeout(self.read_seconds):
                while (code := end_of(pod := await self.access.read("pods", pod_name))) is None:
                    await asyncio.sleep(LOOK_SECONDS)  # between two looks; the deadline is above
        except TimeoutError:
            why = waits_for(pod) or "nobody says why"
            raise UsageError(
                f"the pod that reads its volume didn't end within {self.read_seconds:g} s: {why}"
            ) from None
        if code == 0:
            return await self._log(pod_name, MAX_LOG_BYTES)
        why = await self._last_words(pod_name) or waits_for(pod) or "it said nothing"
        raise UsageError(f"the pod that reads its volume ended with {code}: {why}")

    async def _last_words(self, pod_name: str) -> str:
        try:
            log = await self._log(pod_name, MAX_WORDS_BYTES)
        except AccessError:
            return ""
        return printable(log.decode(errors="replace")[-400:])

    async def _log(self, pod_name: str, most: int) -> bytes:
        path = f"{self.access.path('pods', pod_name)}/log"
        asked = Asked(path=path, query={"limitBytes": str(most)})
        return await self.access.fetch(asked, ANSWER_SECONDS, most)

    async def _remove(self, pod_name: str) -> None:
        """Delete a pod. One that can't be deleted ends by its deadline, and goes with its consortium."""
        try:
            async with asyncio.timeout(DELETE_SECONDS):
                await self.access.delete("pods", pod_name)
        except (AccessError, TimeoutError) as error:
            self.tell(f"the pod {pod_name} can't be deleted: {error or 'no answer'}")


def _owner(consortium: Object, namespace: str) -> Owner:
    metadata = part(consortium, "metadata")
    return Owner(name=text_at(metadata, "name"), namespace=namespace, uid=text_at(metadata, "uid"))


def _status_port(pod: Object) -> int:
    """The port of a pod's status, by its name."""
    ports = [port for each in items(part(pod, "spec"), "containers") for port in items(each, "ports")]
    found = [port.get("containerPort") for port in ports if port.get("name") == STATUS]
    return next((port for port in found if isinstance(port, int)), STATUS_PORT)

"""The API server fails in every way that it can: nothing is stuck, nothing runs twice, never two lead."""

import asyncio
import contextlib
import json
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tests.cluster.plane import ControlPlane
from tests.cluster.processes import Process
from tests.cluster.waiting import eventually
from tests.integration.faulty_api import FaultyApi
from tests.integration.operating import NAMES, coordinator, node
from tests.integration.probing import Probed, account, running, user_of

from pcmoe_operator import cluster
from pcmoe_operator.cluster import ApiRequests, Cluster, ClusterError

WATCH_SECONDS = 3
RESYNC_SECONDS = 2
KINDS = ("pcmoeconsortia", "jobs", "pods")
READING = {"get", "list", "watch"}


@dataclass
class Troubled:
    """An operator that sees the API server only through faults."""

    operator: Probed
    api: FaultyApi
    plane: ControlPlane
    count: int = 0

    @property
    def namespace(self) -> str:
        return self.operator.namespace

    def running_pods(self, name: str) -> dict[str, str]:
        """uids of a consortium's running pods by participant, once all run; the coordinator's is ''."""

        def look() -> dict[str, str]:
            pods = self.plane.pods(self.namespace, f"pcmoe.dev/consortium={name}")
            alive = [pod for pod in pods if pod["status"].get("phase") == "Running" and not ending(pod)]
            found = {participant(pod): pod["metadata"]["uid"] for pod in alive}
            return found if set(found) == {"", *NAMES} else {}

        return eventually(f"the pods of {name} run", look, within=30)

    def state(self, name: str, wanted: str, within: float = 20) -> None:
        """Wait until a consortium's state is so."""
        eventually(
            f"{name} is {wanted}", lambda: self.operator.status(name).get("state") == wanted, within=within
        )

    def suspend(self, name: str, value: bool) -> None:
        """Change `spec.suspend`."""
        patch = json.dumps({"spec": {"suspend": value}})
        self.plane.kubectl("patch", "pcmoe", name, "-n", self.namespace, "--type=merge", "-p", patch)

    def jobs(self, name: str) -> dict[str, Any]:
        """Generations of a consortium's Jobs, by uid."""
        found = self.plane.read("jobs", "-n", self.namespace, "-l", f"pcmoe.dev/consortium={name}")["items"]
        return {job["metadata"]["uid"]: job["metadata"]["generation"] for job in found}


def ending(pod: dict[str, Any]) -> bool:
    return bool(pod["metadata"].get("deletionTimestamp"))


def participant(pod: dict[str, Any]) -> str:
    return str(pod["metadata"]["labels"].get("pcmoe.dev/participant", ""))


@pytest.fixture(scope="module")
def here(own_plane: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Troubled]:
    """One operator for many faults; each test has consortia of its own."""
    with own_plane.namespace() as namespace, FaultyApi(own_plane.kubeconfig) as api:
        folder = tmp_path_factory.mktemp("operator")
        kubeconfig = api.kubeconfig(own_plane.kubeconfig)
        told = {"leaseSeconds": 15, "watchSeconds": WATCH_SECONDS, "resyncSeconds": RESYNC_SECONDS}
        with running(Probed(own_plane, namespace, folder, kubeconfig, **told)) as operator:
            operator.until_leading()
            eventually("it watches", lambda: api.watches == 3, within=10)
            yield Troubled(operator, api, own_plane)


@pytest.fixture(autouse=True)
def healed(request: pytest.FixtureRequest) -> Iterator[None]:
    if "here" in request.fixturenames:
        found: Troubled = request.getfixturevalue("here")
        found.api.heal()
        if not found.operator.running:  # it lost its lease, on a machine with much to do: as the kubelet does
            found.operator.start()
            found.operator.until_leading(within=40)
    yield


@pytest.mark.parametrize(
    ("method", "path", "what"),
    [
        ("POST", "/jobs", {"status": 409, "times": 2}),
        ("PATCH", "/services/pcmoe-members-{name}", {"status": 500, "times": 2}),
        ("PATCH", "/replicasets/{name}", {"status": 503, "times": 2}),
        ("PATCH", "/secrets/{name}", {"reset": True, "times": 2}),
        ("POST", "/jobs", {"reset": True, "sent": True, "times": 1}),
        ("PATCH", "/pcmoeconsortia/{name}/status", {"status": 409, "times": 2}),
        ("PATCH", "/configmaps/{name}", {"slow": 2.0, "times": 1}),
    ],
    ids=["conflict", "error", "unavailable", "reset", "answer lost", "conflict of status", "slow"],
)
def test_a_request_that_fails_is_made_again_until_all_runs(
    here: Troubled, method: str, path: str, what: dict[str, Any]
) -> None:
    here.count += 1
    name = f"retried-{here.count}"
    fault = here.api.fault(method, path.format(name=name), **what)
    here.operator.apply(name)
    pods = here.running_pods(name)
    assert fault.times == 0, "the fault was met"
    assert len(here.jobs(name)) == len(NAMES)
    eventually("it has a status", lambda: here.operator.status(name).get("state"), within=10)
    assert here.running_pods(name) == pods
    here.plane.kubectl("delete", "pcmoe", name, "-n", here.namespace, "--wait=false")


def test_a_server_that_asks_for_a_pause_gets_it(here: Troubled) -> None:
    path = "/services/pcmoe-members-paused"
    fault = here.api.fault("PATCH", path, status=429, headers={"Retry-After": "3"})
    here.operator.apply("paused")
    here.running_pods("paused")
    assert fault.times == 0
    first, second, *_ = [each.at for each in here.api.passed if each.method == "PATCH" and path in each.path]
    assert second - first >= 3.0
    series = '{code="429",resource="services",verb="patch"}'
    assert here.operator.metric(f"pcmoe_operator_api_requests_total{series}") == 1
    here.plane.kubectl("delete", "pcmoe", "paused", "-n", here.namespace, "--wait=false")


@pytest.mark.parametrize("broken", ["closed", "half open"])
def test_what_happens_while_the_watches_are_broken_is_seen_soon(here: Troubled, broken: str) -> None:
    name = f"unwatched-{broken.replace(' ', '-')}"
    here.operator.apply(name)
    pods, jobs = here.running_pods(name), here.jobs(name)
    if broken == "closed":
        here.api.drop_watches()
    else:
        here.api.freeze_watches()
    here.suspend(name, True)
    here.state(name, "Suspended", within=WATCH_SECONDS * 4 / 3 + 6)
    assert here.operator.get("/healthz") == (200, "ok\n")
    assert set(here.jobs(name)) == set(jobs)
    here.suspend(name, False)
    assert here.running_pods(name) != pods
    here.plane.kubectl("delete", "pcmoe", name, "-n", here.namespace, "--wait=false")


def test_broken_watches_restart_no_pod(here: Troubled) -> None:
    here.operator.apply("steady")
    pods, jobs = here.running_pods("steady"), here.jobs("steady")
    for fault in (here.api.drop_watches, here.api.freeze_watches):
        fault()
        seen = len(here.api.passed)

        def opened(since: int = seen) -> bool:
            return sum("watch=true" in each.path for each in here.api.passed[since:]) >= 3

        eventually("the watches are opened anew", opened, within=WATCH_SECONDS * 4 / 3 + 6)
    assert (here.running_pods("steady"), here.jobs("steady")) == (pods, jobs)
    here.plane.kubectl("delete", "pcmoe", "steady", "-n", here.namespace, "--wait=false")


@pytest.mark.parametrize("status", [401, 403, 429], ids=["token", "rights", "load"])
def test_a_watch_that_is_refused_for_a_moment_is_opened_again(here: Troubled, status: int) -> None:
    for kind in KINDS:
        here.api.fault("GET", f"/{kind}?watch=true", status=status)
    since = len(here.api.passed)
    here.api.drop_watches()

    def answers(kind: str) -> list[int]:
        return [each.status for each in here.api.passed[since:] if f"/{kind}?watch=true" in each.path]

    eventually("all are open", lambda: all(200 in answers(kind) for kind in KINDS), within=30)
    assert all(status in answers(kind) for kind in KINDS), "and were refused before"
    assert here.operator.running


def test_what_is_deleted_unseen_is_noticed_after_the_watch_has_lost_its_place(here: Troubled) -> None:
    """After a 410 everything is listed anew; a listing doesn't tell what is there no more."""
    for name in ("deleted", "robbed"):
        here.operator.apply(name)
        here.running_pods(name)
    jobs = here.jobs("robbed")
    blind = [here.api.fault("GET", f"/{kind}?watch=true", status=503, times=1_000) for kind in KINDS]
    here.api.drop_watches()
    eventually("no watch is left", lambda: here.api.watches == 0, within=10)
    here.plane.kubectl("delete", "pcmoe", "deleted", "-n", here.namespace, "--timeout=20s")
    here.plane.kubectl("delete", "job", f"robbed.{NAMES[0]}.1", "-n", here.namespace, "--timeout=20s")
    gone = [here.api.fault("GET", f"/{kind}?watch=true", gone=True) for kind in KINDS]
    for fault in blind:
        fault.times = 0
    eventually("all have lost their place", lambda: not any(fault.times for fault in gone), within=30)
    eventually("the Job is there again", lambda: len(here.jobs("robbed")) == len(NAMES), within=30)
    here.running_pods("robbed")
    assert len(set(here.jobs("robbed")) & set(jobs)) == 1, "one Job is the same, one new"
    for kind in KINDS:
        assert here.operator.metric(f'pcmoe_operator_watch_restarts_total{{resource="{kind}"}}') >= 1
    pilot = "pcmoe.dev/consortium=deleted"
    kinds = "jobs,pods,replicasets,secrets,configmaps,services,networkpolicies"

    def left() -> str:
        return here.plane.kubectl("get", kinds, "-n", here.namespace, "-l", pilot, "-o", "name")

    eventually(
        "nothing of it is left", lambda: not left(), within=45
    )  # the collector looks for new kinds every 30 s
    writes = writes_about(here.api, "deleted")
    time.sleep(1.5 * RESYNC_SECONDS + 0.5)  # it would be written for within that
    assert writes_about(here.api, "deleted") == writes and not left()
    here.plane.kubectl("delete", "pcmoe", "robbed", "-n", here.namespace, "--wait=false")


def writes_about(api: FaultyApi, name: str) -> int:
    """How many writes there were that name a consortium."""
    return sum(each.method != "GET" and f"/{name}" in each.path for each in list(api.passed))


def test_an_api_server_that_is_started_anew_changes_nothing_that_runs(
    here: Troubled, own_plane: ControlPlane
) -> None:
    here.operator.apply("outliving")
    pods, jobs = here.running_pods("outliving"), here.jobs("outliving")
    restart_apiserver(own_plane)
    with contextlib.suppress(subprocess.TimeoutExpired):
        # If it could not renew its lease in time it ends, and the kubelet starts it again.
        assert here.operator.ended(5) == 75
        here.operator.start()
    here.operator.until_leading(within=40)  # nobody has let go of the old lease
    assert (here.running_pods("outliving"), here.jobs("outliving")) == (pods, jobs)
    here.suspend("outliving", True)
    here.state("outliving", "Suspended")
    here.plane.kubectl("delete", "pcmoe", "outliving", "-n", here.namespace, "--wait=false")


def restart_apiserver(plane: ControlPlane) -> None:
    """Kill the API server and start it again with the same command line."""
    old = next(each for each in plane.processes if each.name == "kube-apiserver")
    command = Path(f"/proc/{old.pid}/cmdline").read_text().split("\0")[:-1]
    place = plane.processes.index(old)
    old.kill()
    plane.processes[place] = Process("kube-apiserver", command, old.log.parent)

    def ready() -> bool:
        try:
            return plane.kubectl("get", "--raw", "/readyz", seconds=5) == "ok"
        except Exception:
            return False

    eventually("the API server is ready", ready, within=60)


def test_every_request_has_a_deadline(
    own_plane: ControlPlane, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "REQUEST_SECONDS", 0.5)

    async def ask(kubeconfig: Path) -> None:
        async with ApiRequests.to(str(kubeconfig)) as requests:
            with pytest.raises(ClusterError) as caught:
                await Cluster(requests).list("v1", "Pod", namespace)
            assert caught.value.status == 0

    with FaultyApi(own_plane.kubeconfig) as api:
        api.fault("GET", "/pods", slow=5.0)
        began = time.monotonic()
        asyncio.run(ask(api.kubeconfig(own_plane.kubeconfig)))
        assert time.monotonic() - began < 3.0


# Who leads


def pair(plane: ControlPlane, namespace: str, folder: Path) -> list[Probed]:
    """Two operators of one namespace, each with a name of its own in the audit log."""
    return [
        Probed(plane, namespace, folder / name, account(plane, namespace, name)) for name in ("one", "two")
    ]


def busy(operator: Probed) -> None:
    """A consortium whose status changes at every look."""
    operator.apply()
    operator.all_pods()
    for name in NAMES:
        operator.answer(name, Changing(node(1)))
    operator.answer("", coordinator(1))


class Changing(dict[str, Any]):
    """A status with another loss whenever it is asked for."""

    def items(self) -> Any:
        self["heldOutLoss"] = self.get("heldOutLoss", 0.0) + 0.01
        return super().items()


def writes(plane: ControlPlane, namespace: str) -> list[tuple[str, bool]]:
    """(user, whether it is about the lease) of every write of our two in a namespace, in order."""
    ours = {user_of(namespace, name): name for name in ("one", "two")}
    return [
        (ours[each.user], each.resource == "leases")
        for each in plane.requests()
        if each.user in ours and each.verb not in READING and 200 <= each.code < 300
    ]


def assert_one_at_a_time(plane: ControlPlane, namespace: str) -> None:
    """Whoever writes has written the lease last."""
    leader = ""
    for user, lease in writes(plane, namespace):
        if lease:
            leader = user
        else:
            assert user == leader, f"{user} wrote while {leader} led"


def test_a_leader_that_was_stopped_writes_nothing_when_it_goes_on(
    own_plane: ControlPlane, namespace: str, tmp_path: Path
) -> None:
    one, two = pair(own_plane, namespace, tmp_path)
    with running(one):
        one.until_leading()
        busy(one)
        pods = {name: pod["metadata"]["uid"] for name, pod in one.all_pods().items()}
        jobs = generations(own_plane, namespace)
        with running(two):
            eventually("the second one waits", lambda: two.get("/readyz")[0] == 200, within=20)
            eventually("it watches already", lambda: all(two.watches(kind) for kind in KINDS), within=10)
            assert two.metric("pcmoe_operator_leader") == 0
            one.apply("second")  # something to be written for is under way
            one.signal(signal.SIGSTOP)
            before = len(writes(own_plane, namespace))
            two.until_leading()
            one.change(suspend=False, attempt=1)
            written = [user for user, _ in writes(own_plane, namespace)[before:]]
            one.signal(signal.SIGCONT)
            assert one.ended(10) == 75
            assert "two" in written
            two.until(lambda status: status.get("state") not in (None, "Pending"))
            assert_one_at_a_time(own_plane, namespace)
            assert {n: p["metadata"]["uid"] for n, p in pods_of(two, "pilot").items()} == pods
            assert jobs.items() <= generations(own_plane, namespace).items()
            one.start()  # as the kubelet does
            eventually("it waits", lambda: one.get("/readyz")[0] == 200, within=20)
            assert one.metric("pcmoe_operator_leader") == 0
            assert two.stop() == 0
            one.until_leading()
            one.change(suspend=True)
            one.until(lambda status: status.get("state") == "Suspended")
            assert_one_at_a_time(own_plane, namespace)


def pods_of(operator: Probed, consortium: str) -> dict[str, dict[str, Any]]:
    """Pods of one consortium by participant."""
    pods = operator.plane.pods(operator.namespace, f"pcmoe.dev/consortium={consortium}")
    return {participant(pod): pod for pod in pods}


def generations(plane: ControlPlane, namespace: str) -> dict[str, int]:
    """Of every Job of a namespace, by uid."""
    found = plane.read("jobs", "-n", namespace)["items"]
    return {job["metadata"]["uid"]: job["metadata"]["generation"] for job in found}


def test_a_leader_whose_lease_another_one_took_stops_at_once(
    own_plane: ControlPlane, namespace: str, tmp_path: Path
) -> None:
    one = Probed(own_plane, namespace, tmp_path / "one", account(own_plane, namespace, "one"))
    with running(one):
        one.until_leading()
        busy(one)
        patch = json.dumps({"spec": {"holderIdentity": "somebody-else"}})
        own_plane.kubectl("patch", "lease", "pcmoe-operator", "-n", namespace, "--type=merge", "-p", patch)
        assert one.ended(10) == 75
        assert one.told("is lost")
        holder = own_plane.read("lease", "pcmoe-operator", "-n", namespace)["spec"]["holderIdentity"]
        assert holder == "somebody-else"
        assert one.pods().keys() == {"", *NAMES}
        one.start()
        one.until_leading()  # that one never renews
        one.change(suspend=True)
        one.until(lambda status: status.get("state") == "Suspended")

"""The chart as its users have it: installed, upgraded and removed by Helm, and its Role is what the operator needs."""

import json
import os
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.builders import manifest
from tests.cluster import build
from tests.cluster.cluster import Cluster
from tests.cluster.errors import WaitError
from tests.cluster.plane import ControlPlane
from tests.cluster.processes import free_ports
from tests.cluster.waiting import eventually
from tests.integration.operating import NAMES, Operated, coordinator, node

from pcmoe_operator.settings import Settings

ROOT = Path(__file__).parents[2]
CHART = ROOT / "charts" / "pcmoe"
CRD = "pcmoeconsortia.pcmoe.dev"
HELM_SECONDS = 60.0
Right = tuple[str, str, str]
"""Namespace, resource with its group, verb."""


class HelmError(Exception):
    """Helm ended with an error."""


def helm(plane: Cluster, *args: str | Path) -> str:
    """Run Helm and return what it prints; `HelmError` has what it says otherwise."""
    homes = {f"HELM_{kind}_HOME": str(plane.folder / "helm" / kind) for kind in ("CACHE", "CONFIG", "DATA")}
    direct = f"{os.environ.get('NO_PROXY', '')},127.0.0.1".lstrip(",")
    done = subprocess.run(
        [str(build.ensure("helm")["helm"]), *map(str, args)],
        env={**os.environ, **homes, "KUBECONFIG": str(plane.kubeconfig), "NO_PROXY": direct},
        capture_output=True,
        text=True,
        timeout=HELM_SECONDS,
        check=False,
    )
    if done.returncode:
        raise HelmError(done.stderr)
    return done.stdout


def served(plane: Cluster) -> bool:
    """Whether the API server knows consortia. `kubectl wait` fails on a definition that has no conditions yet."""
    conditions = plane.read("crd", CRD).get("status", {}).get("conditions") or []
    return any(each["type"] == "Established" and each["status"] == "True" for each in conditions)


class Charted(Operated):
    """The operator with the settings, the service account and the rights that the chart renders."""

    def __init__(
        self, plane: ControlPlane, namespace: str, release_namespace: str, folder: Path, *others: str
    ) -> None:
        super().__init__(plane, namespace, folder)
        self.release_namespace = release_namespace
        values = {
            "watchNamespaces": [namespace, *others],
            "operator": {"replicas": 0},  # it runs here, outside the cluster
            "settings": {"statusSeconds": 0.5},
            "ports": {"metrics": free_ports(1)[0]},
        }
        given = folder / "values.yaml"
        given.write_text(json.dumps(values))
        self.text = helm(
            plane, "template", "pcmoe", CHART, "--namespace", release_namespace, "--values", given
        )
        self.rendered = [each for each in yaml.safe_load_all(self.text) if each]
        plane.apply(self.text)
        eventually("consortia are served", partial(served, plane), within=20)
        account = next(each for each in self.rendered if each["kind"] == "ServiceAccount")
        self.user = f"system:serviceaccount:{release_namespace}:{account['metadata']['name']}"
        self.kubeconfig = plane.kubeconfig_for(self.user)

    def settings(self) -> dict[str, Any]:
        told = next(each for each in self.rendered if each["kind"] == "ConfigMap")["data"]["settings.json"]
        found: dict[str, Any] = json.loads(told)
        return found

    def granted(self) -> set[Right]:
        """Every right that the chart gives."""
        return {
            (role["metadata"]["namespace"], "/".join(filter(None, (group, resource))), verb)
            for role in self.rendered
            if role["kind"] == "Role"
            for rule in role["rules"]
            for group in rule["apiGroups"]
            for resource in rule["resources"]
            for verb in rule["verbs"]
        }

    def used(self) -> Counter[Right]:
        """Every right that was needed so far, how often. To make an object by applying it takes `create` too."""
        found: Counter[Right] = Counter()
        for each in self.plane.requests(self.user):
            if each.resource:
                group = each.path.split("/")[2] if each.path.startswith("/apis/") else ""
                verbs = [each.verb, "create"] if (each.verb, each.code) == ("patch", 201) else [each.verb]
                name = "/".join(filter(None, (group, each.resource)))
                found.update((each.namespace, name, verb) for verb in verbs)
        return found

    def refused(self) -> list[str]:
        """Requests that were answered with 401 or 403."""
        asked = self.plane.requests(self.user)
        return [f"{each.verb} {each.path}" for each in asked if each.code in (401, 403)]


@pytest.fixture
def charted(own_plane: ControlPlane, namespace: str, tmp_path: Path) -> Iterator[Charted]:
    with own_plane.namespace("release") as release_namespace:
        found = Charted(own_plane, namespace, release_namespace, tmp_path)
        found.start()
        try:
            yield found
        finally:
            found.kill()
            found.answers.close()


def train_a_round(here: Operated) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """All pods run and say that a round is over; what they say, to be changed."""
    here.all_pods()
    said, leading = {name: node(1) for name in NAMES}, coordinator(1)
    for name in NAMES:
        here.answer(name, said[name])
    here.answer("", leading)
    here.until(lambda status: status.get("state") == "Running")
    return said, leading


def refused_pods(here: Charted) -> None:
    """A consortium whose pods a quota refuses for a while: only Events tell why, and are listed for that."""
    quota = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "none"}}
    here.plane.apply({**quota, "spec": {"hard": {"pods": "0"}}}, namespace=here.namespace)

    def counts() -> bool:
        found = here.plane.read("resourcequota", "none", "-n", here.namespace)
        return "pods" in found.get("status", {}).get("hard", {})

    eventually("a quota that counts", counts, within=30)
    here.apply()
    asked = (here.namespace, "events.k8s.io/events", "list")
    eventually("Events listed", lambda: asked in here.used(), within=60)
    here.plane.kubectl("delete", "resourcequota", "none", "-n", here.namespace)


def suspend_and_resume(here: Charted, telling: str) -> None:
    """Resumed only when an Event has told of it, which takes the given verb: what is soon over is no news."""
    told = (here.namespace, "events.k8s.io/events", telling)
    before = here.used()[told]
    here.change(suspend=True)
    here.until(lambda status: status.get("state") == "Suspended" and not set(here.pods()) & set(NAMES))
    eventually(f"{telling} of an Event", lambda: here.used()[told] > before, within=30)
    here.change(suspend=False)
    here.until(lambda status: status.get("state") != "Suspended")


def test_the_operator_is_granted_what_it_uses_and_nothing_else(charted: Charted) -> None:
    """From create to delete, over a restart and a deleted Lease: all of the Roles is used, and no more asked for."""
    assert not [each["kind"] for each in charted.rendered if each["kind"].startswith("ClusterRole")]
    refused_pods(charted)
    train_a_round(charted)
    suspend_and_resume(charted, telling="create")
    train_a_round(charted)
    assert charted.stop() == 0, charted.log.read_text()
    charted.start()
    charted.plane.kubectl("delete", "lease", "pcmoe-operator", "-n", charted.release_namespace)
    suspend_and_resume(charted, telling="patch")  # the Event is there already
    said, leading = train_a_round(charted)
    for name in NAMES:
        said[name] |= node(4, "DONE")
    leading |= coordinator(4)
    for name in NAMES:
        charted.annotate(name, outcome="succeed")
    charted.until(lambda status: status.get("state") == "Completed")
    charted.plane.kubectl("delete", "pcmoe", "pilot", "-n", charted.namespace, "--timeout=20s")

    granted = charted.granted()
    with suppress(WaitError):
        eventually("audit log with all of it", lambda: set(charted.used()) == granted, within=10)
    used = set(charted.used())
    lacking, idle = sorted(used - granted), sorted(granted - used)
    assert not lacking and not idle, f"charts/pcmoe/templates/rbac.yaml lacks {lacking}; not used: {idle}"
    assert charted.refused() == []


@pytest.fixture(scope="module")
def bare_plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """A cluster of its own: whether and whose the definition of consortia is, concerns all of it."""
    with ControlPlane(tmp_path_factory.mktemp("bare")) as plane:
        yield plane


@pytest.fixture
def clean(bare_plane: ControlPlane) -> ControlPlane:
    """The same, without the definition."""
    bare_plane.kubectl("delete", "crd", CRD, "--ignore-not-found")
    return bare_plane


def older_chart(folder: Path) -> Path:
    """This chart as it may have been: a lower version, and a definition without one of its fields."""
    shutil.copytree(CHART, folder / "pcmoe")
    metadata = folder / "pcmoe" / "Chart.yaml"
    metadata.write_text(yaml.safe_dump({**yaml.safe_load(metadata.read_text()), "version": "0.0.1"}))
    crd = folder / "pcmoe" / "files" / "crd.yaml"
    older = yaml.safe_load(crd.read_text())
    del spec_of(older)["attempt"]
    crd.write_text(json.dumps(older))  # JSON is YAML, and PyYAML would leave away quotes that others need
    return folder / "pcmoe"


def spec_of(crd: dict[str, Any]) -> dict[str, Any]:
    """The fields of a consortium's spec, in the definition."""
    schema = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    fields: dict[str, Any] = schema["properties"]["spec"]["properties"]
    return fields


def objects_of(plane: Cluster, namespace: str) -> set[str]:
    """What is in a namespace, without what every namespace has."""
    kinds = "deployments,pods,configmaps,secrets,serviceaccounts,roles,rolebindings,networkpolicies,services,leases"
    names = plane.kubectl("get", kinds, "--namespace", namespace, "--output", "name").split()
    return set(names) - {"configmap/kube-root-ca.crt", "serviceaccount/default"}


def test_an_upgrade_brings_the_new_definition_and_only_it_and_the_consortia_survive_the_release(
    clean: ControlPlane, tmp_path: Path
) -> None:
    with clean.namespace() as here:
        clean.kubectl("label", "namespace", here, "pod-security.kubernetes.io/enforce=restricted")
        helm(clean, "install", "pcmoe", older_chart(tmp_path), "--namespace", here)
        assert "attempt" not in spec_of(clean.read("crd", CRD))
        eventually("consortia are served", partial(served, clean), within=20)
        clean.apply(ROOT / "manifests/samples/pilot.yaml", namespace=here)
        before = clean.read("deployment", "pcmoe-operator", "-n", here)
        eventually("a pod that restricted Pod Security lets in", lambda: clean.pods(here), within=20)
        told = helm(clean, "upgrade", "pcmoe", CHART, "-n", here, "--set", "settings.resyncSeconds=60")
        assert "STATUS: deployed" in told and "WARNING: node.image is not pinned" in told
        assert "attempt" in spec_of(clean.read("crd", CRD))
        after = clean.read("deployment", "pcmoe-operator", "-n", here)
        assert checksum(before) != checksum(after)
        helm(clean, "uninstall", "pcmoe", "-n", here)
        gone = partial(objects_of, clean, here)
        eventually("end of all that was installed", lambda: not gone(), within=20)
        assert clean.read("pcmoe", "pilot", "-n", here)["metadata"]["name"] == "pilot"
        helm(clean, "install", "pcmoe", CHART, "-n", here)
        assert clean.read("deployment", "pcmoe-operator", "-n", here)["spec"]["replicas"] == 1


def checksum(deployment: dict[str, Any]) -> str:
    """What changes with the settings, so that the operator is started again."""
    return str(deployment["spec"]["template"]["metadata"]["annotations"]["checksum/settings"])


def test_a_second_release_leaves_the_definition_to_the_first_and_takes_it_over_when_that_is_gone(
    clean: ControlPlane,
) -> None:
    with clean.namespace("one") as one, clean.namespace("two") as two:
        helm(clean, "install", "first", CHART, "--namespace", one)
        with pytest.raises(HelmError, match=f'{CRD}.*release-name" must equal "second"'):
            helm(clean, "install", "second", CHART, "--namespace", two)
        helm(clean, "install", "second", CHART, "--namespace", two, "--set", "crds.install=false")
        helm(clean, "uninstall", "first", "--namespace", one)
        helm(
            clean,
            "upgrade",
            "second",
            CHART,
            "--namespace",
            two,
            "--set",
            "crds.install=true",
            "--take-ownership",
        )
        assert owner(clean) == "second"
        helm(clean, "upgrade", "second", CHART, "--namespace", two, "--set", "crds.install=false")
        assert owner(clean) == "second", "a definition that isn't part of the release any more was deleted"


def owner(plane: Cluster) -> str:
    """The release that the definition belongs to."""
    return str(plane.read("crd", CRD)["metadata"]["annotations"]["meta.helm.sh/release-name"])


def test_a_definition_that_was_applied_by_hand_is_taken_over_on_demand(clean: ControlPlane) -> None:
    with clean.namespace() as here:
        older = yaml.safe_load((ROOT / "manifests/crd.yaml").read_text())
        del spec_of(older)["attempt"]
        clean.kubectl("apply", "-f", "-", given=older)
        with pytest.raises(HelmError, match="invalid ownership metadata"):
            helm(clean, "install", "pcmoe", CHART, "--namespace", here)
        helm(clean, "install", "pcmoe", CHART, "--namespace", here, "--take-ownership", "--force-conflicts")
        assert "attempt" in spec_of(clean.read("crd", CRD))


def test_a_namespace_has_one_operator(clean: ControlPlane) -> None:
    with clean.namespace("one") as one, clean.namespace("two") as two:
        helm(clean, "install", "first", CHART, "--namespace", one)
        further = ("--namespace", two, "--set", "crds.install=false", "--set", f"watchNamespaces={{{one}}}")
        with pytest.raises(HelmError, match=f'Role "pcmoe-operator" in namespace "{one}" exists'):
            helm(clean, "install", "second", CHART, *further)


def test_a_namespace_that_is_not_there_is_named(clean: ControlPlane) -> None:
    with clean.namespace() as here:
        with pytest.raises(HelmError, match='namespaces "nowhere" not found'):
            helm(clean, "install", "pcmoe", CHART, "-n", here, "--set", "watchNamespaces={nowhere}")
        helm(clean, "upgrade", "--install", "pcmoe", CHART, "-n", here, "--reset-values")


@pytest.mark.parametrize("openshift", [False, True])
def test_the_settings_are_all_there_and_the_operator_takes_them(
    clean: ControlPlane, tmp_path: Path, openshift: bool
) -> None:
    values = {
        "openshift": openshift,
        "watchNamespaces": ["one", "two"],
        "partner": {"participants": ["berlin"], "addresses": ["203.0.113.7/32"]},
        "imagePullSecrets": [{"name": "registry"}],
        "node": {"image": {"tag": "7", "digest": f"sha256:{'0' * 64}"}},
        "metrics": {"readers": [{"namespaceLabels": {"kubernetes.io/metadata.name": "monitoring"}}]},
    }
    given = tmp_path / "values.yaml"
    given.write_text(json.dumps(values))
    args = ("-n", "here", "-s", "templates/settings.yaml", "-f", given)
    told = yaml.safe_load(helm(clean, "template", "pcmoe", CHART, *args))["data"]["settings.json"]
    assert set(json.loads(told)) == {field.alias for field in Settings.model_fields.values()}
    settings = Settings.model_validate_json(told)
    assert settings.namespaces == ("one", "two") and settings.participants == ("berlin",)
    assert settings.partner_addresses == ("203.0.113.7/32",)
    assert settings.lease_namespace == "here" and settings.image_pull_secrets == ("registry",)
    assert settings.node_image.endswith(f"pcmoe-node@sha256:{'0' * 64}")
    assert settings.metrics_readers[0].namespace_labels == {"kubernetes.io/metadata.name": "monitoring"}
    assert settings.volume_group == (None if openshift else 65532)
    assert settings.dns_ports == ((5353,) if openshift else (53,))


def test_the_definition_is_rendered_as_it_is(clean: ControlPlane) -> None:
    rendered = yaml.safe_load(helm(clean, "template", "pcmoe", CHART, "-s", "templates/crd.yaml"))
    kept = rendered["metadata"].pop("annotations")
    assert kept == {"helm.sh/resource-policy": "keep"}
    del rendered["metadata"]["labels"]
    assert rendered == yaml.safe_load((ROOT / "manifests/crd.yaml").read_text())


def test_a_namespace_that_is_deleted_keeps_no_other_from_being_looked_after(
    own_plane: ControlPlane, namespace: str, tmp_path: Path
) -> None:
    lost = f"{namespace}-lost"
    own_plane.kubectl("create", "namespace", lost)
    with own_plane.namespace("release") as release_namespace:
        here = Charted(own_plane, namespace, release_namespace, tmp_path, lost)
        try:
            here.start()
            here.until_looked()
            own_plane.kubectl("delete", "namespace", lost, "--timeout=60s")
            here.kill()  # as a kubelet does: the watches there are dead
            here.start()
            here.apply()
            here.all_pods()
            assert f"{lost}: nothing is looked after there" in here.log.read_text()
            own_plane.kubectl("create", "namespace", lost)
            own_plane.apply(here.text)
            own_plane.apply(manifest(2, {"metadata.name": "pilot"}), namespace=lost)
            eventually("the end of the process", lambda: not here.alive, within=60)
            here.start()
            eventually(
                "a status there too",
                lambda: "status" in own_plane.read("pcmoe", "pilot", "-n", lost),
                within=30,
            )
        finally:
            here.kill()
            own_plane.kubectl("delete", "namespace", lost, "--ignore-not-found", "--wait=false")

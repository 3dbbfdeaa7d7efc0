"""Every sample on a real API server: taken by the operator, it gets where it should. And the API explains itself."""

import asyncio
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from tests.builders import manifest
from tests.cluster.plane import ControlPlane
from tests.cluster.waiting import eventually
from tests.integration.operating import CRD, Operated, operated
from tests.unit.bad_manifests import BAD_MANIFESTS, Bad

from pcmoe_operator.cluster import ApiRequests, ClusterError
from pcmoe_operator.pki import issue_authority
from pcmoe_operator.schema import Consortium
from pcmoe_operator.spec import load

SAMPLES = Path(__file__).parents[2] / "manifests" / "samples"
ALL = sorted(path.stem for path in SAMPLES.glob("*.yaml"))
REFUSED = [row for row in BAD_MANIFESTS if row.by != "operator"]
AT_LEAST = 40
"""So many bad manifests are refused with a message that names field, value and rule."""


@pytest.fixture
def here(own_plane: ControlPlane, namespace: str, tmp_path: Path) -> Iterator[Operated]:
    with operated(own_plane, namespace, tmp_path, Operated) as found:
        yield found


@pytest.fixture
def api(own_plane: ControlPlane) -> ControlPlane:
    """The API server knows consortia; no operator looks after them."""
    own_plane.define(CRD)
    return own_plane


def apply(here: Operated, sample: str) -> Consortium:
    """Apply a sample as its reader would: the claims that it names, then the file itself."""
    consortium = load(SAMPLES / f"{sample}.yaml")
    for local in consortium.local:
        volumes = local.volumes
        for volume in (volumes.dataset, volumes.model):
            if volume is not None and volume.persistent_volume_claim is not None:
                name = volume.persistent_volume_claim.claim_name
                here.plane.apply(_volume(here.namespace, name), _claim(name), namespace=here.namespace)
        here.plane.apply(_volume(here.namespace, f"{sample}.{local.name}"))
    here.plane.apply(SAMPLES / f"{sample}.yaml", namespace=here.namespace)
    return consortium


def _claim(name: str) -> Mapping[str, Any]:
    spec = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}
    metadata = {"name": name}
    return {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": metadata, "spec": spec}


def _volume(namespace: str, claim: str) -> Mapping[str, Any]:
    """A volume kept for one claim: nothing makes any here."""
    name = f"{namespace}.{claim}"
    spec = {
        "capacity": {"storage": "1Ti"},
        "accessModes": ["ReadWriteOnce"],
        "claimRef": {"namespace": namespace, "name": claim},
        "hostPath": {"path": f"/nowhere/{name}"},
    }
    return {"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": name}, "spec": spec}


def until(here: Operated, sample: str, state: str) -> dict[str, Any]:
    """The status, once the operator has taken the manifest and says this of it."""

    def found() -> dict[str, Any] | None:
        status = here.status(sample)
        return status if status.get("state") == state else None

    status = eventually(f"{sample} is {state}", found, within=40)
    assert (condition(status, "Accepted")["status"] == "True") == (state != "Invalid")
    return status


def condition(status: Mapping[str, Any], kind: str) -> dict[str, str]:
    """One of a status's conditions."""
    found: dict[str, dict[str, str]] = {each["type"]: each for each in status["conditions"]}
    return found[kind]


def nodes(here: Operated) -> set[str]:
    """Participants that have a pod."""
    return set(here.pods()) - {""}


def release(here: Operated, sample: str) -> None:
    """Let a suspended consortium run."""
    patch = '{"spec":{"suspend":false}}'
    here.plane.kubectl("patch", "pcmoe", sample, "-n", here.namespace, "--type=merge", "-p", patch)


@pytest.mark.parametrize("sample", ALL)
def test_every_sample_is_stored_as_it_is_written(api: ControlPlane, namespace: str, sample: str) -> None:
    api.apply(SAMPLES / f"{sample}.yaml", namespace=namespace)
    stored = api.read("pcmoe", sample, "-n", namespace)
    names = [each["name"] for each in stored["spec"]["agreement"]["participants"]]
    assert sorted(names) == list(load(SAMPLES / f"{sample}.yaml").names)


def test_the_readme_of_the_samples_names_each_of_them() -> None:
    text = (SAMPLES / "README.md").read_text()
    assert sorted(set(re.findall(r"\[(\S+)\.yaml\]", text))) == ALL


def test_the_pilot_runs_on_one_machine_and_lacks_only_volumes_in_a_cluster(here: Operated) -> None:
    apply(here, "pilot")
    message = condition(until(here, "pilot", "Invalid"), "Accepted")["message"]
    assert "spec.local[0].volumes.dataset: is missing" in message
    assert "and 9 more" in message  # dataset, model and checkpoint of four
    assert here.pods() == {}


def test_the_gpu_pilot_runs_four_pods_with_a_gpu_each(here: Operated) -> None:
    consortium = apply(here, "gpu-pilot")
    status = until(here, "gpu-pilot", "Running")
    assert status["ready"] == "4/4"
    assert nodes(here) == set(consortium.names)
    for name in consortium.names:
        pod = here.pods()[name]
        assert pod["spec"]["nodeName"]
        assert pod["spec"]["containers"][0]["resources"]["limits"] == {"nvidia.com/gpu": "1"}


def test_the_suspended_one_runs_no_node_until_it_is_released(here: Operated) -> None:
    consortium = apply(here, "suspended")
    status = until(here, "suspended", "Suspended")
    assert condition(status, "Suspended")["status"] == "True"
    assert nodes(here) == set()
    wanted = {"secret/suspended.ca"} | {
        f"{kind}.{name}{end}"
        for name in consortium.names
        for kind, end in (
            ("secret/suspended", ".tls"),
            ("persistentvolumeclaim/suspended", ""),
            ("job.batch/suspended", ".1"),
        )
    }

    def made() -> bool:
        found = here.plane.kubectl("get", "secrets,pvc,jobs", "-n", here.namespace, "-o", "name")
        return wanted <= set(found.split())

    eventually("keys, claims and suspended Jobs", made, within=20)
    assert nodes(here) == set()
    release(here, "suspended")
    until(here, "suspended", "Running")
    assert nodes(here) == set(consortium.names)


def test_the_partner_makes_its_own_ca_first_and_then_runs_its_own_pod_alone(here: Operated) -> None:
    consortium = apply(here, "federated-partner")
    until(here, "federated-partner", "Suspended")
    secrets = here.plane.kubectl("get", "secrets", "-n", here.namespace, "-o", "name").split()
    assert sorted(secrets) == ["secret/federated-partner.ca", "secret/federated-partner.lyon.tls"]
    release(here, "federated-partner")
    assert (
        "has no caBundle of berlin"
        in condition(until(here, "federated-partner", "Invalid"), "Accepted")["message"]
    )
    roster = [
        {
            **entry.model_dump(by_alias=True),
            "caBundle": issue_authority(entry.name, "federation-2026").certificate,
        }
        for entry in consortium.spec.roster
    ]
    patch = json.dumps({"spec": {"roster": roster}})
    here.plane.kubectl(
        "patch", "pcmoe", "federated-partner", "-n", here.namespace, "--type=merge", "-p", patch
    )
    until(here, "federated-partner", "Running")
    assert set(here.pods()) == {"lyon"}, "neither a partner's pod nor the coordinator, which is at berlin"
    told = here.plane.read("configmap", "federated-partner.config", "-n", here.namespace)["data"][
        "nodes.json"
    ]
    for entry in consortium.spec.roster:
        assert f'"endpoint":"{entry.endpoint}"' in told


RULE = re.compile(
    r"\b(must|should|may not|unknown field|Required value|Unsupported value|Duplicate value|Too (long|many))\b"
)
"""Words of a rule."""


def test_bad_manifests_are_refused_with_field_value_and_rule(api: ControlPlane) -> None:
    said = asyncio.run(_refusals(api, REFUSED))
    unnamed = [row.name for row in REFUSED if not _names_field(row, said[row.name])]
    assert unnamed == []
    assert [row.name for row in REFUSED if not RULE.search(said[row.name])] == []
    with_value = [row.name for row in REFUSED if _names_value(row, said[row.name])]
    assert len(with_value) >= AT_LEAST, sorted(set(said) - set(with_value))


async def _refusals(plane: ControlPlane, rows: list[Bad]) -> dict[str, str]:
    """What the API server says of each row; every one of them must be refused."""
    path = "/apis/pcmoe.dev/v1alpha1/namespaces/default/pcmoeconsortia"
    said = {}
    async with ApiRequests.to(str(plane.kubeconfig)) as request:
        for row in rows:
            query = {"dryRun": "All", "fieldValidation": "Strict"}
            with pytest.raises(ClusterError) as caught:
                await request("POST", path, query, manifest(3, row.changes), "application/json")
            said[row.name] = caught.value.reason
    return said


def _names_field(row: Bad, text: str) -> bool:
    """Whether the changed field, or the one that holds it, is named by its path from the top."""
    fields = [path if path.startswith("metadata.") else f"spec.{path}" for path in row.changes]
    holders = [re.sub(r"(\[\d+\])?(\.\w+)?$", "", field) for field in fields]
    return any(path in text for path in (*fields, *holders) if "." in path)


def _names_value(row: Bad, text: str) -> bool:
    """Whether a value that the row puts in is quoted; a field that is missing has none to quote."""
    values = [value for change in row.changes.values() for value in _scalars(change)]
    return any(re.search(rf"(?<![\w.]){re.escape(value)}(?![\w])", text) for value in values)


def _scalars(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        for inner in value.values():
            yield from _scalars(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _scalars(inner)
    elif isinstance(value, str | int) and value not in ("berlin", "lyon", "porto"):
        yield str(value)


def test_kubectl_explains_every_level_of_the_manifest(api: ControlPlane) -> None:
    text = api.kubectl("explain", "pcmoe.spec.agreement.training")
    assert "training says what a step and a round are." in " ".join(text.split())
    whole = api.kubectl("explain", "pcmoe", "--recursive")
    for name in ("onPeerLoss", "resourceClaims", "sequencesPerMicroBatch", "caBundle", "lastTransitionTime"):
        assert name in whole
    for path in (
        "spec",
        "spec.agreement.failurePolicy",
        "spec.local.volumes.checkpoint",
        "status.participants",
    ):
        fields = api.kubectl("explain", f"pcmoe.{path}").split("FIELDS:")[1]
        named = re.findall(r"^  (\w+)\t<", fields, re.MULTILINE)
        told = re.findall(r"^    (\w+) ", fields, re.MULTILINE)
        assert named and set(named) <= set(told), (
            f"{path}: {sorted(set(named) - set(told))} are not explained"
        )


def test_kubectl_get_shows_state_round_ready_loss_and_age(api: ControlPlane, namespace: str) -> None:
    api.apply(manifest(2), namespace=namespace)
    head = api.kubectl("get", "pcmoe", "-n", namespace).splitlines()[0]
    assert head.split() == ["NAME", "STATE", "ROUND", "READY", "LOSS", "AGE"]

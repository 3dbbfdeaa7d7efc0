"""What the operator applies: names, owners, secrets, configuration, and pods that have no rights."""

import base64
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from kubernetes.client import models
from tests.builders import FULL, architecture
from tests.unit.clustered import everything, here, inputs, keys, of_kind, pair, pod_specs

from pcmoe_node.config import CoordinatorConfig, NodeConfig
from pcmoe_operator.constants import MAX_ATTEMPT, MAX_OBJECT_NAME, MAX_PARTICIPANT_NAME
from pcmoe_operator.objects.bundle import bundle
from pcmoe_operator.objects.configs import node_configuration
from pcmoe_operator.objects.inputs import FoundClaim, Inputs, Keys
from pcmoe_operator.objects.names import Object
from pcmoe_operator.objects.needs import cluster_faults
from pcmoe_operator.pki import issue_authority

SOURCE = {"checkpoint": {"fingerprint": "sha256:" + "a" * 64, "config": architecture()}}
PEM = "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n"
FULLY = {"volumes": FULL["volumes"], "template": FULL["template"], "gpus": 1}
VARIETY = [
    inputs(1),
    inputs(3),
    inputs(2, {"agreement.model.source": SOURCE}, lyon=FULLY),
    inputs(3, {"roster": [{"name": "berlin", "caBundle": PEM, "endpoint": "berlin.example:443"}]},
           settings={"participants": ["lyon", "oslo"]}),
    inputs(2, settings={"volumeGroup": None, "imagePullSecrets": ["registry"], "dnsPorts": [5353],
                        "dnsAddresses": ["169.254.20.10/32"],
                        "metricsReaders": [{"namespaceLabels": {"a": "b"}}]}),
]  # fmt: skip


def unknown(value: Any, kind: str, path: str) -> Iterator[str]:
    """Paths of what Kubernetes' API doesn't know, or knows as another type."""
    if inner := re.fullmatch(r"List\[(.*)\]", kind):
        assert isinstance(value, list), path
        for i, item in enumerate(value):
            yield from unknown(item, inner.group(1), f"{path}[{i}]")
    elif inner := re.fullmatch(r"Dict\[str, (.*)\]", kind):
        for key, item in value.items():
            yield from unknown(item, inner.group(1), f"{path}.{key}")
    elif hasattr(models, kind):
        model = getattr(models, kind)
        types = {model.attribute_map[name]: of for name, of in model.openapi_types.items()}
        for key, item in value.items():
            if key not in types:
                yield f"{path}.{key}"
            else:
                yield from unknown(item, types[key], f"{path}.{key}")
    elif kind != "object" and type(value) is not {"str": str, "int": int, "bool": bool, "bytes": str}[kind]:
        yield f"{path}: is {value!r}, not {kind}"


@pytest.mark.parametrize("given", VARIETY)
def test_every_field_is_one_that_kubernetes_knows(given: Inputs) -> None:
    """Server-side apply answers a field that it doesn't know with an error of the server, each time."""
    for made in everything(given):
        assert list(unknown(made, f"V1{made['kind']}", made["kind"])) == []


def empties(value: Any, path: str) -> Iterator[str]:
    if isinstance(value, list | dict):
        if not value and not path.endswith("odSelector"):
            yield path
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from empties(item, f"{path}.{key}")


@pytest.mark.parametrize("given", VARIETY)
def test_nothing_is_empty_for_then_every_apply_would_be_a_write(given: Inputs) -> None:
    """The server stores no empty list or map, and takes the next one it is handed for a change."""
    for made in everything(given):
        assert list(empties(made, made["kind"])) == []


@pytest.mark.parametrize("given", VARIETY)
def test_the_same_inputs_give_the_same_bytes(given: Inputs) -> None:
    once, again = (json.dumps(everything(given)) for _ in range(2))
    assert once == again


def test_the_order_of_participants_in_the_manifest_changes_nothing() -> None:
    backwards = inputs(["oslo", "lyon", "berlin"], {"agreement.coordinator": "berlin"})
    assert json.dumps(everything(backwards)) == json.dumps(everything(inputs(3)))


def test_building_changes_none_of_what_it_is_given() -> None:
    given = inputs(2, lyon=FULLY)
    before = given.consortium.model_dump_json()
    for made in everything(given):
        made["metadata"]["labels"].clear()
        made.get("spec", {}).get("template", {}).get("spec", {}).get("tolerations", []).clear()
    assert given.consortium.model_dump_json() == before


def longest() -> Inputs:
    names = [f"{chr(97 + i)}{'n' * (MAX_PARTICIPANT_NAME - 1)}" for i in range(3)]
    return inputs(names, {"attempt": MAX_ATTEMPT}, name="9" + "o" * (MAX_OBJECT_NAME - 1))


def test_the_longest_names_fit_where_kubernetes_wants_them() -> None:
    label = re.compile(r"([A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?)?")
    for made in everything(longest()):
        name = made["metadata"]["name"]
        assert len(name) <= 63, name
        assert re.fullmatch(r"[a-z0-9]([a-z0-9.-]*[a-z0-9])?", name), name
        if made["kind"] == "Service":
            assert re.fullmatch(r"[a-z]([a-z0-9-]*[a-z0-9])?", name), name
        for value in made["metadata"]["labels"].values():
            assert len(value) <= 63
            assert label.fullmatch(value)
    for spec in pod_specs(everything(longest())).values():
        assert re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", spec["hostname"])


def test_no_two_objects_of_a_namespace_share_a_name() -> None:
    """`a-b` with `c` and `a` with `b-c` are what a hyphen between them would make one."""
    consortia = [
        inputs(["c", "tls", "node"], name="a-b"),
        inputs(["b-c", "b-c-1", "ca"], name="a"),
        inputs(["c"], {"attempt": 2}, name="a-b-c"),
    ]
    places = [(made["kind"], made["metadata"]["name"]) for given in consortia for made in everything(given)]
    assert len(places) == len(set(places))


def test_everything_goes_with_its_consortium_and_blocks_nothing() -> None:
    for made in everything(inputs(3)):
        assert made["metadata"]["namespace"] == "training"
        if made["kind"] != "PersistentVolumeClaim":
            (owner,) = made["metadata"]["ownerReferences"]
            assert (owner["kind"], owner["name"], owner["uid"]) == ("PCMoEConsortium", "hospitals", "0-1-2")
            assert (owner["controller"], owner["blockOwnerDeletion"]) == (True, False)


def test_labels_say_whose_an_object_is() -> None:
    objects = everything(inputs(2, {"attempt": 3}))
    assert of_kind(objects, "Job")["hospitals.lyon.3"]["metadata"]["labels"] == {
        "app.kubernetes.io/name": "pcmoe",
        "app.kubernetes.io/instance": "hospitals",
        "app.kubernetes.io/managed-by": "pcmoe-operator",
        "pcmoe.dev/consortium": "hospitals",
        "pcmoe.dev/role": "node",
        "pcmoe.dev/participant": "lyon",
        "pcmoe.dev/attempt": "3",
    }
    everybodys = {made["kind"] for made in objects if "pcmoe.dev/role" not in made["metadata"]["labels"]}
    assert everybodys == {"Service", "ConfigMap", "Secret"}
    roles = {made["metadata"]["labels"].get("pcmoe.dev/role") for made in objects}
    assert roles == {"node", "coordinator", None}


# Configuration.


def configurations(objects: Sequence[Object]) -> tuple[dict[str, NodeConfig], CoordinatorConfig | None]:
    """What each process reads: the files that its pod mounts of the ConfigMap, in the order of its command."""
    maps, nodes, coordinator = of_kind(objects, "ConfigMap"), {}, None
    for name, spec in pod_specs(objects).items():
        (told,) = (volume["configMap"] for volume in spec["volumes"] if volume["name"] == "config")
        files = {item["path"]: maps[told["name"]]["data"][item["key"]] for item in told["items"]}
        command = spec["containers"][0]["command"]
        read = [Path(path) for path in command[command.index("--config") + 1 :]]
        assert {path.name for path in read} == set(files), "it mounts what it reads, and nobody else's"
        parts: dict[str, Any] = {}
        for path in read:
            parts |= json.loads(files[path.name])
        if name == "hospitals.coordinator":
            coordinator = CoordinatorConfig.model_validate_json(json.dumps(parts))
        else:
            nodes[parts["participant"]] = NodeConfig.model_validate_json(json.dumps(parts))
    return nodes, coordinator


def test_every_node_is_told_where_the_services_say_the_others_are() -> None:
    objects = everything(inputs(3, settings={"clusterDomain": "k8s.example"}))
    nodes, coordinator = configurations(objects)
    assert coordinator is not None and set(nodes) == {"berlin", "lyon", "oslo"}
    (headless,) = of_kind(objects, "Service").values()
    assert headless["spec"]["clusterIP"] == "None"
    assert headless["spec"]["publishNotReadyAddresses"] is True

    def endpoint(kind: str, name: str) -> str:
        """The name that the cluster gives a pod by its Service."""
        pod = of_kind(objects, kind)[name]["spec"]["template"]
        assert headless["spec"]["selector"].items() <= pod["metadata"]["labels"].items()
        assert pod["spec"]["subdomain"] == headless["metadata"]["name"]
        return f"{pod['spec']['hostname']}.{pod['spec']['subdomain']}.training.svc.k8s.example:8443"

    for name, config in nodes.items():
        everybody: list[NodeConfig | CoordinatorConfig] = [*nodes.values(), coordinator]
        for told in everybody:
            assert told.participants[config.index].endpoint == endpoint("Job", f"hospitals.{name}.1")
            assert told.participants[config.index].ca_bundle == f"certificate: CA of {name}"
        host = endpoint("ReplicaSet", "hospitals.coordinator")
        assert config.coordinator.endpoint == coordinator.coordinator.endpoint == host
        assert config.coordinator.ca_bundle == "certificate: CA of berlin"


def test_every_port_told_is_one_that_the_pod_has() -> None:
    objects = everything(inputs(2, settings={"nodePort": 9443, "statusPort": 9401}))
    nodes, coordinator = configurations(objects)
    assert coordinator is not None
    everybody: list[NodeConfig | CoordinatorConfig] = [*nodes.values(), coordinator]
    for told in everybody:
        assert (told.identity.listen, told.status_listen) == ("0.0.0.0:9443", "0.0.0.0:9401")
    for spec in pod_specs(objects).values():
        ports = {port["name"]: port["containerPort"] for port in spec["containers"][0]["ports"]}
        assert ports == {"exchange": 9443, "status": 9401}
    for service in of_kind(objects, "Service").values():
        assert [(p["port"], p["targetPort"]) for p in service["spec"]["ports"]] == [(9443, "exchange")]


def mounted(spec: Object) -> dict[str, Object]:
    """Volume and mount by path."""
    volumes = {volume["name"]: volume for volume in spec["volumes"]}
    return {
        mount["mountPath"]: {**volumes[mount["name"]], **mount}
        for mount in spec["containers"][0]["volumeMounts"]
    }


def test_every_folder_told_is_mounted_and_only_state_and_scratch_are_written() -> None:
    objects = everything(inputs(2, {"agreement.model.source": SOURCE}, berlin=FULLY, lyon=FULLY))
    nodes, coordinator = configurations(objects)
    specs = pod_specs(objects)
    for name, config in nodes.items():
        places = mounted(specs[f"hospitals.{name}.1"])
        assert config.dataset.path == "/volumes/dataset/train.jsonl"
        assert config.model.checkpoint == "/volumes/model"
        assert config.identity.certificate_directory == "/etc/pcmoe/certificates"
        assert (config.checkpoint_directory, config.log_directory) == (
            "/var/lib/pcmoe/checkpoint",
            "/var/lib/pcmoe/log",
        )
        writable = {path for path, mount in places.items() if not mount["readOnly"]}
        assert writable == {"/var/lib/pcmoe", "/tmp"}
        assert {"/volumes/dataset", "/volumes/model", "/etc/pcmoe/config"} <= set(places)
        held = specs[f"hospitals.{name}.1"]["containers"][0]
        assert held["terminationMessagePath"] == config.termination_message
        assert held["command"][-2:] == ["/etc/pcmoe/config/nodes.json", "/etc/pcmoe/config/node.json"]
    assert mounted(specs["hospitals.coordinator"])["/tmp"]["emptyDir"]
    assert coordinator is not None and coordinator.log_directory == "/tmp/log"


def test_configurations_and_keys_of_64_participants_fit_an_object_each() -> None:
    names = [f"p{i:02}" for i in range(64)]
    given = inputs(names)
    cas, leaf = {name: issue_authority(name, "hospitals-2026") for name in names}, pair("a leaf")
    own = Keys(authorities=cas, leaves=dict.fromkeys(names, leaf), coordinator=leaf)
    for made in bundle(given, own):
        assert len(json.dumps(made)) < 2**20 // 4, made["kind"]


def test_what_one_node_alone_is_told_is_all_in_which_they_differ() -> None:
    given = inputs(3, lyon={"cpuThreads": 3, "gradientCheckpointing": True, "device": "CPU"})
    (made,) = of_kind(everything(given), "ConfigMap").values()
    told = {name: node_configuration(given, keys(given), name).model_dump() for name in given.here}
    for name in given.here:
        own = json.loads(made["data"][f"node.{name}.json"])
        differ = {key for key in told[name] if any(told[name][key] != other[key] for other in told.values())}
        assert differ <= own.keys()


# Secrets.


def test_no_pod_mounts_a_ca_or_the_certificate_of_another() -> None:
    specs = pod_specs(everything(inputs(3)))
    secrets = {
        name: [v["secret"]["secretName"] for v in spec["volumes"] if "secret" in v]
        for name, spec in specs.items()
    }
    assert secrets == {
        "hospitals.berlin.1": ["hospitals.berlin.tls"],
        "hospitals.lyon.1": ["hospitals.lyon.tls"],
        "hospitals.oslo.1": ["hospitals.oslo.tls"],
        "hospitals.coordinator": ["hospitals.coordinator.tls"],
    }
    assert not any("subPath" in json.dumps(spec) for spec in specs.values())


def test_secrets_hold_what_their_names_say() -> None:
    secrets = of_kind(everything(inputs(2)), "Secret")
    read = {
        name: {key: base64.b64decode(value).decode() for key, value in made["data"].items()}
        for name, made in secrets.items()
    }
    assert read["hospitals.ca"] == {
        "berlin.crt": "certificate: CA of berlin",
        "berlin.key": "private key: CA of berlin",
        "lyon.crt": "certificate: CA of lyon",
        "lyon.key": "private key: CA of lyon",
    }
    assert read["hospitals.lyon.tls"]["tls.key"] == "private key: leaf of lyon"
    assert read["hospitals.coordinator.tls"]["tls.crt"] == "certificate: leaf of the coordinator"
    assert len(secrets) == 4


def test_keys_are_in_secrets_only_and_never_printed() -> None:
    given = inputs(3)
    elsewhere = [made for made in everything(given) if made["kind"] != "Secret"]
    assert "private key" not in json.dumps(elsewhere)
    assert base64.b64encode(b"private").decode()[:9] not in json.dumps(elsewhere)
    assert "private key" not in repr(keys(given))


# Pods.


@pytest.mark.parametrize("given", VARIETY)
def test_every_pod_is_restricted_and_has_no_rights(given: Inputs) -> None:
    for spec in pod_specs(everything(given)).values():
        assert spec["automountServiceAccountToken"] is False
        assert spec["enableServiceLinks"] is False
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert "runAsUser" not in spec["securityContext"]
        assert not {"hostNetwork", "hostPID", "hostIPC", "serviceAccountName", "initContainers"} & set(spec)
        (held,) = spec["containers"]
        assert held["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert all("value" in variable and "valueFrom" not in variable for variable in held["env"])
        assert "envFrom" not in held
        kinds = {kind for volume in spec["volumes"] for kind in set(volume) - {"name"}}
        assert kinds <= {"configMap", "secret", "emptyDir", "persistentVolumeClaim", "image"}
        assert not any("hostPort" in port for port in held["ports"])


def test_a_new_volume_can_be_written_unless_admission_sees_to_it() -> None:
    spec = pod_specs(everything(inputs(1)))["hospitals.berlin.1"]
    assert spec["securityContext"]["fsGroup"] == 65532
    left = pod_specs(everything(inputs(1, settings={"volumeGroup": None})))["hospitals.berlin.1"]
    assert "fsGroup" not in left["securityContext"]


def test_another_configuration_starts_the_coordinator_again_and_no_node() -> None:
    first, second = (
        of_kind(everything(inputs(2, {"agreement.failurePolicy.peerTimeoutSeconds": s})), "ReplicaSet")
        for s in (30, 31)
    )
    same = of_kind(everything(inputs(2)), "ReplicaSet")
    marks = [
        made["hospitals.coordinator"]["spec"]["template"]["metadata"]["labels"]["pcmoe.dev/template"]
        for made in (first, second, same)
    ]
    assert marks[0] == marks[2] != marks[1]
    for job in of_kind(everything(inputs(2)), "Job").values():
        assert "annotations" not in job["spec"]["template"]["metadata"]


# Claims.


def claim(found: FoundClaim | None = None, **checkpoint: Any) -> Object:
    volumes = {"dataset": {"persistentVolumeClaim": {"claimName": "records"}}, "checkpoint": checkpoint}
    given = inputs(1, berlin={"volumes": volumes})
    made = of_kind(bundle(given, keys(given), {"berlin": found} if found else {}), "PersistentVolumeClaim")
    return made["hospitals.berlin"]


def test_days_of_work_outlive_their_consortium_unless_the_manifest_says_otherwise() -> None:
    kept, gone = claim(size="1Gi"), claim(size="1Gi", onDelete="Delete")
    assert "ownerReferences" not in kept["metadata"]
    assert gone["metadata"]["ownerReferences"][0]["uid"] == "0-1-2"
    assert "app.kubernetes.io/instance" not in kept["metadata"]["labels"]


@pytest.mark.parametrize(
    ("found", "asked", "applied"),
    [
        ("200Gi", "100Gi", "200Gi"),
        ("100Gi", "200Gi", "200Gi"),
        ("1Ti", "1024Gi", "1Ti"),
        ("1100G", "1Ti", "1100G"),
        ("214748364800", "200Gi", "214748364800"),
        ("1.5Ti", "1Ti", "1.5Ti"),
    ],
)
def test_a_claim_only_grows(found: str, asked: str, applied: str) -> None:
    spec = claim(FoundClaim(size=found, storage_class="slow"), size=asked, storageClassName="fast")["spec"]
    assert spec["resources"]["requests"]["storage"] == applied
    assert spec["storageClassName"] == "slow"


def test_a_claim_that_is_there_is_mounted_and_not_made() -> None:
    volumes = {
        "dataset": {"image": {"reference": "registry.example/notes"}},
        "checkpoint": {"persistentVolumeClaim": {"claimName": "mine"}},
    }
    objects = everything(inputs(1, berlin={"volumes": volumes}))
    assert of_kind(objects, "PersistentVolumeClaim") == {}
    places = mounted(pod_specs(objects)["hospitals.berlin.1"])
    assert places["/var/lib/pcmoe"]["persistentVolumeClaim"] == {"claimName": "mine"}
    assert places["/volumes/dataset"]["image"] == {
        "reference": "registry.example/notes",
        "pullPolicy": "IfNotPresent",
    }


# What a cluster needs.


def test_what_a_cluster_needs_beyond_a_local_run_is_told_by_path() -> None:
    bare = inputs(2, {"local": [{"name": "lyon"}, {"name": "berlin"}], "agreement.model.source": SOURCE})
    faults = cluster_faults(bare)
    assert {fault.path for fault in faults} == {
        f"spec.local[{i}].volumes.{kind}" for i in (0, 1) for kind in ("dataset", "model", "checkpoint")
    }
    assert str(faults[0]).startswith(
        "spec.local[1].volumes.dataset: is missing; a participant in a cluster needs a persistentVolumeClaim"
    )
    assert cluster_faults(inputs(3)) == []
    (fault,) = cluster_faults(inputs(2, {"local": []}))
    assert fault.path == "spec.local"


def test_whoever_runs_elsewhere_must_be_in_the_roster() -> None:
    partner = {"participants": ["lyon"]}
    rules = [fault.message for fault in cluster_faults(inputs(2, settings=partner))]
    assert len(rules) == 2
    assert "caBundle of berlin" in rules[0]
    assert "endpoint of berlin" in rules[1]
    roster = [{"name": "berlin", "endpoint": "berlin.example:443"}]
    assert cluster_faults(inputs(2, {"roster": roster, "suspend": True}, settings=partner)) == []
    roster = [{"name": "berlin", "caBundle": PEM, "endpoint": "berlin.example:443"}]
    assert cluster_faults(inputs(2, {"roster": roster}, settings=partner)) == []


def test_where_nobody_runs_nothing_is_made() -> None:
    assert everything(inputs(2, settings={"participants": ["graz"]})) == []


def test_a_partner_runs_its_own_part_only() -> None:
    roster = [{"name": "berlin", "caBundle": PEM, "endpoint": "berlin.example:443"}]
    given = inputs(
        3, {"roster": roster, "local": here(["lyon", "berlin"])}, settings={"participants": ["lyon", "graz"]}
    )
    objects = everything(given)
    assert set(of_kind(objects, "Job")) == {"hospitals.lyon.1"}
    assert of_kind(objects, "ReplicaSet") == {}
    nodes, coordinator = configurations(objects)
    told = nodes["lyon"]
    assert coordinator is None and set(nodes) == {"lyon"}
    assert told.coordinator.endpoint == told.participants[0].endpoint == "berlin.example:443"

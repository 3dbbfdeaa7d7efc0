"""A participant's Job: what is started again, what it asks for, and what the manifest may say of its pod."""

import json
import os
import signal
from typing import Any

import pytest
from tests.builders import FULL
from tests.unit.clustered import inputs, keys

from pcmoe_node import errors
from pcmoe_operator.objects.bundle import bundle
from pcmoe_operator.objects.inputs import Inputs
from pcmoe_operator.objects.jobs import job, jobs
from pcmoe_operator.objects.names import Object
from pcmoe_operator.scalars import quantity

GIB = 2**30


def made(entry: dict[str, Any] | None = None, overrides: dict[str, Any] | None = None) -> Object:
    """Berlin's Job, with `entry` over what its manifest says."""
    return job(inputs(2, overrides, berlin=entry or {}), "berlin", suspend=False)


def pod_of(of: Object) -> Object:
    spec: Object = of["spec"]["template"]["spec"]
    return spec


def container_of(of: Object) -> Object:
    held: Object = pod_of(of)["containers"][0]
    return held


def outcome(of: Object, code: int, *, disrupted: bool = False) -> str:
    """What becomes of a node that ends with a code, as kubelet and Job controller read its Job."""
    if code == 0:
        return "done"
    for rule in container_of(of)["restartPolicyRules"]:
        if code in rule["exitCodes"]["values"] and not disrupted:
            return "started again in place"
    for rule in of["spec"]["podFailurePolicy"]["rules"]:
        if disrupted and "onPodConditions" in rule:
            return "replaced, not counted"
        if code in rule.get("onExitCodes", {}).get("values", ()):
            return "failed for good"
    return "replaced, counted"


@pytest.mark.parametrize(
    ("code", "becomes"),
    [
        (0, "done"),
        (1, "replaced, counted"),
        (64, "failed for good"),
        (65, "failed for good"),
        (66, "failed for good"),
        (67, "failed for good"),
        (68, "failed for good"),
        (69, "failed for good"),
        (70, "failed for good"),
        (74, "failed for good"),
        (75, "started again in place"),
        (128 + signal.SIGKILL, "started again in place"),
        (128 + signal.SIGSEGV, "started again in place"),
        (errors.EXIT_TERMINATED, "started again in place"),
        (255, "started again in place"),
    ],
)
def test_a_node_is_started_again_where_that_may_help_and_only_there(code: int, becomes: str) -> None:
    assert outcome(made(), code) == becomes


def test_a_machine_that_is_taken_away_is_nobodys_failure() -> None:
    for code in (66, 75, errors.EXIT_TERMINATED):
        assert outcome(made(), code, disrupted=True) == "replaced, not counted"


def test_the_exit_codes_are_those_that_a_run_on_one_machine_goes_by() -> None:
    every = {
        error.exit_code
        for error in vars(errors).values()
        if isinstance(error, type) and issubclass(error, errors.NodeError)
    }
    assert {code for code in every if outcome(made(), code) == "started again in place"} == {75}
    assert every - {75} == set(made()["spec"]["podFailurePolicy"]["rules"][1]["onExitCodes"]["values"])


def test_a_job_is_one_pod_that_is_never_two() -> None:
    spec = made()["spec"]
    assert (spec["parallelism"], spec["completions"]) == (1, 1)
    assert spec["podReplacementPolicy"] == "Failed"
    assert (pod_of(made())["restartPolicy"], container_of(made())["restartPolicy"]) == ("Never", "Never")
    assert "ttlSecondsAfterFinished" not in spec
    assert "activeDeadlineSeconds" not in spec
    assert pod_of(made())["terminationGracePeriodSeconds"] == 30


def test_codes_and_rules_keep_within_what_the_api_takes() -> None:
    codes = made()["spec"]["podFailurePolicy"]["rules"][1]["onExitCodes"]["values"]
    assert codes == sorted(set(codes))
    assert 0 not in codes
    again = container_of(made())["restartPolicyRules"][0]["exitCodes"]["values"]
    assert len(again) == len(set(again)) <= 255


def test_all_jobs_are_held_back_or_let_go_as_the_caller_says() -> None:
    held, let_go = (jobs(inputs(3), suspend=suspend) for suspend in (True, False))
    assert [made["spec"]["suspend"] for made in held] == [True] * 3
    for one, other in zip(held, let_go, strict=True):
        one["spec"].pop("suspend"), other["spec"].pop("suspend")
        assert one == other


def test_each_attempt_has_a_job_of_its_own_on_the_same_claim() -> None:
    first, second = (made(overrides={"attempt": attempt}) for attempt in (1, 2))
    assert (first["metadata"]["name"], second["metadata"]["name"]) == (
        "hospitals.berlin.1",
        "hospitals.berlin.2",
    )
    assert pod_of(first)["volumes"] == pod_of(second)["volumes"]
    labels = [one["spec"]["template"]["metadata"]["labels"] for one in (first, second)]
    assert [label["pcmoe.dev/attempt"] for label in labels] == ["1", "2"]


def test_a_node_is_ready_when_it_trains_and_is_never_killed_for_taking_long() -> None:
    held = container_of(made())
    assert held["readinessProbe"]["httpGet"] == {"path": "/readyz", "port": "status"}
    assert not {"livenessProbe", "startupProbe"} & set(held)


# What it asks for.


def plan_of(given: Inputs) -> Any:
    return given.plan_of("berlin")


def test_a_gpu_is_asked_for_and_limited_by_its_resource() -> None:
    resources = container_of(made({"gpus": 1, "resourceName": "nvidia.com/mig-1g.10gb"}))["resources"]
    assert resources["requests"]["nvidia.com/mig-1g.10gb"] == "1"
    assert resources["limits"] == {"nvidia.com/mig-1g.10gb": "1"}
    assert "nvidia" not in json.dumps(made())


def test_memory_is_the_plans_with_room_and_has_no_limit() -> None:
    given = inputs(2)
    resources = container_of(made())["resources"]
    wanted = plan_of(given).memory.total * 5 / 4 + GIB
    assert 0 <= int(quantity(resources["requests"]["memory"])) - wanted < 2**20
    assert "limits" not in resources


def test_with_a_gpu_the_machines_memory_holds_a_stored_round_and_the_messages() -> None:
    given = inputs(2, berlin={"gpus": 1})
    asked = int(quantity(container_of(made({"gpus": 1}))["resources"]["requests"]["memory"]))
    plan = plan_of(given)
    assert 0 <= asked - (plan.checkpoint + plan.memory.buffers + 4 * GIB) < 2**20


@pytest.mark.parametrize(
    ("entry", "overrides", "cpu"),
    [
        ({}, {}, "2"),
        ({"cpuThreads": 6}, {}, "6"),
        ({}, {"agreement.training.deterministic": True}, "1"),
    ],
)
def test_cpus_are_the_threads_it_is_given(entry: dict[str, Any], overrides: dict[str, Any], cpu: str) -> None:
    assert container_of(made(entry, overrides))["resources"]["requests"]["cpu"] == cpu


def test_what_the_manifest_asks_for_replaces_the_estimate() -> None:
    asked = {"requests": {"memory": "64Gi", "ephemeral-storage": "1Gi"}, "limits": {"cpu": 8}}
    resources = container_of(made({"gpus": 1, "template": {"resources": asked}}))["resources"]
    assert resources == {
        "requests": {"memory": "64Gi", "ephemeral-storage": "1Gi", "nvidia.com/gpu": "1"},
        "limits": {"cpu": "8", "nvidia.com/gpu": "1"},
    }


# What the manifest may say of its pod.


def test_every_term_of_the_template_reaches_the_pod_as_it_was_written() -> None:
    template = FULL["template"]
    full = made({"gpus": 1, "template": template})
    spec = pod_of(full)
    for term in (
        "nodeSelector",
        "tolerations",
        "affinity",
        "topologySpreadConstraints",
        "resourceClaims",
        "runtimeClassName",
        "priorityClassName",
        "schedulerName",
        "imagePullSecrets",
    ):
        assert spec[term] == template[term], term
    assert container_of(full)["image"] == template["image"]
    assert container_of(full)["resources"]["claims"] == [{"name": "nic"}]
    metadata = full["spec"]["template"]["metadata"]
    assert metadata["annotations"] == template["annotations"]
    assert template["labels"].items() <= metadata["labels"].items()


def test_without_a_template_nothing_is_said_that_the_cluster_decides() -> None:
    assert set(pod_of(made())) == {
        "automountServiceAccountToken",
        "enableServiceLinks",
        "securityContext",
        "containers",
        "volumes",
        "restartPolicy",
        "hostname",
        "subdomain",
        "terminationGracePeriodSeconds",
    }
    assert container_of(made())["image"] == "registry.example/pcmoe-node@sha256:1"


def test_pull_secrets_of_operator_and_manifest_are_both_used_once() -> None:
    given = inputs(
        1,
        settings={"imagePullSecrets": ["mirror", "shared"]},
        berlin={"template": {"imagePullSecrets": [{"name": "shared"}, {"name": "own"}]}},
    )
    names = [secret["name"] for secret in pod_of(job(given, "berlin", suspend=True))["imagePullSecrets"]]
    assert names == ["mirror", "shared", "own"]


def test_a_volume_that_nobody_needs_is_not_mounted() -> None:
    assert [volume["name"] for volume in pod_of(made())["volumes"]] == [
        "config",
        "certificates",
        "dataset",
        "state",
        "scratch",
    ]


def test_caches_and_home_are_where_a_pod_may_write() -> None:
    places = {mount["mountPath"] for mount in container_of(made())["volumeMounts"] if not mount["readOnly"]}
    for variable in container_of(made())["env"]:
        if os.sep in variable["value"]:
            assert any(variable["value"].startswith(place) for place in places), variable


def test_a_bundle_has_no_job_and_puts_policies_before_pods() -> None:
    given = inputs(2)
    kinds = [made["kind"] for made in bundle(given, keys(given))]
    assert kinds == [
        *["NetworkPolicy"] * 2,
        "Service",
        *["Secret"] * 4,
        "ConfigMap",
        *["PersistentVolumeClaim"] * 2,
        "ReplicaSet",
    ]

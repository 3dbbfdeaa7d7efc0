"""A participant's Job: one pod, and what becomes of it when it ends."""

from pcmoe_node import errors
from pcmoe_operator.objects.configs import CONFIG, NODE_FILE, NODES_FILE
from pcmoe_operator.objects.inputs import Inputs
from pcmoe_operator.objects.names import Object, head, labels, of_attempt, service
from pcmoe_operator.objects.pods import container, marked, pod, probe
from pcmoe_operator.objects.volumes import node_mounts
from pcmoe_operator.pod import Template
from pcmoe_operator.schema import Local

CONTAINER = "node"

FINAL_CODES = tuple(
    sorted(
        error.exit_code
        for error in (
            errors.NodeError,
            errors.ConfigError,
            errors.DataError,
            errors.ResourceError,
            errors.IdentityError,
            errors.ProtocolError,
            errors.DivergedError,
            errors.StorageError,
        )
    )
)
"""Starting again would end the same way: the Job fails at once, and the termination message says why."""
RESTARTED_CODES = (errors.PeerLostError.exit_code, *range(129, 256))
"""A lost peer, and every signal: started again in the same pod, without the Job controller's 10 s of back-off."""
BACKOFF_LIMIT = 1_000_000
"""Pods that fail otherwise are replaced without end: giving up is for the operator, which sees the whole consortium."""
GRACE_SECONDS = 30

GIB = 1024**3
MIB = 1024**2
CPU_DEFAULT = 2
"""CPUs asked for without `cpuThreads`: one computes, one sends. A node may use more where there are."""


def jobs(inputs: Inputs, suspend: bool) -> list[Object]:
    """The Job of every participant that runs here."""
    return [job(inputs, participant, suspend) for participant in inputs.here]


def job(inputs: Inputs, participant: str, suspend: bool) -> Object:
    """A participant's Job for this attempt. Once made, nothing but `suspend` is ever changed.

    A Job's template can't be changed, so no digest of the configuration is on the pod, as on the coordinator's:
    it would only make every later apply fail. A pod reads the ConfigMap when it starts, and what is agreed changes
    while the Job is suspended and has no pod.
    """
    owner, entry = inputs.owner, inputs.consortium.local_entry(participant)
    own = labels(owner.name, "node", participant, inputs.attempt)
    template = entry.template
    made = head("batch/v1", "Job", of_attempt(owner.name, participant, inputs.attempt), owner, own)
    return {
        **made,
        "spec": {
            "suspend": suspend,
            "parallelism": 1,
            "completions": 1,
            "completionMode": "NonIndexed",
            "backoffLimit": BACKOFF_LIMIT,
            "podReplacementPolicy": "Failed",
            "podFailurePolicy": {"rules": _failure_rules()},
            "template": {
                "metadata": marked({**(template.labels or {}), **own}, template.annotations),
                "spec": _pod(inputs, participant, entry),
            },
        },
    }


def _failure_rules() -> list[Object]:
    """What moves a pod off its machine is no failure; what starting again can't help is final; all else counts."""
    codes = {"containerName": CONTAINER, "operator": "In", "values": list(FINAL_CODES)}
    return [
        {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
        {"action": "FailJob", "onExitCodes": codes},
    ]


def _pod(inputs: Inputs, participant: str, entry: Local) -> Object:
    settings, template = inputs.settings, entry.template
    mounts = node_mounts(inputs, participant)
    files = [str(CONFIG / NODES_FILE), str(CONFIG / NODE_FILE)]
    command = ["python", "-m", "pcmoe_node", "--config", *files]
    held = container(CONTAINER, template.image or settings.node_image, command, mounts, settings)
    if settings.restart_in_place:  # an API server that doesn't know it refuses the Job
        again = {"operator": "In", "values": list(RESTARTED_CODES)}
        rules = [{"action": "Restart", "exitCodes": again}]
        held |= {"restartPolicy": "Never", "restartPolicyRules": rules}
    held |= {
        # No liveness probe: a node that hangs ends itself, and one that loads for an hour is well.
        "readinessProbe": probe("/readyz"),
        "resources": _resources(inputs, participant, entry),
    }
    pull_secrets = tuple(secret.name for secret in template.image_pull_secrets)
    return {
        **pod(held, mounts, settings, pull_secrets),
        **_terms(template),
        "restartPolicy": "Never",
        "hostname": participant,
        "subdomain": service(inputs.owner.name),
        "terminationGracePeriodSeconds": GRACE_SECONDS,
    }


def _terms(template: Template) -> Object:
    """Where and how to run, as the manifest says it. What is not said is left to the cluster."""
    kept = template.model_dump(
        mode="json",
        by_alias=True,
        exclude_defaults=True,
        exclude={"resources", "image_pull_secrets", "image", "labels", "annotations"},
    )
    return dict(kept)


def _resources(inputs: Inputs, participant: str, entry: Local) -> Object:
    """The plan's estimate unless the manifest says something else, and what `gpus` counts."""
    said = entry.template.resources
    asked = dict((said and said.requests) or {})
    limits = dict((said and said.limits) or {})
    estimate = {"cpu": _cpu(inputs, entry), "memory": _memory(inputs, participant, entry)}
    # A limit alone is a request too; an estimate beside it could be more than the limit, which is refused.
    requests = {key: value for key, value in estimate.items() if key not in limits} | asked
    if entry.gpus:
        devices = {entry.resource_name: str(entry.gpus)}
        requests, limits = requests | devices, limits | devices
    made: Object = {"requests": requests}
    if limits:
        made["limits"] = limits
    if entry.template.resource_claims:
        made["claims"] = [{"name": claim.name} for claim in entry.template.resource_claims]
    return made


def _cpu(inputs: Inputs, entry: Local) -> str:
    if inputs.consortium.agreement.training.deterministic:
        return "1"
    return str(entry.cpu_threads or CPU_DEFAULT)


def _memory(inputs: Inputs, participant: str, entry: Local) -> str:
    """Memory of the machine, in whole MiB; no limit, since the plan estimates.

    Without a GPU: all that the plan counts, a quarter more for what allocators and libraries keep, and 1 GiB for
    Python and torch. With one: a whole stored round, which goes by way of the machine's memory to the disk, the
    messages, and 4 GiB for torch with its driver.
    """
    plan = inputs.plan_of(participant)
    if entry.gpus or entry.template.resource_claims:
        count = plan.checkpoint + plan.memory.buffers + 4 * GIB
    else:
        count = plan.memory.total * 5 // 4 + GIB
    return f"{-(-count // MIB)}Mi"

"""The coordinator: one small pod in the operator's image, without torch, that may die at any time.

A ReplicaSet of its own and no Deployment above it: that would write its status eight times before the pod runs, for
rollouts that the operator doesn't need: it has the old pod go before there is another.
"""

import hashlib
import json

from pcmoe_operator.constants import COORDINATOR
from pcmoe_operator.objects.configs import CONFIG, COORDINATOR_FILE
from pcmoe_operator.objects.inputs import Inputs
from pcmoe_operator.objects.names import (
    TEMPLATE,
    UID,
    Object,
    certificate,
    chosen,
    configuration,
    coordinator,
    head,
    labels,
    service,
)
from pcmoe_operator.objects.pods import container, marked, pod, probe
from pcmoe_operator.objects.volumes import coordinator_mounts


def coordinator_replicaset(inputs: Inputs, configmap: Object, replicas: int = 1) -> Object:
    """The coordinator's ReplicaSet. Two at once would contradict each other.

    On the pod is a digest of its template and its configuration: one with another digest is to go first, and training
    goes on meanwhile. Nodes have no such digest: a Job's template can't be changed, and needn't be.
    """
    owner = inputs.owner
    own = labels(owner.name, "coordinator")
    spec = _pod(inputs)
    told = json.dumps([owner.uid, spec, configmap["data"][COORDINATOR_FILE]], sort_keys=True)
    digest = hashlib.sha256(told.encode()).hexdigest()[:16]
    made = head("apps/v1", "ReplicaSet", coordinator(owner.name), owner, own)
    return {
        **made,
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": dict(chosen(owner.name, "coordinator"))},
            "template": {"metadata": marked({**own, TEMPLATE: digest, UID: owner.uid}), "spec": spec},
        },
    }


def _pod(inputs: Inputs) -> Object:
    owner, settings = inputs.owner, inputs.settings
    mounts = coordinator_mounts(configuration(owner.name), certificate(owner.name, COORDINATOR))
    command = ["python", "-m", "pcmoe_node.coordination", "--config", str(CONFIG / COORDINATOR_FILE)]
    held = container(COORDINATOR, settings.operator_image, command, mounts, settings)
    held |= {
        "readinessProbe": probe("/healthz"),
        "livenessProbe": probe("/healthz", period_seconds=20),
        "resources": {
            "requests": {"cpu": "50m", "memory": "128Mi"},
            "limits": {"cpu": "1", "memory": "512Mi"},
        },
    }
    return {
        **pod(held, mounts, settings),
        "hostname": COORDINATOR,
        "subdomain": service(owner.name),
        "terminationGracePeriodSeconds": 10,
    }

"""The coordinator: one small pod in the operator's image, without torch, that may die at any time."""

import hashlib

from pcmoe_operator.constants import COORDINATOR, GROUP
from pcmoe_operator.objects.configs import CONFIG, COORDINATOR_FILE
from pcmoe_operator.objects.inputs import Inputs
from pcmoe_operator.objects.names import Object, certificate, chosen, coordinator, head, labels
from pcmoe_operator.objects.pods import container, marked, pod, probe
from pcmoe_operator.objects.volumes import coordinator_mounts

CONFIG_DIGEST = f"{GROUP}/config-digest"


def coordinator_deployment(inputs: Inputs, configmap: Object, replicas: int = 1) -> Object:
    """The coordinator's Deployment. Two at once would contradict each other, so the old one goes first.

    The digest of its configuration is on the pod: another roster or agreement starts it again, and training goes on
    meanwhile. Nodes don't get such an annotation: a Job's template can't be changed, and needn't be.
    """
    owner, settings = inputs.owner, inputs.settings
    name = coordinator(owner.name)
    mounts = coordinator_mounts(name, certificate(owner.name, COORDINATOR))
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
    digest = hashlib.sha256(configmap["data"][COORDINATOR_FILE].encode()).hexdigest()
    template = {
        "metadata": marked(labels(owner.name, "coordinator"), {CONFIG_DIGEST: digest}),
        "spec": {
            **pod(held, mounts, settings),
            # Without it the host's name would be the pod's, which has dots.
            "hostname": COORDINATOR,
            "terminationGracePeriodSeconds": 10,
        },
    }
    made = head("apps/v1", "Deployment", name, owner, labels(owner.name, "coordinator"))
    return {
        **made,
        "spec": {
            "replicas": replicas,
            "strategy": {"type": "Recreate"},
            "revisionHistoryLimit": 1,
            "selector": {"matchLabels": dict(chosen(owner.name, "coordinator"))},
            "template": template,
        },
    }

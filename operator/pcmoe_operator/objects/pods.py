"""What every pod has: restricted Pod Security, no rights in the cluster, one container."""

from collections.abc import Mapping

from pcmoe_operator.objects.configs import SCRATCH, TERMINATION
from pcmoe_operator.objects.names import Object
from pcmoe_operator.objects.network import EXCHANGE, STATUS
from pcmoe_operator.objects.volumes import Mounts
from pcmoe_operator.settings import Settings

ENVIRONMENT = {
    "HOME": str(SCRATCH),
    "HF_HOME": str(SCRATCH / "huggingface"),
    "HF_HUB_OFFLINE": "1",
    "XDG_CACHE_HOME": str(SCRATCH / "cache"),
}
"""Libraries keep caches where they can be written, and ask no server for anything."""


def container(name: str, image: str, command: list[str], mounts: Mounts, settings: Settings) -> Object:
    """A container without resources and probes: no root, no way to become it, nothing to write to but volumes."""
    return {
        "name": name,
        "image": image,
        "imagePullPolicy": settings.image_pull_policy,
        "command": command,
        "env": [{"name": key, "value": value} for key, value in ENVIRONMENT.items()],
        "ports": [
            {"name": EXCHANGE, "containerPort": settings.node_port, "protocol": "TCP"},
            {"name": STATUS, "containerPort": settings.status_port, "protocol": "TCP"},
        ],
        "terminationMessagePath": str(TERMINATION),
        "terminationMessagePolicy": "File",
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": list(mounts.mounts),
    }


def pod(held: Object, mounts: Mounts, settings: Settings, pull_secrets: tuple[str, ...] = ()) -> Object:
    """A pod around one container. It has no token: nobody in it ever asks the API server for anything.

    No user is fixed: the image has one, and OpenShift gives each namespace its own.
    """
    security: Object = {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
    if settings.volume_group is not None:
        security |= {"fsGroup": settings.volume_group, "fsGroupChangePolicy": "OnRootMismatch"}
    made: Object = {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": security,
        "containers": [held],
        "volumes": list(mounts.volumes),
    }
    names = dict.fromkeys((*settings.image_pull_secrets, *pull_secrets))
    return {**made, "imagePullSecrets": [{"name": name} for name in names]} if names else made


def probe(path: str, *, period_seconds: int = 5) -> Object:
    """A probe of the status port."""
    return {
        "httpGet": {"path": path, "port": STATUS},
        "periodSeconds": period_seconds,
        "timeoutSeconds": 3,
        "failureThreshold": 3,
    }


def marked(labels: Mapping[str, str], annotations: Mapping[str, str] | None = None) -> Object:
    """A pod's metadata."""
    made: Object = {"labels": dict(labels)}
    return {**made, "annotations": dict(annotations)} if annotations else made

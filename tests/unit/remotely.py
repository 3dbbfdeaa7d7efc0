"""A consortium's object as a cluster has it, for tests of the commands that show one."""

from typing import Any

from pcmoe_operator.reasons import Reason

Object = dict[str, Any]
SINCE = "2026-01-01T12:00:00Z"


def condition(kind: str, status: str, reason: Reason | str, message: str = "") -> Object:
    """A condition; without a message it has none of its reason's words."""
    name = reason if isinstance(reason, str) else reason.name
    return {
        "type": kind,
        "status": status,
        "reason": name,
        "message": message,
        "lastTransitionTime": SINCE,
        "observedGeneration": 1,
    }


def consortium(
    *conditions: Object, name: str = "hospitals", spec: Object | None = None, **status: Any
) -> Object:
    """A consortium of two with these conditions, which takes precedence over those of one that trains."""
    said = {
        each["type"]: each
        for each in (
            condition("Accepted", "True", Reason.Accepted, Reason.Accepted.meaning),
            condition("Suspended", "False", Reason.NotSuspended, Reason.NotSuspended.meaning),
            condition("Progressing", "True", Reason.Training, Reason.Training.meaning),
            condition("Completed", "False", Reason.RoundsLeft),
            condition("Failed", "False", Reason.NoFailure),
            *conditions,
        )
    }
    return {
        "metadata": {
            "name": name,
            "namespace": "hospital",
            "uid": f"uid-{name}",
            "generation": 1,
            "resourceVersion": "1",
            "creationTimestamp": SINCE,
        },
        "spec": {
            "agreement": {
                "training": {"rounds": 20},
                "participants": [{"name": "berlin"}, {"name": "lyon"}],
            },
            **(spec or {}),
        },
        "status": {
            "observedGeneration": 1,
            "state": "Running",
            "round": "12/20",
            "ready": "2/2",
            "loss": "1.68",
            "attempt": 1,
            "conditions": list(said.values()),
            "participants": [
                {
                    "name": each,
                    "state": "Running",
                    "round": 12,
                    "phase": "TRAINING",
                    "restarts": 0,
                    "node": "m-1",
                }
                for each in ("berlin", "lyon")
            ],
            **status,
        },
    }

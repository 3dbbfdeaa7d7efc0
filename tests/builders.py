"""Good manifests for tests, with overrides by path."""

import copy
import json
from collections.abc import Mapping, Sequence
from typing import Any

from pcmoe_operator.schema import Consortium
from pcmoe_operator.spec import parse

NAMES = ("berlin", "lyon", "oslo", "turin", "graz", "ghent", "porto", "riga")

OLMOE: Mapping[str, Any] = {
    "model_type": "olmoe",
    "vocab_size": 258,
    "hidden_size": 32,
    "intermediate_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "max_position_embeddings": 128,
    "eos_token_id": 256,
    "pad_token_id": 257,
}
"""A tiny OLMoE that fits the byte-level tokenizer."""

QWEN3_MOE: Mapping[str, Any] = {
    **{key: value for key, value in OLMOE.items() if key != "intermediate_size"},
    "model_type": "qwen3_moe",
    "intermediate_size": 48,
    "moe_intermediate_size": 16,
    "head_dim": 8,
    "norm_topk_prob": True,
}
"""A tiny Qwen3-MoE of the same size."""


FULL: Mapping[str, Any] = {
    "name": "lyon",
    "gpus": 1,
    "resourceName": "nvidia.com/mig-1g.10gb",
    "volumes": {
        "dataset": {"image": {"reference": "registry.example/notes@sha256:" + "0" * 64}},
        "model": {"persistentVolumeClaim": {"claimName": "olmoe"}},
        "checkpoint": {"size": "200Gi", "storageClassName": "fast", "onDelete": "Delete"},
    },
    "template": {
        "nodeSelector": {"kind": "gpu"},
        "tolerations": [{"key": "gpu", "operator": "Exists"}],
        "affinity": {
            "nodeAffinity": {
                "requiredDuringSchedulingIgnoredDuringExecution": {
                    "nodeSelectorTerms": [{"matchExpressions": [{"key": "disk", "operator": "Exists"}]}]
                }
            }
        },
        "topologySpreadConstraints": [
            {"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "ScheduleAnyway"}
        ],
        "resources": {"requests": {"cpu": 4, "memory": "64Gi"}, "limits": {"memory": "96Gi"}},
        "resourceClaims": [{"name": "nic", "resourceClaimTemplateName": "rdma"}],
        "runtimeClassName": "nvidia",
        "priorityClassName": "training",
        "schedulerName": "volcano",
        "imagePullSecrets": [{"name": "registry"}],
        "image": "registry.example/pcmoe-node:1",
        "labels": {"team": "notes"},
        "annotations": {"contact": "somebody@example.org"},
    },
}
"""An entry of `local` that says all that can be said of a pod."""


def architecture(base: Mapping[str, Any] = OLMOE, **overrides: Any) -> str:
    """A configuration as JSON text; an override of None takes a key away."""
    merged = {**base, **overrides}
    return json.dumps({key: value for key, value in merged.items() if value is not None})


def manifest(
    participants: int | Sequence[str] = 2,
    overrides: Mapping[str, Any] | None = None,
    *,
    config: str | None = None,
) -> dict[str, Any]:
    """A good manifest with random weights: 2 rounds of 4 steps of 2 micro-batches of 2 x 16 tokens, float32.

    `overrides` go by path below `spec`, `{"agreement.training.rounds": 3, "local[0].name": "lyon"}`; a path
    that starts with `metadata`, `kind` or `apiVersion` goes from the top. A value of `...` removes.
    """
    names = NAMES[:participants] if isinstance(participants, int) else tuple(participants)
    made: dict[str, Any] = {
        "apiVersion": "pcmoe.dev/v1alpha1",
        "kind": "PCMoEConsortium",
        "metadata": {"name": "hospitals"},
        "spec": {
            "agreement": {
                "id": "hospitals-2026",
                "model": {
                    "source": {"config": config or architecture()},
                    "dtype": "float32",
                    "tokenizer": "ByteLevel",
                },
                "training": {
                    "rounds": 2,
                    "stepsPerRound": 4,
                    "microBatchesPerStep": 2,
                    "inFlight": 2,
                    "sequencesPerMicroBatch": 2,
                    "sequenceLength": 16,
                    "evaluation": {"sequences": 4},
                    "optimizer": {"learningRate": "1e-3", "warmupSteps": 2},
                },
                "transport": {"wireDtype": "float32"},
                "coordinator": names[0],
                "participants": [{"name": name} for name in names],
            }
        },
    }
    for path, value in (overrides or {}).items():
        put(made, path if path.split(".")[0] in (*made, "status") else f"spec.{path}", value)
    return made


def consortium(
    participants: int | Sequence[str] = 2,
    overrides: Mapping[str, Any] | None = None,
    *,
    config: str | None = None,
) -> Consortium:
    """`manifest(...)`, parsed."""
    return parse(manifest(participants, overrides, config=config))


def put(target: Any, path: str, value: Any) -> None:
    """Set the value at `a.b[0].c`, making objects on the way; `...` removes it."""
    keys = [int(key) if key.isdigit() else key for key in path.replace("[", ".").replace("]", "").split(".")]
    for key, following in zip(keys, keys[1:], strict=False):
        empty: Any = [] if isinstance(following, int) else {}
        if isinstance(target, dict):
            target = target.setdefault(key, empty)
        else:
            if key == len(target):
                target.append(empty)
            target = target[key]
    last = keys[-1]
    if value is ...:
        del target[last]
    elif isinstance(target, list) and last == len(target):
        target.append(copy.deepcopy(value))
    else:
        target[last] = copy.deepcopy(value)

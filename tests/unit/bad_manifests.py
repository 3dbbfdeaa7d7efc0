"""Manifests that must be refused: one row per way to break a rule.

Each row changes a good manifest, `tests.builders.manifest(3)`. `by` says who is able to refuse it: the CRD's
structural schema, its CEL rules, or nobody before the operator reads it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from tests.builders import QWEN3_MOE, architecture

AGREEMENT = "agreement"
TRAINING = f"{AGREEMENT}.training"
OPTIMIZER = f"{TRAINING}.optimizer"
EXPERTS = f"{AGREEMENT}.experts"
SOURCE = f"{AGREEMENT}.model.source"
DIGEST = "sha256:" + "0" * 64
ONE_EACH = [{"participant": "berlin", "experts": "0-2"}, {"participant": "lyon", "experts": "3-7"}]
MANY = [{"name": f"p{i}"} for i in range(65)]


@dataclass(frozen=True, slots=True)
class Bad:
    """A way to break one rule."""

    name: str
    """What is wrong; the test's id."""
    rule: str
    """Id of the rule."""
    changes: Mapping[str, Any]
    """By path, as `tests.builders.manifest` takes them."""
    says: tuple[str, ...]
    """Fragments of the message: field, value, rule."""
    by: Literal["schema", "cel", "operator"] = field(default="operator")


def _config(**changes: Any) -> dict[str, Any]:
    return {f"{SOURCE}.config": architecture(**changes)}


def _here(entry: Mapping[str, Any]) -> dict[str, Any]:
    """What one participant that runs here says, beside its name."""
    return {"local": [{"name": "lyon", **entry}]}


_STRUCTURAL = [
    Bad("no id", "required", {f"{AGREEMENT}.id": ...}, ("agreement.id", "required"), "schema"),
    Bad("no rounds", "required", {f"{TRAINING}.rounds": ...}, ("training.rounds", "required"), "schema"),
    Bad("no model", "required", {f"{AGREEMENT}.model": ...}, ("agreement.model", "required"), "schema"),
    Bad("no coordinator", "required", {
        f"{AGREEMENT}.coordinator": ...
    }, ("coordinator", "required"), "schema"),
    Bad("no participants", "required", {
        f"{AGREEMENT}.participants": ...
    }, ("participants", "required"), "schema"),
    Bad("no name", "required", {
        f"{AGREEMENT}.participants[1]": {"capacity": 1}
    }, ("participants[1].name",), "schema"),
    Bad(
        "a misspelled field",
        "unknown-field",
        {f"{TRAINING}.stepPerRound": 5},
        ("training.stepPerRound", "did you mean stepsPerRound"),
        "schema",
    ),
    Bad("a host path", "unknown-field", {
        "local": [{"name": "lyon", "hostPath": "/etc"}]
    }, ("hostPath",), "schema"),
    Bad("a field of spec", "unknown-field", {
        "serviceAccountName": "admin"
    }, ("spec.serviceAccountName",), "schema"),
    Bad(
        "an empty list of participants",
        "bounds",
        {f"{AGREEMENT}.participants": []},
        ("participants", "at least 1 entries"),
        "schema",
    ),
    Bad(
        "65 participants",
        "bounds",
        {f"{AGREEMENT}.participants": MANY, f"{AGREEMENT}.coordinator": "p0"},
        ("participants", "at most 64 entries"),
        "schema",
    ),
    Bad(
        "a capital letter in a name",
        "format",
        {f"{AGREEMENT}.participants[1].name": "Lyon"},
        ("participants[1].name", "Lyon", "lower-case"),
        "schema",
    ),
    Bad("a dot in the id", "format", {
        f"{AGREEMENT}.id": "a.b"
    }, ("agreement.id", "a.b", "lower-case"), "schema"),
    Bad(
        "a name of 29 characters",
        "bounds",
        {f"{AGREEMENT}.participants[1].name": "n" * 29},
        ("participants[1].name", "at most 28"),
        "schema",
    ),
    Bad("capacity 0", "bounds", {
        f"{AGREEMENT}.participants[1].capacity": 0
    }, ("capacity", "at least 1"), "schema"),
    Bad("rounds 0", "bounds", {f"{TRAINING}.rounds": 0}, ("training.rounds", "0", "at least 1"), "schema"),
    Bad("rounds as text", "type", {
        f"{TRAINING}.rounds": "20"
    }, ("training.rounds", '"20"', "whole"), "schema"),
    Bad("rounds 2.5", "type", {
        f"{TRAINING}.rounds": 2.5
    }, ("training.rounds", "2.5", "whole number"), "schema"),
    Bad("a number for a flag", "type", {
        f"{TRAINING}.deterministic": 1
    }, ("deterministic", "true or false"), "schema"),
    Bad("a sequence of 1 token", "bounds", {
        f"{TRAINING}.sequenceLength": 1
    }, ("sequenceLength", "least 2"), "schema"),
    Bad("a negative seed", "bounds", {
        f"{TRAINING}.seed": -1
    }, ("training.seed", "-1", "at least 0"), "schema"),
    Bad("an unknown placement", "enum", {
        f"{EXPERTS}.placement": "Random"
    }, ("placement", "Random"), "schema"),
    Bad("float16", "enum", {
        f"{AGREEMENT}.model.dtype": "float16"
    }, ("dtype", "float16", "bfloat16"), "schema"),
    Bad("no encryption", "enum", {
        f"{AGREEMENT}.transport.mode": "Plain"
    }, ("mode", "Plain", "TLS"), "schema"),
    Bad("SGD", "enum", {f"{OPTIMIZER}.name": "SGD"}, ("optimizer.name", "SGD", "AdamW"), "schema"),
    Bad("an answer that isn't built", "enum", {
        f"{AGREEMENT}.failurePolicy.onPeerLoss": "Mask"
    }, ("Mask",), "schema"),
    Bad("one checkpoint kept", "bounds", {
        f"{AGREEMENT}.checkpoint.keep": 1
    }, ("keep", "at least 2"), "schema"),
    Bad("no time at all", "bounds", {
        f"{AGREEMENT}.failurePolicy.peerTimeoutSeconds": 0
    }, ("least 1",), "schema"),
    Bad("a decimal that isn't", "format", {
        f"{OPTIMIZER}.learningRate": "fast"
    }, ("learningRate", "fast"), "schema"),
    Bad("a decimal with a sign", "format", {
        f"{OPTIMIZER}.weightDecay": "-0.1"
    }, ("weightDecay", "-0.1"), "schema"),
    Bad("a decimal without quotes", "type", {
        f"{OPTIMIZER}.learningRate": 2e-5
    }, ("2e-05", "in quotes"), "schema"),
    Bad("a fingerprint that is too short", "format", {
        SOURCE: {"checkpoint": {"fingerprint": "sha256:1234", "config": architecture()}}
    }, ("fingerprint", "sha256:1234", "64"), "schema"),
    Bad("a jurisdiction in small letters", "format", {
        f"{AGREEMENT}.participants[0].jurisdiction": "eu"
    }, ("jurisdiction", '"eu"', "capital"), "schema"),
    Bad("a jurisdiction twice", "unique", {
        f"{EXPERTS}.allowedJurisdictions": ["EU", "EU"],
        **{f"{AGREEMENT}.participants[{i}].jurisdiction": "EU" for i in range(3)},
    }, ("allowedJurisdictions", "once"), "schema"),
    Bad("a participant twice", "unique-participants", {
        f"{AGREEMENT}.participants[2].name": "lyon"
    }, ("participants[2].name", "lyon", "unique"), "schema"),
    Bad("a place twice", "known-roster", {
        "roster": [{"name": "lyon"}, {"name": "lyon"}]
    }, ("roster[1].name", "lyon", "second"), "schema"),
    Bad("here twice", "known-local", {
        "local": [{"name": "lyon"}, {"name": "lyon"}]
    }, ("local[1].name", "lyon", "second"), "schema"),
    Bad("pinned twice", "pinned-participants", {
        f"{EXPERTS}.placement": "Pinned",
        f"{EXPERTS}.pinned": [{"participant": "lyon", "experts": half} for half in ("0-3", "4-7")],
    }, ("pinned[1].participant", "lyon", "second"), "schema"),
    Bad("an endpoint without a port", "format", {
        "roster": [{"name": "lyon", "endpoint": "lyon.example"}]
    }, ("roster[0].endpoint", "lyon.example", "host:port"), "schema"),
    Bad("a key for a certificate", "format", {
        "roster": [{"name": "lyon", "caBundle": "-----BEGIN PRIVATE KEY-----"}]
    }, ("roster[0].caBundle", "certificate"), "schema"),
    Bad("2 GPUs", "bounds", {
        "local": [{"name": "lyon", "gpus": 2}]
    }, ("local[0].gpus", "2", "at most 1"), "schema"),
    Bad("an absolute path", "format", {
        "local": [{"name": "lyon", "dataset": {"path": "/etc/passwd"}}]
    }, ("dataset.path", "/etc/passwd", "not absolute"), "schema"),
    Bad("most of the data held out", "bounds", {
        "local": [{"name": "lyon", "dataset": {"heldOutPercent": 51}}]
    }, ("heldOutPercent", "51", "at most 50"), "schema"),
    Bad("experts in words", "format", {
        f"{EXPERTS}.placement": "Pinned",
        f"{EXPERTS}.pinned": [{"participant": "lyon", "experts": "all"}],
    }, ("pinned[0].experts", "all", "0-3,8"), "schema"),
    Bad("attempt 1000", "bounds", {"attempt": 1000}, ("spec.attempt", "1000", "at most 999"), "schema"),
    Bad("a host path for a volume", "unknown-field", _here({
        "volumes": {"dataset": {"hostPath": {"path": "/etc"}}}
    }), ("local[0].volumes.dataset.hostPath", "not a known field"), "schema"),
    Bad("a Secret for a volume", "unknown-field", _here({
        "volumes": {"model": {"secret": {"secretName": "x"}}}
    }), ("local[0].volumes.model.secret",), "schema"),
    Bad("a security context", "unknown-field", _here({
        "template": {"securityContext": {"runAsUser": 0}}
    }), ("local[0].template.securityContext",), "schema"),
    Bad("a service account", "unknown-field", _here({
        "template": {"serviceAccountName": "admin"}
    }), ("local[0].template.serviceAccountName",), "schema"),
    Bad("a command", "unknown-field", _here({
        "template": {"command": ["sh"]}
    }), ("local[0].template.command",), "schema"),
    Bad("an environment", "unknown-field", _here({
        "template": {"env": [{"name": "A", "value": "b"}]}
    }), ("local[0].template.env",), "schema"),
    Bad("a resource of no domain", "format", _here({
        "resourceName": "gpu"
    }), ("local[0].resourceName", '"gpu"', "nvidia.com/gpu"), "schema"),
    Bad("a size without a unit", "format", _here({
        "volumes": {"checkpoint": {"size": "200"}}
    }), ("volumes.checkpoint.size", '"200"', "200Gi"), "schema"),
    Bad("a size of nothing", "format", _here({
        "volumes": {"checkpoint": {"size": "0Gi"}}
    }), ("volumes.checkpoint.size", "0Gi"), "schema"),
    Bad("a claim's name with a slash", "format", _here({
        "volumes": {"dataset": {"persistentVolumeClaim": {"claimName": "a/b"}}}
    }), ("claimName", "a/b", "lower-case"), "schema"),
    Bad("an image with a space", "format", _here({
        "template": {"image": "a b"}
    }), ("template.image", "a b", "image reference"), "schema"),
    Bad("pulled now and then", "enum", _here({
        "volumes": {"dataset": {"image": {"reference": "a", "pullPolicy": "Sometimes"}}}
    }), ("pullPolicy", "Sometimes"), "schema"),
    Bad("a label's value with a space", "format", _here({
        "template": {"labels": {"team": "a b"}}
    }), ("template.labels.team", "a b"), "schema"),
    Bad("memory in words", "format", _here({
        "template": {"resources": {"requests": {"memory": "much"}}}
    }), ("resources.requests.memory", "much", "64Gi"), "schema"),
    Bad("a pull secret twice", "unique", _here({
        "template": {"imagePullSecrets": [{"name": "a"}, {"name": "a"}]}
    }), ("imagePullSecrets", "once"), "schema"),
    Bad("a device's name twice", "one-claim", _here({
        "template": {"resourceClaims": [{"name": "a", "resourceClaimName": x} for x in ("b", "c")]}
    }), ("resourceClaims[1].name", "second time"), "schema"),
]  # fmt: skip

_CEL = [
    Bad("a learning rate of 0", "bounds", {
        f"{OPTIMIZER}.learningRate": "0"
    }, ("learningRate", "greater than 0"), "cel"),
    Bad("beta2 of 1", "bounds", {f"{OPTIMIZER}.beta2": "1.0"}, ("beta2", "1.0", "less than 1"), "cel"),
    Bad("a bound beyond float32", "bounds", {
        f"{AGREEMENT}.transport.maxAbs": "1e39"
    }, ("maxAbs", "1e39"), "cel"),
    Bad("two sources", "one-source", {
        f"{SOURCE}.checkpoint": {"fingerprint": DIGEST, "config": architecture()}
    }, ("source", "exactly one of checkpoint and config"), "cel"),
    Bad("no source", "one-source", {SOURCE: {}}, ("source", "exactly one of checkpoint and config"), "cel"),
    Bad("no tokenizer", "byte-level", {
        f"{AGREEMENT}.model.tokenizer": ...
    }, ("tokenizer", "ByteLevel"), "cel"),
    Bad("more in flight than there are", "in-flight-within-step", {
        f"{TRAINING}.inFlight": 9
    }, ("inFlight", "9", "microBatchesPerStep (2)"), "cel"),
    Bad("more in flight by a default", "in-flight-within-step", {
        f"{TRAINING}.inFlight": ...
    }, ("inFlight", "4", "microBatchesPerStep (2)"), "cel"),
    Bad("uneven turns", "sequential-turns", {
        f"{TRAINING}.schedule": "Sequential"
    }, ("stepsPerRound", "4", "multiple of the 3"), "cel"),
    Bad("a coordinator from outside", "coordinator-participates", {
        f"{AGREEMENT}.coordinator": "paris"
    }, ("coordinator", "paris", "must be a participant"), "cel"),
    Bad("a participant called coordinator", "reserved-name", {
        f"{AGREEMENT}.participants[1].name": "coordinator"
    }, ("participants[1].name", "coordinator", "reserved"), "cel"),
    Bad("pinned, but to whom", "pinned-with-placement", {
        f"{EXPERTS}.placement": "Pinned"
    }, ("pinned", "placement Pinned"), "cel"),
    Bad("pinned, but dealt out", "pinned-with-placement", {
        f"{EXPERTS}.pinned": ONE_EACH
    }, ("pinned", "placement"), "cel"),
    Bad("pinned to a stranger", "pinned-participants", {
        f"{EXPERTS}.placement": "Pinned",
        f"{EXPERTS}.pinned": [*ONE_EACH[:1], {"participant": "paris", "experts": "3-7"}],
    }, ("pinned", "must be a participant"), "cel"),
    Bad("nobody may host", "jurisdiction-hosts", {
        f"{EXPERTS}.allowedJurisdictions": ["CH"],
        **{f"{AGREEMENT}.participants[{i}].jurisdiction": "EU" for i in range(3)},
    }, ("allowedJurisdictions", "at least one participant"), "cel"),
    Bad("a jurisdiction unsaid", "jurisdiction-hosts", {
        f"{EXPERTS}.allowedJurisdictions": ["EU"],
        f"{AGREEMENT}.participants[0].jurisdiction": "EU",
    }, ("jurisdiction", "allowedJurisdictions"), "cel"),
    Bad("a stranger's place", "known-roster", {
        "roster": [{"name": "paris"}]
    }, ("roster", "participant"), "cel"),
    Bad("a stranger here", "known-local", {
        "local": [{"name": "paris"}]
    }, ("local", "paris", "participant"), "cel"),
    Bad("one endpoint for two", "unique-endpoints", {
        "roster": [{"name": name, "endpoint": "one.example:443"} for name in ("berlin", "lyon")]
    }, ("roster", "unique"), "cel"),
    Bad("port 70000", "bounds", {
        "roster": [{"name": "lyon", "endpoint": "lyon.example:70000"}]
    }, ("endpoint", "65535"), "cel"),
    Bad("CUDA without a GPU", "device-has-gpu", {
        "local": [{"name": "lyon", "device": "CUDA"}]
    }, ("device", "CUDA", "gpus 1"), "cel"),
    Bad("a GPU for nothing", "device-has-gpu", {
        "local": [{"name": "lyon", "device": "CPU", "gpus": 1}]
    }, ("device", "CPU", "gpus 0"), "cel"),
    Bad("threads with fixed order", "deterministic-thread", {
        f"{TRAINING}.deterministic": True,
        "local": [{"name": "lyon", "cpuThreads": 4}],
    }, ("cpuThreads", "0 or 1"), "cel"),
    Bad("nothing to evaluate on", "held-out-for-evaluation", {
        "local": [{"name": "lyon", "dataset": {"heldOutPercent": 0}}]
    }, ("heldOutPercent", "at least 1"), "cel"),
    Bad("a path that climbs out", "relative-path", {
        "local": [{"name": "lyon", "dataset": {"path": "a/../../b"}}]
    }, ("dataset.path", "stay inside"), "cel"),
    Bad("two datasets", "one-volume", _here({
        "volumes": {"dataset": {"persistentVolumeClaim": {"claimName": "a"}, "image": {"reference": "b"}}}
    }), ("volumes.dataset", "exactly one of persistentVolumeClaim and image", "both"), "cel"),
    Bad("a model nowhere", "one-volume", _here({
        "volumes": {"model": {}}
    }), ("volumes.model", "exactly one of", "neither"), "cel"),
    Bad("a checkpoint in two places", "one-volume", _here({
        "volumes": {"checkpoint": {"persistentVolumeClaim": {"claimName": "a"}, "size": "1Gi"}}
    }), ("volumes.checkpoint", "exactly one of persistentVolumeClaim and size", "both"), "cel"),
    Bad("a class for a claim that is there", "claim-made-here", _here({
        "volumes": {"checkpoint": {"persistentVolumeClaim": {"claimName": "a"}, "storageClassName": "fast"}}
    }), ("checkpoint.storageClassName", "fast", "with size"), "cel"),
    Bad("the end of a claim that is there", "claim-made-here", _here({
        "volumes": {"checkpoint": {"persistentVolumeClaim": {"claimName": "a"}, "onDelete": "Delete"}}
    }), ("checkpoint.onDelete", "Delete", "with size"), "cel"),
    Bad("one claim for two", "own-checkpoint", {
        "local": [{"name": name, "volumes": {"checkpoint": {"persistentVolumeClaim": {"claimName": "shared"}}}}
                  for name in ("berlin", "lyon")]
    }, ("local[1].volumes.checkpoint", "'shared'", "of its own"), "cel"),
    Bad("the claim that another is given", "own-checkpoint", {
        "local": [{"name": "berlin", "volumes": {"checkpoint": {"size": "1Gi"}}}, {"name": "lyon", "volumes": {
            "checkpoint": {"persistentVolumeClaim": {"claimName": "hospitals.berlin"}}
        }}],
    }, ("local[1].volumes.checkpoint", "'hospitals.berlin'", "of its own")),
    Bad("a device from nowhere", "one-claim", _here({
        "template": {"resourceClaims": [{"name": "a"}]}
    }), ("resourceClaims[0]", "exactly one of", "neither"), "cel"),
    Bad("GPUs counted twice", "gpus-counted-once", _here({
        "gpus": 1, "template": {"resources": {"limits": {"nvidia.com/gpu": 2}}}
    }), ("resources.limits", "nvidia.com/gpu", "gpus"), "cel"),
    Bad("one of Kubernetes' own resources", "extended-resource", _here({
        "resourceName": "kubernetes.io/gpu"
    }), ("resourceName", "kubernetes.io/gpu", "Kubernetes' own"), "cel"),
    Bad("a label of the operator's", "reserved-key", _here({
        "template": {"labels": {"pcmoe.dev/role": "coordinator"}}
    }), ("template.labels", "pcmoe.dev/role", "app.kubernetes.io/"), "cel"),
    Bad("an annotation of the operator's", "reserved-key", _here({
        "template": {"annotations": {"app.kubernetes.io/instance": "x"}}
    }), ("template.annotations", "app.kubernetes.io/"), "cel"),
    Bad("a security context as an annotation", "reserved-key", _here({
        "template": {"annotations": {"container.apparmor.security.beta.kubernetes.io/node": "unconfined"}}
    }), ("template.annotations", "apparmor"), "cel"),
    Bad("an object's name that is too long", "bounds", {
        "metadata.name": "n" * 31
    }, ("metadata.name", "30"), "cel"),
]  # fmt: skip

_OPERATOR = [
    Bad("a label that is none", "label-key", _here({
        "template": {"labels": {"a/b/c": "x"}}
    }), ("template.labels", "a/b/c", "slash")),
    Bad("a machine's label that is none", "label-key", _here({
        "template": {"nodeSelector": {"": "x"}}
    }), ("template.nodeSelector", "a name")),
    Bad("another kind", "enum", {"kind": "Consortium"}, ("kind", "Consortium", "PCMoEConsortium")),
    Bad("another version", "enum", {"apiVersion": "pcmoe.dev/v2"}, ("apiVersion", "pcmoe.dev/v2")),
    Bad("a configuration that isn't JSON", "config-json", {f"{SOURCE}.config": "{olmoe"}, ("config", "JSON")),
    Bad("a configuration that is a list", "config-json", {f"{SOURCE}.config": "[1]"}, ("config", "object")),
    Bad("a key twice", "config-json", {f"{SOURCE}.config": '{"a": 1, "a": 2}'}, ("config", "twice")),
    Bad("a size that isn't a number", "config-json", {f"{SOURCE}.config": '{"a": NaN}'}, ("config", "NaN")),
    Bad("a dense model", "model-type", _config(model_type="llama"), ("model_type", "llama", "olmoe")),
    Bad("no model type", "model-type", _config(model_type=None), ("model_type", "olmoe")),
    Bad("dropout", "no-randomness", _config(attention_dropout=0.1),
        ("attention_dropout", "0.1", "must be 0")),
    Bad("router noise", "no-randomness", _config(router_jitter_noise=0.1),
        ("router_jitter_noise", "must be 0")),
    Bad("a quantized model", "not-quantized", _config(quantization_config={"bits": 4}),
        ("quantization_config",)),
    Bad("no experts", "config-sizes", _config(num_experts=None), ("num_experts", "at least 1")),
    Bad("a width of 0", "config-sizes", _config(hidden_size=0), ("hidden_size", "0", "at least 1")),
    Bad("top 9 of 8", "config-sizes", _config(num_experts_per_tok=9), ("num_experts_per_tok", "9", "(8)")),
    Bad("heads that don't divide", "config-sizes", _config(num_attention_heads=5),
        ("num_attention_heads", "(32)")),
    Bad("no layer with experts", "config-sizes", {
        f"{SOURCE}.config": architecture(QWEN3_MOE, mlp_only_layers=[0, 1, 2])
    }, ("num_hidden_layers", "at least one layer")),
    Bad("a vocabulary below bytes", "byte-level", _config(vocab_size=257), ("vocab_size", "257", "258")),
    Bad("sequences beyond the model's", "positions", {
        f"{TRAINING}.sequenceLength": 129
    }, ("sequenceLength", "129", "max_position_embeddings (128)")),
    Bad("nothing left to share", "local-layers-fit", {
        f"{EXPERTS}.localLayers": {"atStart": 2, "atEnd": 1}
    }, ("localLayers", "atStart + atEnd is 3", "3 layers")),
    Bad("an expert left out", "pinned-once", {
        f"{EXPERTS}.placement": "Pinned",
        f"{EXPERTS}.pinned": [*ONE_EACH[:1], {"participant": "lyon", "experts": "3-5"}],
    }, ("pinned", "6-7", "once")),
    Bad("an expert pinned to two", "pinned-once", {
        f"{EXPERTS}.placement": "Pinned",
        f"{EXPERTS}.pinned": [*ONE_EACH[:1], {"participant": "lyon", "experts": "2-7"}],
    }, ("pinned[1].experts", "names 2,", "once")),
    Bad("an expert that isn't there", "pinned-once", {
        f"{EXPERTS}.placement": "Pinned",
        f"{EXPERTS}.pinned": [*ONE_EACH[:1], {"participant": "lyon", "experts": "3-8"}],
    }, ("pinned[1].experts", "names 8;", "0-7")),
    Bad("a range that falls", "expert-ranges", {
        f"{EXPERTS}.placement": "Pinned",
        f"{EXPERTS}.pinned": [{"participant": "lyon", "experts": "7-0"}],
    }, ("pinned[0].experts", "7-0", "ascend")),
    Bad("pinned where it may not be", "pinned-participants", {
        f"{EXPERTS}.placement": "Pinned",
        f"{EXPERTS}.pinned": ONE_EACH,
        f"{EXPERTS}.allowedJurisdictions": ["EU"],
        **{f"{AGREEMENT}.participants[{i}].jurisdiction": at for i, at in enumerate(("EU", "US", "EU"))},
    }, ("pinned[1].participant", "lyon", "allowedJurisdictions")),
    Bad("a big configuration", "bounds", {
        f"{SOURCE}.config": architecture().replace("}", f', "note": "{"é" * 9000}"}}')
    }, ("config", "16 KiB")),
]  # fmt: skip

BAD_MANIFESTS = (*_STRUCTURAL, *_CEL, *_OPERATOR)

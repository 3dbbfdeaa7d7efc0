"""All that a process shows of itself, by name, and why each may leave; the rule it is held to.

The rule. What participants agreed to keep to themselves is their text. A figure leaves a process only if nobody can
tell from it what a text says:

1. No text, token, token id, position or document, and nothing about one.
2. Nothing about a single expert, nor about a layer's choices.
3. What follows from how many rows went to a peer (bytes, messages, replies, shares) is a sum over a whole round and
   includes the padding: per step it would say which experts the step's texts asked for.
4. Losses are those of the participant's own process; they are read by its own people.
5. Labels, and words where a field holds words of a closed list, are known before the run begins: names of participants
   or enumerations.

So a name that isn't here fails a test, with `ASK` in its message.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

ASK = (
    "is shown, and nobody has said why it may be. Ask: does it say anything of a text, a token, a position, a "
    "document or a single expert? Does it follow from how many rows went to whom: then is it a sum over a whole "
    "round, padding included? Are its labels known before the run begins? If so, add it to tests/exposed.py under "
    "the reason that fits; if none fits, it must not leave."
)
FORBIDDEN = re.compile(
    r"expert|layer|rout(?!e$)|slot|gate|logit|hidden|activation|gradient_norm|token_?ids?(?![a-z])|"
    r"\btexts?\b|_text|position|document|prompt|content|vocab|embedding|per_?step|by_?step|per_?micro|rows(?!er)",
    re.IGNORECASE,
)
"""What no name may speak of. `remoteTokenShare` and `tokens` are sums; `heldOutLoss` is a loss."""

# Why a name may leave. Each reason is one sentence; the names under it have nothing else in common.

PROGRESS = "how far the run is: rounds, steps, views, phases; agreed numbers, and the same for everybody"
LOSS = "a mean over all own tokens of a round or an evaluation so far: a figure of the own process for its own people"
VOLUME = "how many own tokens were trained on in all: agreed sizes of batches, whichever texts they hold"
WIRE = "bytes and messages on the wire, padding included; changes only at the end of a round"
SHARE = "one number over all layers and tokens of a whole round; changes only at its end"
TIME = "seconds by a closed list of what they were spent on, over all peers and layers"
LINK = "whether and how a peer is connected, which anybody on the network sees too"
MACHINE = "memory and devices of the own process"
PUBLIC = "public or agreed beforehand: names, versions, dates, sizes of models and files"
WORDS = "a sentence for people, made of names, numbers and rules; never of what was read (errors are tested for that)"
CLUSTER = "the operator's own work on objects of the API server; it sees no data, no weights and no losses of others"
EXPOSURE = (
    "sums over a whole run from the ledger that a participant keeps for its own people, read where that lies"
)
COMPARED = (
    "how a run did beside its baselines: means over all own tokens, and sizes; all of it lies on one machine"
)
MEASURED = (
    "how much of its text a partner could read, which a participant measured by itself and for its own people: shares "
    "over many documents, at one moment's weights, read where that lies"
)
TYPED = "what somebody typed, and what models made of it, because it was asked for; the page says what it may repeat"
REASONS = frozenset(
    {
        COMPARED,
        MEASURED,
        TYPED,
        EXPOSURE,
        PROGRESS,
        LOSS,
        VOLUME,
        WIRE,
        SHARE,
        TIME,
        LINK,
        MACHINE,
        PUBLIC,
        WORDS,
        CLUSTER,
    }
)

Names = Mapping[str, str]
"""Why, by name."""


def _why(reason: str, names: str, prefix: str = "") -> dict[str, str]:
    return {f"{prefix}{name}": reason for name in names.split()}


_N, _C, _O = "pcmoe_node_", "pcmoe_coordinator_", "pcmoe_operator_"
METRICS: Names = {
    **_why(PROGRESS, "phase view views_lost rounds round committed_round step steps_skipped", _N),
    **_why(PROGRESS, "last_commit_timestamp_seconds usual_round_seconds", _N),
    **_why(LOSS, "training_loss held_out_loss", _N),
    **_why(VOLUME, "tokens", _N),
    **_why(WIRE, "sent_bytes received_bytes replies reply_seconds", _N),
    **_why(SHARE, "remote_token_share", _N),
    **_why(TIME, "phase_seconds checkpoint_seconds", _N),
    **_why(LINK, "peers peer_up peer_rtt_seconds requests_in_flight reconnections refused_connections", _N),
    **_why(MACHINE, "resident_memory_bytes resident_memory_peak_bytes tensor_bytes checkpoint_bytes", _N),
    **_why(MACHINE, "torch_allocated_bytes torch_reserved_bytes torch_allocated_peak_bytes gpu_info", _N),
    **_why(MACHINE, "gpu_memory_used_bytes gpu_memory_total_bytes gpu_utilization_ratio gpu_power_watts", _N),
    **_why(MACHINE, "gpu_temperature_celsius gpu_errors", _N),
    **_why(PUBLIC, "in_flight_limit certificate_expiry_timestamp_seconds build_info", _N),
    **_why(PROGRESS, "state view views committed_round last_commit_timestamp_seconds", _C),
    **_why(LINK, "connected refused_connections", _C),
    **_why(PUBLIC, "certificate_expiry_timestamp_seconds build_info", _C),
    **_why(
        CLUSTER, "leader reconciles reconcile_errors reconcile_duration_seconds api_requests consortia", _O
    ),
    **_why(CLUSTER, "consortia_failed", _O),
    **_why(
        CLUSTER, "crd_missing_fields queue_length queue_oldest_seconds watch_age_seconds watch_restarts", _O
    ),
    **_why(MACHINE, "process_virtual_memory_bytes process_resident_memory_bytes process_cpu_seconds", _O),
    **_why(MACHINE, "process_start_time_seconds process_open_fds process_max_fds", _O),
    **_why(PUBLIC, "build_info", _O),
}
"""Families of the three pages; a counter's name without `_total`."""

PEER = "PEER"
"""Stands for every participant's name."""
ANY = "ANY"
"""Stands for any key."""
NAMES = ("berlin", "lyon", "porto")
"""The participants in tests."""


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


LABELS: Mapping[str, frozenset[str]] = {
    "phase": _words(
        "LOADING WAITING CONNECTING FAILED TRAINING EVALUATING CHECKPOINT COMMITTING DONE "
        "data forward backward exchange_wait host_compute optimizer vote evaluation checkpoint other"
    ),
    "peer": frozenset(NAMES),
    "participant": frozenset(NAMES),
    "reason": _words(
        "handshake malformed identity agreement another-view closing "
        "api_conflict api_refused api_unavailable timeout bug "
        "ConfigurationRefused DatasetUnreadable ResourceMissing IdentityRefused ProtocolBroken Diverged InternalError "
        "StorageFailed PeerLost Stopped Killed BackoffLimitExceeded CrashLoop JobFailed NodeError other"
    ),
    "state": _words(
        "ok mig no_driver lost FORMING RUNNING FAILED "
        "new Invalid Pending Loading Running Waiting Suspended Completed Failed other"
    ),
    "kind": frozenset({"ecc_corrected", "ecc_uncorrected"}),
    "verb": _words("get list watch create update patch delete other"),
    "resource": _words(
        "pcmoeconsortia configmaps secrets services persistentvolumeclaims pods events replicasets jobs leases "
        "networkpolicies pcmoeconsortia/status api apis openapi namespaces other"
    ),
}
"""Every value that a label may have, but for those below."""
OTHER_LABELS: Mapping[str, str] = {
    "version": "of the software",
    "namespace": "one of those that the operator's settings name",
    "code": "three digits, none or other",
    "le": "a bound of a histogram",
}

_MEMORY = "memory.rssBytes memory.peakRssBytes memory.tensorBytes"
_GPU = "allocated reserved used total"
STATUS: Names = {
    **_why(PROGRESS, "phase view committed viewsLost round rounds step steps"),
    **_why(LOSS, "trainLoss heldOutLoss notFinite[]"),
    **_why(VOLUME, "tokens tokensPerSecond"),
    **_why(WIRE, "bytesSent bytesReceived"),
    **_why(LINK, "reconnections peersConnected peers"),
    **_why(MACHINE, _MEMORY),
    **_why(MACHINE, _GPU, "memory.gpuBytes."),
    **_why(PUBLIC, "participant exitCode"),
    **_why(WORDS, "error waitingFor"),
}
"""`/status` of a node, which is its termination message too."""
COORDINATOR_STATUS: Names = {
    **_why(PROGRESS, "state view round members[].phase members[].round"),
    **_why(LINK, "members[].connected"),
    **_why(PUBLIC, "members[].name"),
    **_why(WORDS, "reason error members[].lost"),
}
_TRAFFIC = "bytesSent bytesReceived messagesSent messagesReceived"
_PHASES = "data forward backward exchange_wait host_compute optimizer vote evaluation checkpoint other"
ROUNDS: Names = {
    **_why(PROGRESS, "round step time seconds stepsApplied stepsSkipped"),
    **_why(LOSS, "trainLoss heldOutLoss"),
    **_why(VOLUME, "tokens"),
    **_why(WIRE, _TRAFFIC, f"traffic.{PEER}."),
    **_why(TIME, "replies replySeconds", f"traffic.{PEER}."),
    **_why(SHARE, f"remoteTokenShare traffic.{PEER}.hiddenRowsSent"),
    **_why(TIME, _PHASES, "secondsByPhase."),
    **_why(TIME, "checkpointSeconds"),
    **_why(MACHINE, "rssBytes peakRssBytes baselineRssBytes gpuPeakBytes", "memory."),
    **_why(MACHINE, "backbone experts gradients moments masters", "memory.tensorBytes."),
    **_why(MACHINE, "gpus checkpointBytes"),
}
"""A line of `rounds.jsonl`, one per round."""
EVENTS: Names = {**_why(PROGRESS, "time kind"), **_why(WORDS, "message")}
"""A line of `events.jsonl`."""
EVENT_KINDS = _words("ViewEntered ViewLeft Stopped Failed ViewFormed ViewOver Committed")
_MEMORY_OF = f"memory.participants.{PEER}"
_TENSORS = "backbone experts gradients moments masters"
_KINDS = ("together", "alone-shard", "alone-all", "union")
_LEAK_OF = f"leak.{PEER}."


def _arrangement(kind: str) -> list[str]:
    """What a report says of one way to train."""
    sizes = ("tensorBytes.least", "tensorBytes.most", "peakBytes.least", "peakBytes.most")
    return [f"baselines.arrangements.{kind}.{name}" for name in (f"heldOut.{PEER}", "meanHeldOut", *sizes)]


def _against(kind: str) -> list[str]:
    """What it says of the run beside another way to train."""
    names = ("organisations", "betterTogether", "meanTogether", "meanOther", "difference")
    return [f"baselines.against.{kind}.{name}" for name in names]


def _reads() -> list[str]:
    """What it says of one layer: each attack and floor with its interval, or null."""
    attacks = {
        "ownToken": ("probe", "probeUpperBound", "mostFrequent", "unigram"),
        "nextToken": ("formula", "probe", "probeUpperBound", "withoutGradients", "mostFrequent", "unigram"),
    }
    return [
        f"{token}.{attack}{end}"
        for token, each in attacks.items()
        for attack in each
        for end in ("", ".value", ".low", ".high")
    ]


REPORT: Names = {
    **_why(PROGRESS, "roundsDone roundsPlanned stepsSkipped seconds"),
    **_why(PROGRESS, "events[].time events[].who events[].kind events[].count events[].warning"),
    **_why(LOSS, "firstHeldOut lastHeldOut change changePercent", f"loss.{PEER}."),
    **_why(LOSS, "round step heldOut training", f"loss.{PEER}.rounds[]."),
    **_why(VOLUME, "tokens"),
    **_why(WIRE, f"bytesSent.{PEER}.{PEER} messagesSent.{PEER} totalBytes bytesPerTrainedToken", "traffic."),
    **_why(SHARE, f"machines.{PEER}.remoteTokenShare traffic.hiddenRowsSent.{PEER}.{PEER}"),
    **_why(TIME, f"traffic.replyMilliseconds.{PEER}.{PEER}"),
    **_why(TIME, f"time.{PEER}.{ANY} machines.{PEER}.checkpointSeconds"),
    **_why(MACHINE, "gpus checkpointBytes", f"machines.{PEER}."),
    **_why(MACHINE, "held trained", f"gpuHours.participants.{PEER}."),
    **_why(MACHINE, "held trained", "gpuHours."),
    **_why(MACHINE, "baselineRss gpuPeak peakAboveBaseline peakRss total savingPercent", f"{_MEMORY_OF}."),
    **_why(MACHINE, _TENSORS, f"{_MEMORY_OF}.tensors."),
    **_why(PUBLIC, _TENSORS, "memory.whole.tensors."),
    **_why(PUBLIC, "memory.whole.total memory.unit"),
    **_why(PUBLIC, "expertSharePercent optimizer parameters participants sharedOutPercent", "memory.basis."),
    **_why(PUBLIC, f"digests.{ANY} settings.{ANY} software.{ANY} format title participants[] elsewhere[]"),
    **_why(PROGRESS, f"span.from span.to standing.{ANY}"),
    **_why(WORDS, f"events[].message leftOut.{PEER}"),
    **_why(EXPOSURE, "documents roundsAgain openViews refusedFrames refusedConnections", f"exposure.{PEER}."),
    **_why(EXPOSURE, "tokensPercent nextTokensPercent heldOutPercent", f"exposure.{PEER}.peers.{PEER}."),
    **_why(EXPOSURE, "documentsSeen bytesAsked bytesAnswered", f"exposure.{PEER}.peers.{PEER}."),
    **_why(COMPARED, "baselines baselines.round"),
    **{name: COMPARED for kind in _KINDS for name in _arrangement(kind)},
    **{name: COMPARED for kind in _KINDS[1:] for name in _against(kind)},
    **_why(MEASURED, "weights host documents tokens sentPercent atEnd caveat limits[]", _LEAK_OF),
    **_why(MEASURED, f"adversaryKnows.{ANY} layers[].layer layers[].leaves layers[].sentPercent", _LEAK_OF),
    **_why(MEASURED, " ".join(_reads()), f"{_LEAK_OF}layers[]."),
    **_why(TYPED, "prompt base consortium round", f"continuations.{PEER}."),
}
"""`report.json`, of a whole run: sums over rounds, and what the manifest says."""
OPEN_FIELDS = re.compile(
    rf"^(digests|settings|software|standing|time\.{PEER}|leak\.{PEER}\.adversaryKnows)\.[^.]+$"
)
"""Keys below these are of the manifest, conditions, phases or kinds of attacks."""
LOG_FIELDS: Names = {**_why(PUBLIC, "asctime levelname"), **_why(WORDS, "message")}
"""What a line of a log has beside its sentence."""
EXCEPTED: Names = {
    "memory.tensorBytes.experts": "bytes of all weights of the own share together: an agreed size",
    "memory.whole.tensors.experts": "the same of the whole model",
    f"{_MEMORY_OF}.tensors.experts": "the same, in a report",
    "memory.basis.expertSharePercent": "what part of the model they are: an agreed size",
    f"traffic.{PEER}.hiddenRowsSent": "rows to a peer over a whole round, for the owner's own account of what left",
    f"traffic.hiddenRowsSent.{PEER}.{PEER}": "the same over a whole run",
    f"exposure.{PEER}.documents": "how many a participant has, for its own account of what left",
    f"leak.{PEER}.documents": "how many were measured, for its own account of what can be read",
    **{
        f"leak.{PEER}.layers[].{name}": "a share over many documents, for the own account of what can be read there"
        for name in ("layer", "leaves", "sentPercent", *_reads())
    },
    f"continuations.{PEER}.prompt": "typed by somebody for this, and not of a record",
    f"exposure.{PEER}.peers.{PEER}.documentsSeen": "how many of them a partner saw anything of, over a whole run",
}
"""Speak of what is forbidden, and why they may all the same."""


def paths(value: Any, names: Iterable[str] = NAMES, path: str = "") -> Iterator[str]:
    """Every field that a JSON value has, lists as `[]`; keys that are participants' names as `PEER`."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            shown = PEER if key in names else key
            yield from paths(inner, names, f"{path}.{shown}" if path else shown)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from paths(inner, names, f"{path}[]")
    else:
        yield path


def unexplained(found: Iterable[str], known: Names, where: str) -> list[str]:
    """A sentence for each name that nobody has given a reason for; one that is a part of a known one needs none."""
    parts = {name[: end.start()] for name in known for end in re.finditer(r"\.|\[\]", name)}
    return [f"{name} of {where} {ASK}" for name in sorted(set(found) - set(known) - parts)]


def lines(text: str) -> Sequence[Any]:
    """JSON Lines."""
    return [json.loads(line) for line in text.splitlines()]

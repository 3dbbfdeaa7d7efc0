"""Every reason that a status gives: one word for programs, what it means, and what to do, for people.

`Reason.Unschedulable.name` is the word. A message is put together as `lyon: <meaning>: <others' words>; <remedy>`;
the table of all reasons in the documentation is made from here.
"""

from enum import Enum, unique


@unique
class Reason(Enum):
    """A condition's reason, or a participant's. The members' names are part of the API: they never change."""

    def __init__(self, meaning: str, remedy: str) -> None:
        self.meaning = meaning
        """A clause without a full stop."""
        self.remedy = remedy
        """What to do; empty where there is nothing to do."""
        self.__doc__ = f"{meaning[0].upper()}{meaning[1:]}." + (f" What to do: {remedy}." if remedy else "")

    @property
    def asks_nobody(self) -> bool:
        """Whether nobody has to do anything about it."""
        return not self.remedy or self.remedy.startswith(("nothing:", "nothing,"))

    # The manifest
    Accepted = ("the manifest keeps all rules", "")
    CRDTooOld = (
        "the CRD in this cluster is older than the operator",
        "apply the crd.yaml of the operator's version",
    )
    InvalidSpec = ("the manifest breaks rules", "change what is named; until then nothing is applied")

    # What is made for all can't be made
    ApplyRefused = (
        "the API server refuses an object",
        "change what the refusal names; it is tried again every minute",
    )

    # The pod can't be made
    QuotaExceeded = (
        "a quota of the namespace has no room for its pod",
        "raise the ResourceQuota or ask for less in spec.local",
    )
    PodSecurityRefused = (
        "the namespace's Pod Security refuses its pod",
        "allow the restricted level there; the pod needs no more",
    )
    AdmissionRefused = (
        "the API server refuses its pod",
        "change what the refusal names, in spec.local or in the cluster's policies",
    )

    # The pod has no machine
    Unschedulable = (
        "no machine has room for its pod",
        "add a machine, free one, or ask for less in spec.local",
    )
    SchedulingGated = ("its pod is held back by a scheduling gate", "see who set the gate, mostly a queue")
    VolumeUnbound = (
        "a volume of its pod is not bound",
        "look at the claim with kubectl describe pvc: name, storage class, zone",
    )

    # The container doesn't start
    ImageUnavailable = ("its image can't be had", "check the image's name, the registry and imagePullSecrets")
    ConfigurationMissing = (
        "a Secret or ConfigMap of its pod is not there",
        "nothing if it is new; otherwise see the operator's log",
    )
    VolumeUnavailable = (
        "a volume can't be mounted on its machine",
        "see kubectl describe pod; a volume may be attached elsewhere still",
    )
    StartFailed = ("its container can't be started", "look at image, runtimeClassName and the machine's log")
    MachineRefused = ("its machine has refused the pod", "nothing: it is made anew")

    # The pod is taken away
    Preempted = ("a pod of higher priority took its place", "nothing, or set priorityClassName in spec.local")
    Evicted = (
        "its pod was sent away from its machine",
        "nothing: it is made anew, and goes on from its checkpoint",
    )
    NodeUnreachable = (
        "its machine doesn't answer, so its pod can't be replaced",
        "mend the machine, or taint it node.kubernetes.io/out-of-service=nodeshutdown:NoExecute once it is off",
    )
    Stopped = ("its pod was told to stop", "nothing: it is made anew unless the consortium is suspended")

    # The node ends
    OutOfMemory = (
        "its node ran out of memory",
        "give it more in template.resources, or use fewer inFlight, shorter sequences or gradientCheckpointing",
    )
    Killed = ("its node died by a signal", "if it comes again, look at its log; SIGKILL mostly means memory")
    ConfigurationRefused = (
        "its configuration can't be used here",
        "change what is named, then raise spec.attempt",
    )
    DatasetUnreadable = ("its dataset can't be read", "mend the record or path, then raise spec.attempt")
    ResourceMissing = (
        "something that it must have is missing",
        "provide what is named, then raise spec.attempt",
    )
    IdentityRefused = (
        "a peer, or its own certificate, is not who or what the agreement says",
        "compare agreements and caBundles, then raise spec.attempt",
    )
    ProtocolBroken = (
        "a peer sent what the agreement forbids",
        "ask that partner which image runs there, then raise spec.attempt",
    )
    Diverged = (
        "its own numbers overflowed in ten steps in a row",
        "lower learningRate or raise warmupSteps, then raise spec.attempt",
    )
    StorageFailed = (
        "what it must keep can't be written",
        "make its volume larger, or mend it, then raise spec.attempt",
    )
    InternalError = ("an error inside the program", "report it with the node's log, then raise spec.attempt")
    PeerLost = ("it lost a peer", "look at that one's log; it is started again and waits")
    NodeError = ("its node ended with an unknown exit code", "look at its log")
    BackoffLimitExceeded = (
        "it was started again too often",
        "look at the log of its last pod, then raise spec.attempt",
    )
    CrashLoop = (
        "it ended again and again, and no round was committed in between",
        "mend what is named, then raise spec.attempt",
    )
    JobFailed = ("its Job has failed", "see kubectl describe job, then raise spec.attempt")

    # On the way
    Starting = ("its pod is on its way", "")
    AllScheduled = ("every participant's pod has a machine", "")
    NothingHere = (
        "no participant of this consortium runs in this cluster",
        "name one in spec.local and in the operator's setting participants",
    )
    Loading = ("it loads model and data", "")
    WaitingForParticipants = (
        "no view stands, because somebody is missing",
        "look at the status and log of who is named, which may be at a partner",
    )
    InView = ("every participant that runs here is in a view", "")
    Training = ("rounds go on", "")
    StatusUnavailable = (
        "neither the coordinator nor a node answers the operator",
        "check that a NetworkPolicy lets the operator reach the status port",
    )

    # Suspended, or not
    NotSuspended = ("spec.suspend is not true", "")
    SuspendRequested = ("spec.suspend is true", "set it to false to go on from the last committed round")
    Suspending = ("pods are about to end, because spec.suspend is true", "")
    GpusReleased = (
        "GPUs were given back, because not all pods found a machine",
        "add what the waiting pod lacks; all start again then",
    )
    Queued = (
        "an older consortium finds machines first",
        "nothing: it starts in its turn, which is a matter of a minute or two",
    )

    # The end, or not yet
    LastRoundCommitted = ("everybody has stored the last round", "")
    RoundsLeft = ("not all rounds are committed", "")
    NoFailure = ("no participant has failed for good", "")
    RunOver = ("the run is over", "")

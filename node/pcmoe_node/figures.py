"""What a node knows of itself in numbers: written by the run, read by whoever shows it. No torch.

What follows from how many rows went to a peer (`traffic`, `replies`, `remote_share`) is only ever replaced at the end
of a round: in smaller steps it would be a count of experts by the back door.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from pcmoe_node.exchange.base import Reach, Traffic

NOT_READY = ("LOADING", "WAITING", "CONNECTING", "FAILED")
PHASES = (*NOT_READY, "TRAINING", "EVALUATING", "CHECKPOINT", "COMMITTING", "DONE")
"""All that a node's phase can be."""
SPENT_ON = (
    "data",
    "forward",
    "backward",
    "exchange_wait",
    "host_compute",
    "optimizer",
    "vote",
    "evaluation",
    "checkpoint",
    "other",
)
"""What seconds are spent on; see `patience.Clock`."""
GPU_STATES = ("ok", "mig", "no_driver", "lost")


@dataclass(frozen=True, slots=True)
class Replies:
    """Answers of one peer to this node's requests."""

    seconds: float = 0.0
    """From sending each request to taking up its answer, summed."""
    count: int = 0

    def __add__(self, other: "Replies") -> "Replies":
        """Both together."""
        return Replies(self.seconds + other.seconds, self.count + other.count)


@dataclass(frozen=True, kw_only=True, slots=True)
class GpuFigures:
    """One CUDA device. What the driver doesn't tell is None."""

    state: str
    """`ok`; `mig`: a slice of a device; `no_driver`: NVML can't be asked; `lost`: it stopped answering."""
    torch_allocated: int
    """Bytes held by torch's tensors."""
    torch_reserved: int
    """Bytes held by torch's allocator, tensors included."""
    torch_peak: int
    """The most bytes that torch's tensors held at once."""
    memory_used: int | None = None
    """Bytes in use on the device (or slice) by anybody."""
    memory_total: int | None = None
    utilization: float | None = None
    """Share of the time in which a kernel ran, 0 to 1."""
    power: float | None = None
    """Watts."""
    temperature: float | None = None
    """Degrees Celsius."""
    ecc_corrected: int | None = None
    """Memory errors since the driver was loaded."""
    ecc_uncorrected: int | None = None

    def by_kind(self) -> dict[str, int]:
        """The bytes that there are, by their names in `/status`."""
        figures = {
            "allocated": self.torch_allocated,
            "reserved": self.torch_reserved,
            "used": self.memory_used,
            "total": self.memory_total,
        }
        return {kind: count for kind, count in figures.items() if count is not None}


def _nothing() -> None:
    """What is asked of nobody."""


def _nobody() -> int:
    """Nothing travels."""
    return 0


@dataclass(slots=True)
class Figures:
    """The figures of one node."""

    participant: str
    rounds: int
    steps: int
    peers: int
    peer_names: tuple[str, ...] = ()
    phase: str = "LOADING"
    view: int = 0
    committed: int = 0
    waiting_for: str | None = None
    """Who keeps the view from forming, for people; None while this node is in one."""
    views_lost: int = 0
    """Times that this node was in a view and had to leave it."""
    reconnections: int = 0
    """Connections within a view that took the place of one that broke."""
    round: int = 0
    step: int = 0
    steps_skipped: int = 0
    """By this process."""
    train_loss: float | None = None
    """NaN: the own numbers of the last own step overflowed."""
    held_out_loss: float | None = None
    """NaN: they overflowed in the last evaluation."""
    tokens: int = 0
    """Supervised tokens that the weights have been trained on: goes back with them."""
    tokens_trained: int = 0
    """By this process, those trained a second time after a loss included: only ever rises."""
    tokens_per_second: float | None = None
    seconds: Mapping[str, float] = field(default_factory=dict)
    """By what they were spent on, within views, by this process."""
    usual_round_seconds: float | None = None
    """Median of the last finished rounds of this process."""
    last_commit: float | None = None
    """When this process last heard of a commit (Unix seconds); after a resume, first when it started."""
    checkpoint_bytes: int | None = None
    checkpoint_seconds: float | None = None
    remote_share: float | None = None
    """Of the own rows of the last round, one per token and layer that is shared out: with a choice at a peer's."""
    peers_connected: int = 0
    tensor_bytes: int = 0
    in_flight_limit: int = 0
    traffic: Mapping[str, Traffic] = field(default_factory=dict)
    replies: Mapping[str, Replies] = field(default_factory=dict)
    error: str | None = None

    # Asked whenever somebody looks, from any thread; they answer at once.
    reach: Callable[[], Mapping[str, Reach]] = dict
    """How each peer of the view is reached; empty outside of one."""
    travelling: Callable[[], int] = _nobody
    """Own micro-batches under way."""
    refused: Callable[[], Mapping[str, int]] = dict
    """Connections turned down, by reason."""
    certificate_ends: Callable[[], float | None] = _nothing
    """When the own certificate expires, Unix seconds."""
    gpu: Callable[[], GpuFigures | None] = _nothing
    """None where the node doesn't train on CUDA."""

    def leave_view(self) -> None:
        """Nobody is reached and nothing travels; what was asked is let go of, with all the memory that it holds."""
        self.reach, self.travelling = dict, _nobody

    @property
    def ready(self) -> bool:
        """Whether this node is in a view."""
        return self.phase not in NOT_READY

"""What the coordinator shows of itself."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass

from prometheus_client.metrics_core import Metric

from pcmoe_node.exchange.tls.refusals import Refusals
from pcmoe_node.metrics import Families

STATES = ("FORMING", "RUNNING", "FAILED")
_COORDINATOR = Families("pcmoe_coordinator_")


@dataclass(frozen=True, slots=True)
class Shown:
    """Consortium and members; replaced as a whole."""

    state: str = "FORMING"
    view: int = 0
    round: int = 0
    reason: str = ""
    error: str | None = None
    members: tuple[Mapping[str, object], ...] = ()


class CoordinatorPage:
    """`/status` and `/metrics` of the coordinator: written by it, read by the server."""

    def __init__(self) -> None:
        self.shown = Shown()
        self.views = 0
        """Views that have formed in this process."""
        self.last_commit: float | None = None
        """When this process last learnt of a commit, Unix seconds; None: of none yet."""
        self.refusals = Refusals()
        self.certificate_ends: Callable[[], float | None] = lambda: None
        """When its certificate expires, Unix seconds."""

    def as_json(self) -> dict[str, object]:
        """The object that `/status` returns."""
        return asdict(self.shown)

    @property
    def phase(self) -> str:
        """The state of the consortium."""
        return self.shown.state

    @property
    def ready(self) -> bool:
        """It serves; whether a view stands is another matter."""
        return True

    def metrics(self) -> Iterator[Metric]:
        """Every metric of the coordinator, once."""
        shown = self.shown
        text = "1 for the state of the consortium, 0 for the others."
        yield _COORDINATOR.one_of("state", text, "state", STATES, shown.state)
        yield _COORDINATOR.gauge("view", "Number of the view that stands; 0: none.", shown.view)
        yield _COORDINATOR.counter("views", "Views that have formed.", self.views)
        yield _COORDINATOR.gauge("committed_round", "Newest committed round.", shown.round)
        text = "When this process last learnt of a commit, Unix seconds."
        yield _COORDINATOR.gauge("last_commit_timestamp_seconds", text, self.last_commit)
        connected = {str(member["name"]): float(bool(member["connected"])) for member in shown.members}
        text = "Whether a participant has a session."
        yield _COORDINATOR.gauges("connected", text, "participant", connected)
        yield from _COORDINATOR.door(self.refusals.counts(), self.certificate_ends())
        yield _COORDINATOR.build_info()

"""What one owner may ask of one host within one step. Static: it follows from the agreement alone.

Credits that a host hands out as memory comes and goes would be hold-and-wait: two owners, each half-way up
the layers, each waiting for what the other holds. Here nobody waits. An owner never has more micro-batches
open than agreed, so a host can reserve its worst case beforehand; more is a violation, not a reason to wait.
"""

from dataclasses import dataclass

from pcmoe_node.errors import ProtocolError
from pcmoe_node.protocol.effects import Phase, Request


@dataclass(frozen=True, slots=True)
class Allowance:
    """The agreed bounds of an owner at this host, equal for every owner."""

    micro_batches: int
    in_flight: int
    layers: frozenset[int]
    """Layers with experts that this host serves to others."""
    evaluation_batches: int | None = None
    """Micro-batches of an evaluation, or None: not bounded here."""

    @property
    def pairs(self) -> int:
        """FORWARD and BACKWARD pairs that a complete step consists of."""
        return self.micro_batches * len(self.layers)


class Quota:
    """The account of one owner in one step (and of its evaluation at that version)."""

    def __init__(self, owner: str, allowance: Allowance) -> None:
        """`owner` is the name that errors carry."""
        self._owner = owner
        self._allowed = allowance
        self._by_id: dict[int, Request] = {}
        self._by_place: dict[tuple[Phase, int, int], Request] = {}
        self._unserved: dict[int, Request] = {}
        self._open: dict[int, int] = {}
        self._evaluating = 0
        self._pairs_served = 0
        self._closed: str | None = None

    @property
    def open_micro_batches(self) -> int:
        """Micro-batches with a FORWARD whose BACKWARD is not answered yet: at most `in_flight`."""
        return len(self._open)

    @property
    def trained(self) -> bool:
        """Whether the owner sent anything of the step itself, evaluation aside."""
        return any(phase is not Phase.EVALUATE for phase, _, _ in self._by_place)

    @property
    def unserved(self) -> tuple[Request, ...]:
        """Requests admitted and not answered yet, in the order they came."""
        return tuple(self._unserved.values())

    def admit(self, request: Request) -> bool:
        """Account for a request. True: it is new; False: a copy of one seen. Else a `ProtocolError`."""
        earlier = self._by_id.get(request.request_id)
        if earlier == request:
            return False
        if earlier is not None:
            raise self._violation(request, f"request id {request.request_id} was already used by {earlier}")
        if self._closed is not None:
            raise self._violation(request, f"after its {self._closed} nothing more may be asked in that step")
        self._check_place(request)
        if request.phase is Phase.FORWARD:
            self._open_pair(request)
        elif request.phase is Phase.BACKWARD:
            self._check_backward(request)
        else:
            self._open_evaluation(request)
        self._by_id[request.request_id] = request
        self._by_place[request.phase, request.micro_batch, request.layer] = request
        self._unserved[request.request_id] = request
        return True

    def serve(self, request: Request) -> None:
        """Account for the answer to an admitted request."""
        if self._unserved.get(request.request_id) != request:
            raise RuntimeError(f"{request} of {self._owner} was not waiting for an answer")
        del self._unserved[request.request_id]
        if request.phase is Phase.EVALUATE:
            self._evaluating -= 1
        elif request.phase is Phase.BACKWARD:
            self._pairs_served += 1
            self._open[request.micro_batch] -= 1
            if not self._open[request.micro_batch]:
                del self._open[request.micro_batch]

    def close(self, by: str, complete: bool) -> None:
        """The owner said `by` (STEP_END or VOTE): all is answered and, if `complete`, nothing left out."""
        if self._unserved:
            raise ProtocolError(f"{self._owner} sent {by} before the answer to {self.unserved[0]}")
        if complete and self._pairs_served != self._allowed.pairs:
            raise ProtocolError(
                f"{self._owner} sent {by} after {self._pairs_served} of {self._allowed.pairs} pairs of "
                f"FORWARD and BACKWARD, one per micro-batch and layer; missing is {self._first_missing()}"
            )
        self._closed = self._closed or by

    def _check_place(self, request: Request) -> None:
        allowed = self._allowed
        evaluate = request.phase is Phase.EVALUATE
        limit = allowed.evaluation_batches if evaluate else allowed.micro_batches
        if request.micro_batch < 0 or (limit is not None and request.micro_batch >= limit):
            raise self._violation(request, f"micro-batches are numbered below {limit}")
        if request.layer not in allowed.layers:
            raise self._violation(request, f"this host serves layers {sorted(allowed.layers)}")
        earlier = self._by_place.get((request.phase, request.micro_batch, request.layer))
        if earlier is not None:
            raise self._violation(request, f"exactly one is allowed, and {earlier} was it")

    def _open_pair(self, request: Request) -> None:
        if request.micro_batch not in self._open and len(self._open) >= self._allowed.in_flight:
            raise self._violation(
                request,
                f"at most {self._allowed.in_flight} micro-batches in flight; open are {sorted(self._open)}",
            )
        self._open[request.micro_batch] = self._open.get(request.micro_batch, 0) + 1

    def _check_backward(self, request: Request) -> None:
        forward = self._by_place.get((Phase.FORWARD, request.micro_batch, request.layer))
        if forward is None or forward.request_id in self._unserved:
            raise self._violation(request, "its FORWARD has not been answered")
        if forward.rows != request.rows:
            raise self._violation(request, f"its FORWARD had {forward.rows} rows")

    def _open_evaluation(self, request: Request) -> None:
        if self._evaluating >= self._allowed.in_flight:
            raise self._violation(request, f"at most {self._allowed.in_flight} evaluation requests at once")
        self._evaluating += 1

    def _first_missing(self) -> str:
        for micro_batch in range(self._allowed.micro_batches):
            for layer in sorted(self._allowed.layers):
                for phase in (Phase.FORWARD, Phase.BACKWARD):
                    if (phase, micro_batch, layer) not in self._by_place:
                        return f"{phase.name} of micro-batch {micro_batch}, layer {layer}"
        return "none"

    def _violation(self, request: Request, rule: str) -> ProtocolError:
        return ProtocolError(f"{self._owner} sent {request}: {rule}")

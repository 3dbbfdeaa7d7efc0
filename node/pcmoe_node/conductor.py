"""The conductor: the one place where a node waits, and the order in which it works.

Whenever nothing must wait, it does, in this order: answer other owners; go on with an own micro-batch whose answers
are in; compute the own share of a micro-batch; add up gradients that nobody waits for, these first when too many of
them wait. Only then does it block, on the transport, with a deadline.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import count

from torch import Tensor

from pcmoe_node.errors import PeerLostError, ProtocolError
from pcmoe_node.exchange.base import Arrival, Header, Kind, Message, Transport
from pcmoe_node.exchange.layout import REPLIES, REPLY_TO, STEP_END, VOTE
from pcmoe_node.exchange.limits import Limits
from pcmoe_node.figures import Replies
from pcmoe_node.host import Host, Key
from pcmoe_node.lanes import Lane
from pcmoe_node.ledger import Ledger
from pcmoe_node.patience import Clock, Patience
from pcmoe_node.payloads import Codec
from pcmoe_node.protocol.effects import (
    BroadcastStepEnd,
    BroadcastVote,
    CastVote,
    Decide,
    Decision,
    Drop,
    Effect,
    Phase,
    Request,
    Serve,
)
from pcmoe_node.protocol.round import Farewell
from pcmoe_node.protocol.step import StepMachine
from pcmoe_node.tickets import OwnShare, Ticket

GLANCE_SECONDS = 1.0
"""How often a wait looks whether those it waits for are still there."""

PHASE = {Kind.FORWARD: Phase.FORWARD, Kind.BACKWARD: Phase.BACKWARD, Kind.EVALUATE: Phase.EVALUATE}
KIND = {phase: kind for kind, phase in PHASE.items()}


@dataclass(kw_only=True)
class Conductor:
    """Runs lanes, serves others, feeds the step machine and carries out what it says."""

    me: int
    names: tuple[str, ...]
    transport: Transport
    limits: Limits
    codec: Codec
    host: Host
    machine: StepMachine
    farewell: Farewell
    patience: Patience
    ordered: bool
    """Resume lanes in a fixed rotation, whatever the network does."""
    clock: Clock = field(default_factory=Clock)
    lane: Lane | None = None
    """The lane that has the turn."""
    decision: Decision | None = None
    vote_due: CastVote | None = None
    dropped: int = 0
    replies: dict[int, Replies] = field(default_factory=dict)
    """What each host has answered."""
    ledger: Ledger = field(default_factory=Ledger)
    """Where every message to a peer is counted."""
    _lanes: list[Lane | None] = field(default_factory=list)
    _turn: int = 0
    _serve: deque[Serve] = field(default_factory=deque)
    _own: deque[OwnShare] = field(default_factory=deque)
    _tickets: dict[tuple[int, int], tuple[Ticket, float]] = field(default_factory=dict)
    """By host and request, and when it was sent."""
    _waits_for: str = "exchange_wait"
    """What the clock calls a wait now."""
    _held: dict[Key, Message] = field(default_factory=dict)
    """Requests whose memory is needed until their backward."""
    _requests: Iterator[int] = field(default_factory=lambda: count(1))

    def begin_step(self, owners: Iterable[int], micro_batches: int) -> None:
        """Make the host ready for a step's requests, and give back what the step before left in memory."""
        while self._held:
            _release(self._held.popitem()[1])
        self.host.begin_step(owners, micro_batches)

    # ---- what the owner's side calls, on a lane's stack

    def ask(self, host: int, header: Header, ticket: Ticket, write: Callable[[Message], None]) -> None:
        """Send a request to a host; its answer goes to the ticket."""
        message = self._message(host, header, write)
        self._tickets[(host, header.request)] = (ticket, time.perf_counter())
        ticket.asked[host] = message.header
        self._send(host, message)

    def ask_own(self, share: OwnShare) -> None:
        """Queue the own share; its answer goes to the ticket."""
        share.ticket.asked[self.me] = Header(kind=KIND[share.phase])
        self._own.append(share)

    def next_request(self) -> int:
        """A request number nobody had yet."""
        return next(self._requests)

    # ---- running and waiting

    def run(self, works: Iterable[Callable[[], None]], in_flight: int, phase: str = "forward") -> None:
        """Run each of `works` on a lane, at most `in_flight` at a time, and serve others meanwhile.

        The clock counts a lane's own work under `phase` until it goes over to another.
        """
        queue = deque(enumerate(works))
        self._lanes, self._turn = [None] * min(in_flight, len(queue)), 0
        try:
            while queue or any(self._lanes):
                for place, lane in enumerate(self._lanes):
                    if lane is None and queue:
                        number, work = queue.popleft()
                        self._lanes[place] = Lane(work, f"micro-batch {number}", phase)
                self.work_once()
        except BaseException:
            for lane in filter(None, self._lanes):
                lane.cancel()
            raise
        finally:
            self._lanes = []

    def wait_until(self, ready: Callable[[], bool], phase: str = "exchange_wait") -> None:
        """Serve others until `ready()`; the clock counts under `phase` what is only waiting."""
        self._waits_for = phase
        try:
            while not ready():
                self.work_once()
        finally:
            self._waits_for = "exchange_wait"

    def travelling(self) -> int:
        """Micro-batches under way; any thread may ask."""
        return sum(lane is not None for lane in self._lanes)

    def enter(self, phase: str) -> None:
        """The lane that has the turn goes over to this."""
        assert self.lane is not None
        self.lane.phase = phase
        self.clock.turn(phase)

    def work_once(self) -> None:
        """Do one thing, the most urgent first; block only when there is nothing to do."""
        if self._take_arrivals(0.0):
            return  # what was waited for may have come
        if self.host.deferred.crowded:
            self._play_deferred()
        elif self._serve:
            with self.clock.phase("host_compute"):
                self._answer(self._serve.popleft())
        elif self._resume_a_lane():
            pass
        elif self._own:
            with self.clock.phase("host_compute"):
                self._answer_own(self._own.popleft())
        elif self._play_deferred():
            pass
        else:
            with self.clock.phase(self._waits_for):
                self._block()

    def carry_out(self, effects: Iterable[Effect]) -> None:
        """Do what the step machine says."""
        for effect in effects:
            match effect:
                case Serve():
                    self._serve.append(effect)
                case Drop():
                    self.dropped += 1
                    _release(effect.item)
                case BroadcastStepEnd():
                    payload = STEP_END.pack(effect.tokens, effect.ok)
                    self.broadcast(Kind.STEP_END, effect.step, payload)
                case BroadcastVote():
                    self.broadcast(Kind.VOTE, effect.step, VOTE.pack(effect.squared_norm, effect.finite))
                case CastVote():
                    self.vote_due = effect
                case Decide():
                    self.decision = effect.outcome

    def broadcast(self, kind: Kind, step: int, payload: bytes = b"") -> None:
        """Send a control message to every other participant."""
        for peer in range(len(self.names)):
            if peer != self.me:
                header = Header(kind=kind, step=step, payload_length=len(payload))
                buffer = self.transport.allocate(len(payload)) if payload else None
                if buffer is not None:
                    buffer.view[: len(payload)] = payload
                self._send(peer, Message(header, buffer))

    # ---- lanes

    def _resume_a_lane(self) -> bool:
        """Give the turn to the next lane in rotation that can go on; in `ordered` mode only to the very next."""
        places = len(self._lanes)
        for step in range(places):
            place = (self._turn + step) % places
            lane = self._lanes[place]
            if lane is None:
                continue
            if lane.ready:
                self._turn = (place + 1) % places
                self.lane = lane
                self.transport.progress(lane.phase)
                with self.clock.phase(lane.phase):
                    lane.resume()
                self.lane = None
                if lane.finished:
                    self._lanes[place] = None
                return True
            if self.ordered:
                return False
        return False

    def _play_deferred(self) -> bool:
        with self.clock.phase("host_compute"):
            return self.host.deferred.play_one()

    # ---- arrivals

    def _block(self) -> None:
        """Wait for an arrival, as long as whoever is waited for is there and makes progress."""
        start, waited_for = time.monotonic(), self._waited_for()
        self.transport.waiting(waited_for)
        while not self._take_arrivals(GLANCE_SECONDS):
            for peer, pulse in self.transport.pulses().items():
                if pulse.left and not self.farewell.said_done(peer):
                    raise PeerLostError(f"{self.names[peer]} said goodbye in the middle of the run")
            self.patience.check(self.transport, waited_for, start, f"step {self.machine.version}")
        self.transport.waiting(frozenset())

    def _waited_for(self) -> frozenset[int]:
        """Participants that keep this node from going on; empty: it waits for the coordinator."""
        waits = {peer for peer, _ in self.machine.waiting_for()} | {host for host, _ in self._tickets}
        if self.farewell.said_done(self.me):
            waits |= set(self.farewell.waiting_for)
        return frozenset(waits - {self.me})

    def _take_arrivals(self, timeout: float) -> bool:
        """Take what has arrived, waiting up to `timeout` seconds for the first."""
        arrival = self.transport.receive(timeout)
        if arrival is None:
            return False
        while arrival is not None:
            self._take(arrival)
            arrival = self.transport.receive(0.0)
        return True

    def _take(self, arrival: Arrival) -> None:
        with self.clock.phase("other"):  # taking a message apart is no waiting
            self._take_up(arrival)

    def _take_up(self, arrival: Arrival) -> None:
        if arrival.failure is not None:
            needed = arrival.peer == self.me or not self.farewell.said_done(arrival.peer)
            if isinstance(arrival.failure, PeerLostError) and not needed:
                return
            raise arrival.failure
        message = arrival.message
        if message is None:
            return  # somebody wants us to look around
        header = message.header
        if header.kind in PHASE:
            request = Request(
                PHASE[header.kind], header.step, header.micro_batch, header.layer, header.request, header.rows
            )
            self.carry_out(self.machine.request(arrival.peer, request, message))
        elif header.kind in REPLIES:
            self._take_answer(arrival.peer, message)
        else:
            self._take_control(arrival.peer, message)

    def _take_control(self, peer: int, message: Message) -> None:
        header = message.header
        content = b"" if message.payload is None else bytes(message.payload.view[: header.payload_length])
        _release(message)
        match header.kind:
            case Kind.STEP_END:
                tokens, ok = STEP_END.unpack(content)
                self.carry_out(self.machine.step_end(peer, header.step, tokens, bool(ok)))
            case Kind.VOTE:
                squared_norm, finite = VOTE.unpack(content)
                self.carry_out(self.machine.vote(peer, header.step, squared_norm, bool(finite)))
            case Kind.DONE:
                if header.step != self.limits.steps:
                    rule = f"must be the last, {self.limits.steps}"
                    raise ProtocolError(f"{self.names[peer]} sent DONE of step {header.step}: {rule}")
                self.farewell.peer_done(peer)
            case _:
                raise ProtocolError(f"{self.names[peer]} sent {header.kind.name}: it has no place in a run")

    def _take_answer(self, host: int, message: Message) -> None:
        header, peer = message.header, self.names[host]
        found = self._tickets.pop((host, header.request), None)
        if found is None:
            raise ProtocolError(f"{peer} answered request {header.request}, which is not open")
        ticket, sent = found
        asked = ticket.asked.pop(host)
        if (REPLY_TO[asked.kind], asked.rows, asked.slots) != (header.kind, header.rows, header.slots):
            raise ProtocolError(
                f"{peer} answered {asked.kind.name} of {asked.rows} rows and {asked.slots} slots "
                f"with {header.kind.name} of {header.rows} and {header.slots}"
            )
        what = "returned gradients" if header.kind is Kind.BACKWARD_REPLY else "outputs"
        ticket.rows[host] = self.codec.read_rows(message, peer, what)
        if header.kind is Kind.BACKWARD_REPLY:
            ticket.dweights[host] = self.codec.read_weight_gradients(message, peer)
        ticket.messages.append(message)
        self.replies[host] = self.replies.get(host, Replies()) + Replies(time.perf_counter() - sent, 1)

    # ---- the host's work

    def _answer(self, serve: Serve) -> None:
        """Compute one request of another owner and send the answer."""
        message, request, peer = serve.item, serve.request, serve.peer
        assert isinstance(message, Message)
        key, name = (peer, request.micro_batch, request.layer), self.names[peer]
        dweights_S: Tensor | None = None
        if request.phase is Phase.BACKWARD:
            dy_RH = self.codec.read_rows(message, name, "gradients")
            rows_RH, dweights_S = self.host.backward(key, dy_RH)
            _release(self._held.pop(key, None))
            needed = False
        else:
            hosted = int(self.host.shards[request.layer].module.num_experts)  # type: ignore[arg-type]
            batch = self.codec.read_batch(message, name, hosted)
            rows_RH, needed = self.host.forward(request.phase, key, batch)

        def write(answer: Message) -> None:
            assert answer.payload is not None
            self.codec.write_rows(answer.payload, answer.header, rows_RH)
            if dweights_S is not None:
                self.codec.write_weight_gradients(answer.payload, answer.header, dweights_S)

        self.transport.progress("host")
        self.carry_out(self.machine.served(peer, request))
        kind = REPLY_TO[message.header.kind]
        self._send(peer, self._message(self.me, replace(message.header, kind=kind), write))
        if needed:
            self._held[key] = message
        else:
            _release(message)

    def _answer_own(self, share: OwnShare) -> None:
        key = (self.me, share.micro_batch, share.layer)
        if share.phase is Phase.BACKWARD:
            assert share.dy_RH is not None
            share.ticket.rows[self.me], share.ticket.dweights[self.me] = self.host.backward(key, share.dy_RH)
        else:
            assert share.batch is not None
            share.ticket.rows[self.me], _ = self.host.forward(share.phase, key, share.batch)
        del share.ticket.asked[self.me]

    def _send(self, peer: int, message: Message) -> None:
        self.ledger.sent(peer, message.header)
        self.transport.send(peer, message)

    def _message(self, host: int, header: Header, write: Callable[[Message], None]) -> Message:
        """A message with its payload written and the gaps zeroed; the transport zeroes the padding."""
        header = self.limits.sized(header, host)
        message = Message(header, self.transport.allocate(header.payload_length + header.pad_length))
        assert message.payload is not None
        write(message)
        self.codec.clear_gaps(message.payload, header)
        return message


def _release(item: object) -> None:
    if isinstance(item, Message) and item.payload is not None:
        item.payload.release()

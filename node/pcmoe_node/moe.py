"""Dispatch and combine: what happens when a model asks for experts that somebody else holds.

    T tokens of a micro-batch   K experts per token   H hidden size   R rows of one message   S slots of one message

`experts_forward` is registered with transformers under the name `pcmoe`; about seventy families call it. It finds
its node through the module, so that any number of nodes can live in one process.

Follow a token: `experts_forward` → `RemoteExperts.forward` → `dispatch` (one message per host) → … the host's
`Shard.forward` … → `combine`. Backward: `Call.backward` → hosts → `scatter_gradients`.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS, grouped_mm_experts_forward

from pcmoe_node.conductor import KIND, Conductor
from pcmoe_node.cut import ExpertsCut, MicroBatch
from pcmoe_node.errors import ProtocolError
from pcmoe_node.exchange.base import Header, Message, WireDtype
from pcmoe_node.experts import Batch
from pcmoe_node.protocol.effects import Phase
from pcmoe_node.routing import (
    ExpertMap,
    Route,
    combine,
    gather_gradients,
    integrity_gap,
    routes,
    scatter_gradients,
    secret_order,
)
from pcmoe_node.tickets import OwnShare, Ticket

INTEGRITY_TOLERANCE = {WireDtype.FLOAT32: 1e-3, WireDtype.BFLOAT16: 0.1}
"""Largest relative gap between Σ w·dw and ⟨dy, y⟩ of a row that rounding explains, by the coarsest dtype on the way."""


def experts_forward(module: nn.Module, x_TH: Tensor, ids_TK: Tensor, weights_TK: Tensor) -> Tensor:
    """transformers' experts interface: here for layers whose experts are spread, and for local ones."""
    remote = getattr(module, "pcmoe", None)
    if remote is None:
        y_TH: Tensor = grouped_mm_experts_forward(module, x_TH, ids_TK, weights_TK)
        return y_TH
    assert isinstance(remote, RemoteExperts)
    return remote.forward(x_TH, ids_TK, weights_TK)


ALL_EXPERTS_FUNCTIONS.register("pcmoe", experts_forward)


@dataclass(slots=True)
class Share:
    """Own rows, one per token and shared-out layer, of training and evaluation."""

    rows: int = 0
    remote: int = 0
    """Those of which at least one slot went to a peer."""

    @property
    def ratio(self) -> float | None:
        """Remote ones among all; None where there was no row."""
        return self.remote / self.rows if self.rows else None


@dataclass(kw_only=True)
class Owner:
    """The owner's side of the exchange for all layers."""

    secret: bytes
    wire_dtype: WireDtype
    check_integrity: bool = True
    conductor: Conductor = field(init=False)
    """Of the view that the node is in."""
    running: dict[int, MicroBatch] = field(default_factory=dict)
    """The micro-batch of each lane."""
    share: Share = field(default_factory=Share)
    """Since somebody last began anew."""

    @property
    def tolerance(self) -> float:
        """Gap of the integrity check that rounding explains; a peer's compute dtype is the agreement's, like ours."""
        rounded = self.conductor.codec.dtype is torch.bfloat16
        return INTEGRITY_TOLERANCE[WireDtype.BFLOAT16 if rounded else self.wire_dtype]

    def current(self) -> MicroBatch:
        """The micro-batch whose lane has the turn."""
        return self.running[id(self.conductor.lane)]

    def wait(self, ticket: Ticket) -> None:
        """Give the turn back until every host asked has answered."""
        if not ticket.ready:
            lane = self.conductor.lane
            assert lane is not None
            lane.wait(ticket)


class RemoteExperts:
    """The experts of one layer, wherever they are; hangs on the family's experts module as `pcmoe`."""

    def __init__(self, owner: Owner, layer: int, hosts: tuple[int, ...]) -> None:
        self.owner = owner
        self.layer = layer
        self.map = ExpertMap.of(hosts)
        self.hosts = tuple(sorted(set(hosts)))
        """Participants that host at least one expert of this layer."""

    def forward(self, x_TH: Tensor, ids_TK: Tensor, weights_TK: Tensor) -> Tensor:
        """The experts' weighted sum [T, H]; leaves a cut behind for the backward."""
        micro_batch = self.owner.current()
        if micro_batch.phase is Phase.EVALUATE:
            return self.dispatch(micro_batch, x_TH, ids_TK, weights_TK).y_TH
        cut = micro_batch.layer
        if cut is micro_batch.replaying:
            assert cut.experts is not None
            call = cut.experts.call
        else:
            call = self.dispatch(micro_batch, x_TH.detach(), ids_TK, weights_TK.detach())
        y_TH = call.y_TH.detach().requires_grad_()
        cut.experts = ExpertsCut(call, x_TH, weights_TK, y_TH)
        # Neither leaf nor view: families add a shared expert in place.
        return y_TH.clone()

    def dispatch(self, micro_batch: MicroBatch, x_TH: Tensor, ids_TK: Tensor, weights_TK: Tensor) -> "Call":
        """Send each host its rows, wait, and combine what comes back."""
        owner, conductor = self.owner, self.owner.conductor
        with torch.no_grad():
            if micro_batch.ok:
                finite = bool(torch.isfinite(weights_TK).all())
                micro_batch.ok = finite and conductor.codec.within_bounds(x_TH)
            if not micro_batch.ok:
                x_TH, weights_TK = torch.zeros_like(x_TH), torch.zeros_like(weights_TK)
            numbers = (micro_batch.step, micro_batch.number, self.layer, micro_batch.phase)
            order_T = secret_order(owner.secret, "rows", numbers, x_TH.shape[0])
            all_routes = routes(ids_TK, weights_TK, self.map, order_T, len(conductor.names))
            rows, top_k = ids_TK.shape
            owner.share.rows += rows
            owner.share.remote += rows - int((all_routes[conductor.me].counts_R == top_k).sum())
            call = Call(self, micro_batch, all_routes, x_TH, top_k)
            call.forward()
            return call


class Call:
    """One layer's experts asked for one micro-batch: routes and, until backward, the rows that came back."""

    def __init__(
        self, experts: RemoteExperts, micro_batch: MicroBatch, routes_: list[Route], x_TH: Tensor, top_k: int
    ) -> None:
        self.experts = experts
        self.micro_batch = micro_batch
        self.routes = [routes_[host] for host in experts.hosts]
        self.top_k = top_k
        self.y_TH = x_TH
        """First the input, and once `forward` is done the combined output."""
        self._ticket: Ticket | None = None

    def forward(self) -> None:
        """Dispatch, wait, combine."""
        x_TH, ticket = self.y_TH, Ticket(asked={})
        conductor, codec = self.experts.owner.conductor, self.experts.owner.conductor.codec
        phase, exposed = self.micro_batch.phase, self.micro_batch.shown
        for host, route in self._hosts():
            if host == conductor.me:
                batch = Batch(
                    x_TH.index_select(0, route.rows_R), route.counts_R, route.experts_S, route.weights_S
                )
                conductor.ask_own(self._own(ticket, phase, batch, None))
                continue

            def write(message: Message, route: Route = route) -> None:
                assert message.payload is not None
                codec.gather_rows(message.payload, message.header, x_TH, route.rows_R)
                codec.write_choices(message.payload, message.header, route)

            if exposed is not None:
                exposed.states(host, route.rows_R)
            conductor.ask(host, self._header(phase, route), ticket, write)
        self.experts.owner.wait(ticket)
        rows = [ticket.rows[host] for host in self.experts.hosts]
        self.y_TH = combine(self.routes, rows, x_TH)
        if phase is Phase.EVALUATE or not self.experts.owner.check_integrity:
            ticket.release()
        else:
            self._ticket = ticket  # the integrity check of the backward needs the rows

    def backward(self, dy_TH: Tensor) -> tuple[Tensor, Tensor]:
        """Send each host its gradient rows, wait, check, and add up: (dx [T, H], dweights [T, K])."""
        conductor, codec = self.experts.owner.conductor, self.experts.owner.conductor.codec
        sent: dict[int, Tensor] = {}
        ticket = Ticket(asked={})
        if self.micro_batch.ok and not codec.within_bounds(dy_TH):
            self.micro_batch.ok = False
            dy_TH = torch.zeros_like(dy_TH)
        exposed = self.micro_batch.shown
        for host, route in self._hosts():
            dy_RH = sent[host] = gather_gradients(route, dy_TH)
            if host == conductor.me:
                conductor.ask_own(self._own(ticket, Phase.BACKWARD, None, dy_RH))
                continue

            def write(message: Message, dy_RH: Tensor = dy_RH) -> None:
                assert message.payload is not None
                codec.write_rows(message.payload, message.header, dy_RH)

            if exposed is not None:
                exposed.gradients(host, route.rows_R)
            conductor.ask(host, self._header(Phase.BACKWARD, route), ticket, write)
        self.experts.owner.wait(ticket)
        self._check_integrity(sent, ticket)
        dx = [ticket.rows[host] for host in self.experts.hosts]
        dweights = [ticket.dweights[host] for host in self.experts.hosts]
        result = scatter_gradients(self.routes, dx, dweights, self.y_TH, self.top_k)
        ticket.release()
        return result

    def _check_integrity(self, sent: dict[int, Tensor], answered: Ticket) -> None:
        if self._ticket is None:
            return
        owner = self.experts.owner
        for host, route in self._hosts():
            if host == owner.conductor.me:
                continue
            gradients = (sent[host], answered.dweights[host])
            gap = integrity_gap(route, gradients, self._ticket.rows[host])
            if not gap <= owner.tolerance:  # true for NaN too
                raise ProtocolError(
                    f"{owner.conductor.names[host]}: outputs and gradients of layer {self.experts.layer}, step "
                    f"{self.micro_batch.step}, don't fit together: relative gap {gap:.1e}, allowed "
                    f"{owner.tolerance:.0e}"
                )
        self._ticket.release()
        self._ticket = None

    def _hosts(self) -> list[tuple[int, Route]]:
        return list(zip(self.experts.hosts, self.routes, strict=True))

    def _own(self, ticket: Ticket, phase: Phase, batch: Batch | None, dy_RH: Tensor | None) -> OwnShare:
        return OwnShare(ticket, phase, self.micro_batch.number, self.experts.layer, batch, dy_RH)

    def _header(self, phase: Phase, route: Route) -> Header:
        return Header(
            kind=KIND[phase],
            step=self.micro_batch.step,
            micro_batch=self.micro_batch.number,
            layer=self.experts.layer,
            request=self.experts.owner.conductor.next_request(),
            dtype=self.experts.owner.wire_dtype,
            rows=route.rows_R.shape[0],
            slots=route.slots_S.shape[0],
        )

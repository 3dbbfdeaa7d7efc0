"""Tensors into message buffers and out again, with every check on what arrives.

    R rows of a message   S slots   H hidden size

`exchange/layout.py` says where each section stands. Headers were checked against the agreement's limits before
anything was allocated; what is checked here is what only the values can tell: finite, in bounds, in range.
"""

import torch
from torch import Tensor

from pcmoe_node.bounds import within
from pcmoe_node.errors import ProtocolError
from pcmoe_node.exchange.base import Buffer, Header, Message, WireDtype
from pcmoe_node.exchange.layout import gaps, sections
from pcmoe_node.experts import Batch
from pcmoe_node.routing import Route

TORCH_DTYPE = {WireDtype.FLOAT32: torch.float32, WireDtype.BFLOAT16: torch.bfloat16}


class Codec:
    """Writes and reads tensor payloads for one model: hidden size, device, dtype and bound are fixed."""

    def __init__(self, hidden_size: int, dtype: torch.dtype, device: torch.device, max_abs: float) -> None:
        self.hidden_size = hidden_size
        self.dtype = dtype
        self.device = device
        self.max_abs = max_abs

    def clear_gaps(self, buffer: Buffer, header: Header) -> None:
        """Zero the bytes between sections: a buffer may hold somebody else's rows from before."""
        for start, end in gaps(header, self.hidden_size):
            buffer.view[start:end] = bytes(end - start)

    def write_rows(self, buffer: Buffer, header: Header, rows_RH: Tensor) -> None:
        """Put the rows at the payload's start, cast to the wire's dtype."""
        if header.rows:
            self._rows(buffer, header).copy_(rows_RH)

    def gather_rows(self, buffer: Buffer, header: Header, x_TH: Tensor, rows_R: Tensor) -> None:
        """Put the chosen rows of `x_TH` at the payload's start; no copy in between where dtypes agree on the CPU."""
        if not header.rows:
            return
        target = self._rows(buffer, header)
        if x_TH.dtype == target.dtype and x_TH.device == target.device:
            torch.index_select(x_TH, 0, rows_R, out=target)
        else:
            target.copy_(x_TH.index_select(0, rows_R))

    def write_choices(self, buffer: Buffer, header: Header, route: Route) -> None:
        """Put weights, the host's expert numbers and slots per row behind the rows."""
        if not header.slots:
            return
        at = sections(header, self.hidden_size)
        _view(buffer, torch.float32, header.slots, at.weights).copy_(route.weights_S)
        _view(buffer, torch.uint16, header.slots, at.experts).copy_(route.experts_S)
        _view(buffer, torch.uint8, header.rows, at.counts).copy_(route.counts_R)

    def write_weight_gradients(self, buffer: Buffer, header: Header, dweights_S: Tensor) -> None:
        """Put the weights' gradients behind the rows."""
        if header.slots:
            at = sections(header, self.hidden_size)
            _view(buffer, torch.float32, header.slots, at.weights).copy_(dweights_S)

    def read_rows(self, message: Message, peer: str, what: str) -> Tensor:
        """The rows [R, H] in the model's dtype, checked. Shares the buffer's memory where dtypes agree on the CPU."""
        header = message.header
        if not header.rows:
            return torch.zeros(0, self.hidden_size, dtype=self.dtype, device=self.device)
        assert message.payload is not None
        rows_RH = self._rows(message.payload, header)
        self._check(rows_RH, header, peer, what)
        return rows_RH.to(device=self.device, dtype=self.dtype)

    def read_weight_gradients(self, message: Message, peer: str) -> Tensor:
        """The weights' gradients [S], float32, checked."""
        header = message.header
        if not header.slots:
            return torch.zeros(0, device=self.device)
        assert message.payload is not None
        at = sections(header, self.hidden_size)
        dweights_S = _view(message.payload, torch.float32, header.slots, at.weights)
        self._check(dweights_S, header, peer, "gradients of weights", bounded=False)
        return dweights_S.to(self.device)

    def read_choices(self, message: Message, peer: str, hosted: int) -> tuple[Tensor, Tensor, Tensor]:
        """(slots per row [R], experts [S], weights [S]), checked against the number of experts hosted here."""
        header = message.header
        if not header.slots:
            return torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64), torch.zeros(0)
        assert message.payload is not None
        at = sections(header, self.hidden_size)
        weights_S = _view(message.payload, torch.float32, header.slots, at.weights)
        experts_S = _view(message.payload, torch.uint16, header.slots, at.experts).to(torch.int64)
        counts_R = _view(message.payload, torch.uint8, header.rows, at.counts).to(torch.int64)
        where = _where(header, peer)
        if int(experts_S.max()) >= hosted:
            raise ProtocolError(
                f"{where}: expert {int(experts_S.max())} is out of range, {hosted} are hosted here"
            )
        if int(counts_R.min()) < 1 or int(counts_R.sum()) != header.slots:
            raise ProtocolError(f"{where}: slots per row must be at least 1 and sum to {header.slots}")
        self._check(weights_S, header, peer, "weights", bounded=False)
        return counts_R, experts_S, weights_S.clone()

    def read_batch(self, message: Message, peer: str, hosted: int) -> Batch:
        """A FORWARD or EVALUATE request as a host computes it."""
        counts_R, experts_S, weights_S = self.read_choices(message, peer, hosted)
        x_RH = self.read_rows(message, peer, "hidden states")
        return Batch(x_RH, counts_R, experts_S, weights_S.to(self.device))

    def within_bounds(self, x_TH: Tensor) -> bool:
        """Finite and within the agreed bound: whether our own values may be sent."""
        return within(x_TH, self.max_abs)

    def _rows(self, buffer: Buffer, header: Header) -> Tensor:
        flat = _view(buffer, TORCH_DTYPE[header.dtype], header.rows * self.hidden_size, 0)
        return flat.view(header.rows, self.hidden_size)

    def _check(self, values: Tensor, header: Header, peer: str, what: str, *, bounded: bool = True) -> None:
        limit = self.max_abs if bounded else torch.finfo(torch.float32).max
        if not within(values, limit):
            rule = f"finite and within ±{self.max_abs:g}" if bounded else "finite"
            raise ProtocolError(f"{_where(header, peer)}: {what} must be {rule}")


def _view(buffer: Buffer, dtype: torch.dtype, count: int, offset: int) -> Tensor:
    return torch.frombuffer(buffer.view, dtype=dtype, count=count, offset=offset)


def _where(header: Header, peer: str) -> str:
    return f"{header.kind.name} from {peer}, step {header.step}, micro-batch {header.micro_batch}, layer {header.layer}"

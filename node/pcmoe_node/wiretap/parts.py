"""What every byte of a frame is. Sections are walked through from the front; whatever no rule explains is residue."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pcmoe_node.coordination.words import read_notice, read_report
from pcmoe_node.errors import NodeError
from pcmoe_node.exchange import wire
from pcmoe_node.exchange.base import Header, Kind, WireDtype
from pcmoe_node.exchange.layout import STEP_END, VOTE

ALIGNED = 16
TORCH = {WireDtype.FLOAT32: torch.float32, WireDtype.BFLOAT16: torch.bfloat16}
ROWS_ARE = {
    Kind.FORWARD: "hiddenStates",
    Kind.EVALUATE: "hiddenStates",
    Kind.FORWARD_REPLY: "outputs",
    Kind.EVALUATE_REPLY: "outputs",
    Kind.BACKWARD: "gradients",
    Kind.BACKWARD_REPLY: "returnedGradients",
}
CHOICES = (Kind.FORWARD, Kind.EVALUATE)
SUM_TOLERANCE = 1e-3
"""Weights of a row are divided by their sum: how far from 1 rounding may leave it."""
TEXTS: dict[Kind, Callable[[bytes], object]] = {
    Kind.HELLO: wire.decode_hello,
    Kind.WELCOME: wire.decode_welcome,
    Kind.REFUSED: wire.decode_refused,
    Kind.DIFFERS: wire.decode_differs,
    Kind.REPORT: lambda data: read_report(data, "a node"),
    Kind.NOTICE: read_notice,
}
"""Payloads that are JSON: read as strictly as the one who gets them reads them."""


@dataclass(slots=True)
class Parts:
    """Bytes of one frame by what they are."""

    bytes: Counter[str] = field(default_factory=Counter)
    residue: int = 0
    faults: list[str] = field(default_factory=list)
    """What is wrong, by rule; never a value of a tensor."""

    def blame(self, count: int, why: str) -> None:
        """These bytes are not explained."""
        self.residue += count
        self.faults.append(why)


def parts_of(header: Header, payload: bytes, hidden_size: int, hosted: int) -> Parts:
    """`hosted`: experts of the layer at the host that the message is about."""
    parts = Parts()
    parts.bytes["header"] = wire.HEADER_SIZE
    content, padding = payload[: header.payload_length], payload[header.payload_length :]
    if header.kind in ROWS_ARE:
        _Walk(header, content, parts, hidden_size, hosted).tensors()
    else:
        _control(header, content, parts)
    _zeros(padding, "padding", parts)
    return parts


def _zeros(data: bytes, name: str, parts: Parts) -> None:
    """Bytes that say nothing: all of them must be zero."""
    zeros = data.count(0)
    if zeros:
        parts.bytes[name] += zeros
    if zeros != len(data):
        parts.blame(len(data) - zeros, f"{name} is not zero")


def _control(header: Header, content: bytes, parts: Parts) -> None:
    fault = _fault_of(header.kind, content)
    if header.rows or header.slots or header.pad_length or header.dtype is not WireDtype.NONE:
        fault = "a message without tensors has rows, slots, padding or a dtype"
    if fault:
        parts.blame(len(content), fault)
    elif content:
        parts.bytes["text" if header.kind in TEXTS else "control"] = len(content)


def _fault_of(kind: Kind, content: bytes) -> str:
    """What is wrong with the payload of a message without tensors; "": nothing."""
    if kind in TEXTS:
        try:
            TEXTS[kind](content)
        except NodeError:
            return "its text can't be read"
        return ""
    expected = {Kind.STEP_END: STEP_END.size, Kind.VOTE: VOTE.size, Kind.BEAT: wire.BEAT.size}
    if len(content) != (wire.ABORT.size if kind is Kind.ABORT else expected.get(kind, 0)):
        return "it has another length"
    if kind in (Kind.STEP_END, Kind.VOTE):
        return "" if content[-1] in (0, 1) else "its flag is neither 0 nor 1"
    if kind is Kind.BEAT:
        phase = wire.BEAT.unpack(content)[1].rstrip(b"\0")
        return "" if phase.isascii() and b"\0" not in phase else "its phase is not a word"
    if kind is Kind.ABORT:
        _, _, length, reason = wire.ABORT.unpack(content)
        return "there is something behind its reason" if any(reason[length:]) else ""
    return ""


class _Walk:
    """Through the sections of a tensor message, from the front."""

    def __init__(self, header: Header, content: bytes, parts: Parts, hidden_size: int, hosted: int) -> None:
        self._header = header
        self._content = content
        self._parts = parts
        self._hidden_size = hidden_size
        self._hosted = hosted
        self._at = 0

    def tensors(self) -> None:
        """All sections; what is left behind them is residue."""
        header = self._header
        if header.dtype not in TORCH:
            self._parts.blame(len(self._content), "rows have no dtype")
            return
        count = header.rows * self._hidden_size
        self._floats(ROWS_ARE[header.kind], count, TORCH[header.dtype])
        if header.kind in CHOICES:
            weights_S = self._floats("weights", header.slots, torch.float32)
            experts_S = self._section("experts", header.slots, torch.uint16)
            counts_R = self._section("counts", header.rows, torch.uint8)
            if weights_S is not None and experts_S is not None and counts_R is not None:
                self._choices(weights_S, experts_S.to(torch.int64), counts_R.to(torch.int64))
        elif header.kind is Kind.BACKWARD_REPLY:
            self._floats("weightGradients", header.slots, torch.float32)
        if self._at < len(self._content):
            self._parts.blame(len(self._content) - self._at, "there are bytes behind the last section")

    def _section(self, name: str, count: int, dtype: torch.dtype) -> Tensor | None:
        """The next section and the zeros up to the next one; None where there are none, or too few bytes."""
        length = count * dtype.itemsize
        data = self._content[self._at : self._at + length]
        if len(data) < length:
            self._parts.blame(len(data), f"{name}: its end is missing")
            self._at = len(self._content)
            return None
        self._at += length
        self._parts.bytes[name] += length
        gap = self._content[self._at : self._at + -length % ALIGNED]
        self._at += len(gap)
        _zeros(gap, "gaps", self._parts)
        return torch.frombuffer(bytearray(data), dtype=dtype) if length else None

    def _floats(self, name: str, count: int, dtype: torch.dtype) -> Tensor | None:
        values = self._section(name, count, dtype)
        if values is not None and not bool(torch.isfinite(values).all()):
            self._refuse(name, f"{name} are not finite")
        return values

    def _choices(self, weights_S: Tensor, experts_S: Tensor, counts_R: Tensor) -> None:
        if int(experts_S.max()) >= self._hosted:
            self._refuse("experts", "an expert is not hosted there")
        if int(counts_R.min()) < 1 or int(counts_R.sum()) != weights_S.shape[0]:
            self._refuse("counts", "slots per row don't add up")
            return
        row_of_S = torch.arange(counts_R.shape[0]).repeat_interleave(counts_R)
        sums_R = torch.zeros(counts_R.shape[0]).index_add_(0, row_of_S, weights_S)
        if not bool((((sums_R - 1).abs() <= SUM_TOLERANCE) | (sums_R.abs() <= SUM_TOLERANCE)).all()):
            self._refuse("weights", "weights of a row don't sum to 1: they tell the gate's mass")

    def _refuse(self, name: str, why: str) -> None:
        """A section that is not what it must be explains nothing."""
        self._parts.blame(self._parts.bytes.pop(name, 0), why)

"""What leaves holds nothing but what is meant, and what arrives is checked value by value."""

import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.training.small import (
    COMMON,
    architecture,
    no_thread_left,
    outcomes,
    run_steps,
    small_configs,
)
from torch import Tensor

from pcmoe_node.errors import ProtocolError
from pcmoe_node.exchange.base import Buffer, Header, Kind, Message, WireDtype
from pcmoe_node.exchange.buffers import BufferPool
from pcmoe_node.exchange.layout import gaps, sections
from pcmoe_node.payloads import TORCH_DTYPE, Codec
from pcmoe_node.routing import ExpertMap, Route, routes

HIDDEN, ROWS = 12, 7  # neither is a multiple of what sections are aligned to
BOUND = 10_000.0
CPU = torch.device("cpu")
BOTH = pytest.mark.parametrize("wire", [WireDtype.FLOAT32, WireDtype.BFLOAT16], ids=["fp32", "bf16"])


@pytest.fixture
def codec() -> Codec:
    return Codec(HIDDEN, torch.float32, CPU, BOUND)


def make_route(rows: int = ROWS) -> Route:
    """Rows with two slots each at one host of five experts; the first two share an expert."""
    ids_TK = torch.stack([torch.arange(rows) % 4, torch.full((rows,), 4)], dim=1)
    weights_TK = torch.rand(rows, 2, generator=torch.Generator().manual_seed(1)) + 0.1
    (route,) = routes(ids_TK, weights_TK, ExpertMap.of((0,) * 5), torch.arange(rows).flip(0), 1)
    return route


def make_message(kind: Kind, wire: WireDtype, rows: int, slots: int, fill: int = 0xAB) -> Message:
    """A message whose memory is full of something else's bytes."""
    header = Header(kind=kind, step=3, micro_batch=1, layer=2, request=9, dtype=wire, rows=rows, slots=slots)
    header = replace(header, payload_length=sections(header, HIDDEN).length, pad_length=64)
    return Message(header, Buffer(bytearray([fill]) * (header.payload_length + 64)))


def forward_message(codec: Codec, wire: WireDtype, rows: int = ROWS, kind: Kind = Kind.FORWARD) -> Message:
    """A request as an owner writes it."""
    route = make_route(rows)
    message = make_message(kind, wire, rows, 2 * rows)
    assert message.payload is not None
    x_TH = torch.randn(rows, HIDDEN, generator=torch.Generator().manual_seed(2))
    codec.gather_rows(message.payload, message.header, x_TH, route.rows_R)
    codec.write_choices(message.payload, message.header, route)
    codec.clear_gaps(message.payload, message.header)
    return message


@BOTH
@pytest.mark.parametrize("rows", [0, 1, ROWS])
def test_a_request_arrives_as_it_was_written(codec: Codec, wire: WireDtype, rows: int) -> None:
    route, message = make_route(rows), forward_message(codec, wire, rows)
    batch = codec.read_batch(message, "berlin", hosted=5)
    x_TH = torch.randn(rows, HIDDEN, generator=torch.Generator().manual_seed(2))
    assert torch.equal(batch.x_RH, x_TH[route.rows_R].to(TORCH_DTYPE[wire]).float())
    assert torch.equal(batch.counts_R, route.counts_R) and torch.equal(batch.experts_S, route.experts_S)
    assert torch.equal(batch.weights_S, route.weights_S)
    assert batch.x_RH.shape == (rows, HIDDEN)


@BOTH
@pytest.mark.parametrize("rows", [0, 1, ROWS])
def test_an_answer_arrives_as_it_was_written(codec: Codec, wire: WireDtype, rows: int) -> None:
    message = make_message(Kind.BACKWARD_REPLY, wire, rows, 2 * rows)
    assert message.payload is not None
    generator = torch.Generator().manual_seed(3)
    rows_RH = torch.randn(rows, HIDDEN, generator=generator)
    dweights_S = torch.randn(2 * rows, generator=generator)
    codec.write_rows(message.payload, message.header, rows_RH)
    codec.write_weight_gradients(message.payload, message.header, dweights_S)
    assert torch.equal(
        codec.read_rows(message, "berlin", "returned gradients"), rows_RH.to(TORCH_DTYPE[wire]).float()
    )
    assert torch.equal(codec.read_weight_gradients(message, "berlin"), dweights_S)


@BOTH
@pytest.mark.parametrize("rows", [0, 1, ROWS])
@pytest.mark.parametrize("kind", [Kind.FORWARD, Kind.BACKWARD_REPLY], ids=lambda kind: kind.name)
def test_every_byte_between_the_sections_is_zeroed(
    codec: Codec, wire: WireDtype, rows: int, kind: Kind
) -> None:
    written = []
    for fill in (0xAB, 0x54):
        message = make_message(kind, wire, rows, 2 * rows, fill)
        assert message.payload is not None
        codec.write_rows(message.payload, message.header, torch.ones(rows, HIDDEN))
        if kind is Kind.FORWARD:
            codec.write_choices(message.payload, message.header, make_route(rows))
        else:
            codec.write_weight_gradients(message.payload, message.header, torch.ones(2 * rows))
        codec.clear_gaps(message.payload, message.header)
        written.append(bytes(message.payload.view[: message.header.payload_length]))
        for start, end in gaps(message.header, HIDDEN):
            assert not any(message.payload.view[start:end])
    assert written[0] == written[1], "what was in the buffer before is still in it"


# ---- what is refused


def put(message: Message, dtype: torch.dtype, offset: int, value: float) -> None:
    """Overwrite one element of a payload."""
    assert message.payload is not None
    torch.frombuffer(message.payload.view, dtype=dtype, count=1, offset=offset)[0] = value


def answer(kind: Kind, wire: WireDtype) -> Message:
    return make_message(kind, wire, ROWS, 2 * ROWS, fill=0)


Read = Callable[[Codec, Message], Any]
TENSORS: dict[str, tuple[Kind, Read]] = {
    "hidden states": (Kind.FORWARD, lambda codec, m: codec.read_batch(m, "berlin", 5)),
    "gradients": (Kind.BACKWARD, lambda codec, m: codec.read_rows(m, "berlin", "gradients")),
    "outputs": (Kind.FORWARD_REPLY, lambda codec, m: codec.read_rows(m, "berlin", "outputs")),
    "returned gradients": (
        Kind.BACKWARD_REPLY,
        lambda codec, m: codec.read_rows(m, "berlin", "returned gradients"),
    ),
}


@BOTH
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf"), 10_240.0, -10_240.0], ids=str)
@pytest.mark.parametrize("what", TENSORS)
def test_rows_that_are_not_finite_or_too_large_are_refused_naming_peer_layer_and_tensor(
    codec: Codec, what: str, value: float, wire: WireDtype
) -> None:
    kind, read = TENSORS[what]
    message = forward_message(codec, wire) if kind is Kind.FORWARD else answer(kind, wire)
    read(codec, message)
    put(message, TORCH_DTYPE[wire], (ROWS * HIDDEN - 1) * wire.size, value)
    with pytest.raises(ProtocolError) as caught:
        read(codec, message)
    assert str(caught.value) == (
        f"{kind.name} from berlin, step 3, micro-batch 1, layer 2: {what} must be finite and within ±10000"
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")], ids=str)
@pytest.mark.parametrize("kind", [Kind.FORWARD, Kind.EVALUATE, Kind.BACKWARD_REPLY], ids=lambda k: k.name)
def test_weights_and_their_gradients_that_are_not_finite_are_refused(
    codec: Codec, kind: Kind, value: float
) -> None:
    reply = kind is Kind.BACKWARD_REPLY
    wire = WireDtype.BFLOAT16
    message = answer(kind, wire) if reply else forward_message(codec, wire, kind=kind)
    put(message, torch.float32, sections(message.header, HIDDEN).weights + 4 * (2 * ROWS - 1), value)
    with pytest.raises(ProtocolError) as caught:
        if reply:
            codec.read_weight_gradients(message, "berlin")
        else:
            codec.read_batch(message, "berlin", 5)
    what = "gradients of weights" if reply else "weights"
    assert (
        str(caught.value) == f"{kind.name} from berlin, step 3, micro-batch 1, layer 2: {what} must be finite"
    )


def test_an_expert_that_is_not_hosted_is_refused(codec: Codec) -> None:
    message = forward_message(codec, WireDtype.FLOAT32)
    codec.read_batch(message, "berlin", 5)
    with pytest.raises(ProtocolError, match=r"berlin.* layer 2: expert 4 is out of range, 4 are hosted here"):
        codec.read_batch(message, "berlin", 4)
    assert message.payload is not None
    struct.pack_into("<H", message.payload.view, sections(message.header, HIDDEN).experts, 65535)
    with pytest.raises(ProtocolError, match="expert 65535 is out of range"):
        codec.read_batch(message, "berlin", 5)


@pytest.mark.parametrize("counts", [(0, 4), (1, 2), (255, 2), (2, 1)], ids=str)
def test_slots_per_row_that_do_not_fit_are_refused(codec: Codec, counts: tuple[int, int]) -> None:
    message = forward_message(codec, WireDtype.FLOAT32)
    assert message.payload is not None
    struct.pack_into("<BB", message.payload.view, sections(message.header, HIDDEN).counts, *counts)
    with pytest.raises(ProtocolError, match=r"berlin.*slots per row must be at least 1 and sum to 14"):
        codec.read_batch(message, "berlin", 5)


def test_own_values_are_held_to_the_same_bound(codec: Codec) -> None:
    fine = torch.full((2, HIDDEN), BOUND)
    assert codec.within_bounds(fine)
    for value in (float("nan"), float("inf"), BOUND * 1.01):
        assert not codec.within_bounds(fine.index_fill(1, torch.tensor([3]), value))


# ---- whole runs


@BOTH
def test_nothing_of_an_earlier_message_is_in_any_byte_that_is_sent(
    wire: WireDtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two equal runs whose buffers are poisoned differently send the same bytes, and end in the same weights.

    Memory is poisoned when it is given out and when it is given back: bytes that nobody wrote, and tensors that are
    used after their buffer was released, would differ.
    """
    allocate, release = BufferPool.allocate, Buffer.release
    sent: list[dict[tuple[int, ...], bytes]] = []
    weights: list[list[dict[str, Tensor]]] = []
    poison = 0

    def poisoned(self: BufferPool, size: int) -> Buffer:
        buffer = allocate(self, size)
        buffer.view[:] = bytes([poison]) * len(buffer.view)
        return buffer

    def poisoned_release(self: Buffer) -> None:
        if self._give_back is not None:
            self.view[:] = bytes([poison]) * len(self.view)
        release(self)

    monkeypatch.setattr(BufferPool, "allocate", poisoned)
    monkeypatch.setattr(Buffer, "release", poisoned_release)

    def hook(sender: int, receiver: int, message: Message, deliver: Callable[[], None]) -> None:
        header, payload = message.header, message.payload
        key = (sender, receiver, header.kind, header.step, header.micro_batch, header.layer)
        assert key not in sent[-1]
        total = header.payload_length + header.pad_length
        content = b"" if payload is None else bytes(payload.view[:total])
        assert not any(content[header.payload_length :]), "padding must be zero"
        sent[-1][key] = content
        deliver()

    for poison in (0xAB, 0x54):
        sent.append({})
        configs = small_configs(
            tmp_path / str(poison),
            2,
            architecture("olmoe", hidden_size=HIDDEN),
            training={"micro_batches_per_step": 2, "in_flight": 2},
            transport={"wire_dtype": wire.name.lower()},
            quota={"activation_bytes": 1200},
        )
        steps = run_steps(configs, steps=2, hook=hook)
        weights.append([g.experts | g.backbone for node in steps.gradients for g in node])
    assert sent[0].keys() == sent[1].keys() and len(sent[0]) > 90
    assert [key for key in sent[0] if sent[0][key] != sent[1][key]] == []
    for first, second in zip(*weights, strict=True):
        assert all(torch.equal(first[name], second[name]) for name in first)


def floats(message: Message, value: float, section: str) -> None:
    """Put a value into the last place of a float section."""
    assert message.payload is not None
    at = sections(message.header, int(COMMON["hidden_size"]))
    if section == "rows":
        put(message, torch.float32, 4 * (message.header.rows * int(COMMON["hidden_size"]) - 1), value)
    else:
        put(message, torch.float32, at.weights + 4 * (message.header.slots - 1), value)


def swap_rows(message: Message) -> None:
    """Exchange the first two rows: finite, in bounds, and wrong."""
    assert message.payload is not None
    width, view = 4 * int(COMMON["hidden_size"]), message.payload.view
    view[:width], view[width : 2 * width] = bytes(view[width : 2 * width]), bytes(view[:width])


def write(message: Message, layout: str, offset: int, value: float) -> None:
    assert message.payload is not None
    struct.pack_into(layout, message.payload.view, offset, value)


def set_expert(message: Message) -> None:
    write(message, "<H", sections(message.header, int(COMMON["hidden_size"])).experts, 500)


def set_count(message: Message) -> None:
    write(message, "<B", sections(message.header, int(COMMON["hidden_size"])).counts, 9)


NAN, INF = float("nan"), float("inf")
FAULTS: dict[str, tuple[Kind, Callable[[Message], None], str]] = {
    "hidden states": (Kind.FORWARD, lambda m: floats(m, NAN, "rows"), "hidden states must be finite"),
    "weights": (Kind.FORWARD, lambda m: floats(m, INF, "weights"), "weights must be finite"),
    "expert": (Kind.FORWARD, set_expert, "expert 500 is out of range, 2 are hosted here"),
    "slots": (Kind.FORWARD, set_count, "slots per row must be at least 1"),
    "outputs": (Kind.FORWARD_REPLY, lambda m: floats(m, -INF, "rows"), "outputs must be finite"),
    "swapped": (Kind.FORWARD_REPLY, swap_rows, "don't fit together"),
    "gradients": (Kind.BACKWARD, lambda m: floats(m, 2e4, "rows"), "gradients must be finite and within"),
    "returned": (Kind.BACKWARD_REPLY, lambda m: floats(m, NAN, "rows"), "returned gradients must be finite"),
    "dweights": (Kind.BACKWARD_REPLY, lambda m: floats(m, NAN, "w"), "gradients of weights must be finite"),
    "changed dweights": (Kind.BACKWARD_REPLY, lambda m: floats(m, 1e4, "w"), "don't fit together"),
    "evaluation": (Kind.EVALUATE, lambda m: floats(m, NAN, "rows"), "hidden states must be finite"),
    "evaluated": (Kind.EVALUATE_REPLY, lambda m: floats(m, 2e4, "rows"), "outputs must be finite"),
    "vote": (Kind.VOTE, lambda m: write(m, "<d", 0, NAN), "squared norm nan"),
    "tokens": (Kind.STEP_END, lambda m: write(m, "<Q", 0, 10**6), "1000000 supervised tokens"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_one_corrupted_message_ends_the_run_on_all_naming_who_sent_it(fault: str, tmp_path: Path) -> None:
    kind, corrupt, reason = FAULTS[fault]
    culprit = 1
    corrupted: list[Header] = []

    def hook(sender: int, receiver: int, message: Message, deliver: Callable[[], None]) -> None:
        right = sender == culprit and receiver == 0 and message.header.kind is kind
        tensors = kind.value < 32
        if right and not corrupted and (message.header.rows > 2 or not tensors):
            corrupted.append(message.header)
            corrupt(message)
        deliver()

    configs = small_configs(
        tmp_path,
        3,
        architecture("olmoe", num_hidden_layers=2),
        training={"evaluation_sequences": 2 if kind in (Kind.EVALUATE, Kind.EVALUATE_REPLY) else 0},
        dataset={"held_out_percent": 10},
        transport={"progress_timeout_seconds": 20},
    )
    with no_thread_left():
        errors = outcomes(configs, hook)
    assert corrupted, "nothing was corrupted"
    for error in errors:
        assert isinstance(error, ProtocolError), repr(error)
        assert "berlin" in str(error) and reason in str(error), str(error)

"""What this participant hands to each peer, counted where it is handed over: the account behind `exposure.jsonl`.

    T tokens of a micro-batch   R rows of one message

Messages are counted from their headers, tokens and documents from the rows that were chosen. Nothing is read back from
tensors that travel, and nothing here leaves this machine: `ledger_book.py` writes it down, for its owner alone.
"""

from collections import Counter
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pcmoe_node.exchange.base import DROPPED_AFTER_GOODBYE, Header, Kind, WireDtype
from pcmoe_node.exchange.layout import REPLIES, REQUESTS
from pcmoe_node.exchange.wire import HEADER_SIZE
from pcmoe_node.packing import NO_DOCUMENT, NO_LABEL, Batch

_TENSORS = frozenset((*REQUESTS, *REPLIES))


@dataclass(slots=True)
class Sent:
    """Messages of one kind about one layer to one peer."""

    messages: int = 0
    empty: int = 0
    """Those without a row: only padding."""
    rows: int = 0
    slots: int = 0
    payload: int = 0
    """Bytes, without padding."""
    padding: int = 0
    smallest: int = 0
    """Rows of the smallest message that has any; 0: none has."""
    dtype: WireDtype = WireDtype.NONE


@dataclass(slots=True)
class Control:
    """Messages about steps, which hold no tensor, to one peer."""

    messages: int = 0
    payload: int = 0

    @property
    def bytes(self) -> int:
        """On the wire, without TLS."""
        return self.payload + self.messages * HEADER_SIZE


@dataclass(slots=True)
class Seen:
    """Own tokens that one peer was shown at one layer or more, each time that they were read."""

    tokens: int = 0
    """Hidden states, in training."""
    targets: int = 0
    """Gradients at positions that predict a token, in training."""
    held_out: int = 0
    """Hidden states, in evaluation."""
    documents: Counter[int] = field(default_factory=Counter)
    """By document: in how many pieces (its part in one sequence) something of it was shown."""


@dataclass(slots=True)
class Own:
    """All own tokens that were read, whoever saw them."""

    tokens: int = 0
    targets: int = 0
    held_out: int = 0


@dataclass(kw_only=True, slots=True)
class Entries:
    """What happened since somebody last asked."""

    sent: dict[tuple[int, int, Kind], Sent] = field(default_factory=dict)
    """By peer, layer and kind."""
    control: dict[int, Control] = field(default_factory=dict)
    seen: dict[int, Seen] = field(default_factory=dict)
    own: Own = field(default_factory=Own)


class Ledger:
    """Counts until `take`. One thread has the turn at a time, as everywhere in a node's work."""

    def __init__(self) -> None:
        self._entries = Entries()
        self._open: set[Exposed] = set()

    def sent(self, peer: int, header: Header) -> None:
        """A message was handed to the transport for `peer`."""
        kind = header.kind
        if kind not in _TENSORS:
            if (
                kind not in DROPPED_AFTER_GOODBYE
            ):  # of those nobody knows whether they left, and they say nothing
                control = self._entries.control.setdefault(peer, Control())
                control.messages += 1
                control.payload += header.payload_length
            return
        key = (peer, header.layer, kind)
        sent = self._entries.sent.get(key)
        if sent is None:
            sent = self._entries.sent[key] = Sent(dtype=header.dtype)
        rows = header.rows
        sent.messages += 1
        sent.payload += header.payload_length
        sent.padding += header.pad_length
        if not rows:
            sent.empty += 1
            return
        sent.rows += rows
        sent.slots += header.slots
        if not sent.smallest or rows < sent.smallest:
            sent.smallest = rows

    def open(self, batch: Batch, *, held_out: bool) -> "Exposed":
        """An account of one micro-batch, to be closed when it is done; `take` counts open ones as they stand."""
        exposed = Exposed(self, batch, held_out=held_out)
        self._open.add(exposed)
        return exposed

    def close(self, exposed: "Exposed") -> None:
        """Add up what a micro-batch has shown; a second call does nothing."""
        if exposed in self._open:
            self._open.discard(exposed)
            exposed.add_to(self._entries)

    def take(self) -> Entries:
        """Everything since the last call; what is open is closed."""
        for exposed in list(self._open):
            self.close(exposed)
        entries, self._entries = self._entries, Entries()
        return entries


class Exposed:
    """Which tokens of one micro-batch each peer was shown, over all layers so far."""

    def __init__(self, ledger: Ledger, batch: Batch, *, held_out: bool) -> None:
        self._ledger = ledger
        self._batch = batch
        self._held_out = held_out
        self._states: dict[int, Tensor] = {}
        self._gradients: dict[int, Tensor] = {}

    def states(self, peer: int, rows_R: Tensor) -> None:
        """Hidden states of these tokens went to a peer."""
        self._mark(self._states, peer, rows_R)

    def gradients(self, peer: int, rows_R: Tensor) -> None:
        """Gradients at these tokens went to a peer."""
        self._mark(self._gradients, peer, rows_R)

    def close(self) -> None:
        """Nothing more of this micro-batch will be sent."""
        self._ledger.close(self)

    def add_to(self, entries: Entries) -> None:
        """Add what was shown."""
        batch = self._batch
        documents_T = batch.documents_BS.reshape(-1)
        real_T = documents_T != NO_DOCUMENT
        target_T = batch.labels_BS.reshape(-1) != NO_LABEL
        own, tokens = entries.own, int(real_T.sum())
        if self._held_out:
            own.held_out += tokens
        else:
            own.tokens += tokens
            own.targets += int(target_T.sum())
        begins_T = batch.positions_BS.reshape(-1) == 0
        piece_T = begins_T.cumsum(0) - 1
        of_piece = documents_T[begins_T]
        for peer, states_T in self._states.items():
            seen = entries.seen.setdefault(peer, Seen())
            shown_T = states_T.cpu() & real_T
            count = int(shown_T.sum())
            if self._held_out:
                seen.held_out += count
            else:
                seen.tokens += count
            pieces = torch.zeros(of_piece.shape[0], dtype=torch.bool)
            pieces[piece_T[shown_T]] = True
            seen.documents.update(of_piece[pieces].tolist())
        for peer, gradients_T in self._gradients.items():
            seen = entries.seen.setdefault(peer, Seen())
            seen.targets += int((gradients_T.cpu() & target_T).sum())

    def _mark(self, masks: dict[int, Tensor], peer: int, rows_R: Tensor) -> None:
        mask_T = masks.get(peer)
        if mask_T is None:
            tokens = self._batch.labels_BS.numel()
            mask_T = masks[peer] = torch.zeros(tokens, dtype=torch.bool, device=rows_R.device)
        mask_T.index_fill_(0, rows_R, True)

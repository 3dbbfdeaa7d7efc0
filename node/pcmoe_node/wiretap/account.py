"""Frames of all recordings in a folder, added up; and whether the sums are everything that passed."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pcmoe_node.errors import NodeError
from pcmoe_node.exchange import wire
from pcmoe_node.exchange.base import Kind
from pcmoe_node.exchange.layout import REPLIES
from pcmoe_node.exchange.tls.tap import PIECE
from pcmoe_node.wiretap.parts import ROWS_ARE, parts_of
from pcmoe_node.wiretap.tape import About, Frame, Remains, about_of, frames_of

FAULTS_SHOWN = 20


@dataclass(frozen=True, slots=True)
class Key:
    """What frames are added up by."""

    participant: str
    """Whose recording it is."""
    out: bool
    """Sent by it."""
    peer: str
    view: int
    layer: int | None
    """None: the frame is about none."""
    kind: str


@dataclass(slots=True)
class Sum:
    """Frames of one key."""

    frames: int = 0
    rows: int = 0
    slots: int = 0
    bytes: Counter[str] = field(default_factory=Counter)
    """By part; all of the frame but its residue."""

    @property
    def total(self) -> int:
        """Bytes of all parts."""
        return sum(self.bytes.values())


@dataclass(slots=True)
class Account:
    """A folder of recordings."""

    sums: dict[Key, Sum] = field(default_factory=dict)
    repeated: dict[Key, Sum] = field(default_factory=dict)
    """Frames that passed once more after a cut, whole."""
    recorded: int = 0
    """Bytes in the recordings."""
    cut_short: int = 0
    """Bytes of frames whose end didn't pass, because the connection broke or the process ended."""
    residue: int = 0
    """Bytes that nothing explains."""
    faults: list[str] = field(default_factory=list)

    @property
    def explained(self) -> int:
        """Bytes of whole frames, by part."""
        return sum(each.total for sums in (self.sums, self.repeated) for each in sums.values())


def account_of(folder: Path) -> Account:
    """All recordings of a folder. Raises `ConfigError` where it holds none."""
    account, known = Account(), about_of(folder)
    seen: set[tuple[object, ...]] = set()
    for path in sorted(folder.glob("*.tape")):
        _Connection(account, known, seen, path).read()
    missing = account.recorded - account.explained - account.cut_short - account.residue
    if missing:  # a fault of this program, and no reason to say that all is well
        account.residue += abs(missing)
        account.faults.append(f"{missing} bytes were lost by the parser itself")
    return account


class _Connection:
    """One recording. Who is who is told by its HELLO."""

    def __init__(
        self, account: Account, known: Mapping[str, About], seen: set[tuple[object, ...]], path: Path
    ) -> None:
        self._account = account
        self._known = known
        self._seen = seen
        self._path = path
        self._me = self._peer = "?"
        self._link = 0

    def read(self) -> None:
        """Add up everything."""
        self._account.recorded += _recorded(self._path)
        for found in frames_of(self._path):
            if isinstance(found, Remains):
                self._remains(found)
            else:
                self._frame(found)

    def _frame(self, frame: Frame) -> None:
        header, stamp = frame.header, frame.stamp
        if header.kind is Kind.HELLO:
            self._introduce(frame)
        tensors = header.kind in ROWS_ARE
        key = Key(
            self._me, frame.out, self._peer, stamp.view, header.layer if tensors else None, header.kind.name
        )
        about = self._known.get(self._me)
        if tensors and about is None:
            self._blame(wire.HEADER_SIZE + len(frame.payload), key, "nobody said what its sizes are")
            return
        hidden_size = 0 if about is None else about.hidden_size
        parts = parts_of(header, frame.payload, hidden_size, self._hosted(frame, about))
        again = (self._me, frame.out, self._peer, self._link, stamp.view, stamp.sequence)
        sums = self._account.repeated if stamp.sequence and again in self._seen else self._account.sums
        self._seen.add(again)
        total = sums.setdefault(key, Sum())
        total.frames += 1
        total.rows += header.rows
        total.slots += header.slots
        total.bytes.update(parts.bytes)
        self._account.residue += parts.residue
        for why in parts.faults:
            self._blame(0, key, why)

    def _introduce(self, frame: Frame) -> None:
        try:
            hello = wire.decode_hello(frame.payload)
        except NodeError:
            return  # counted as residue like any other frame that can't be read
        names = (hello.sender, hello.receiver) if frame.out else (hello.receiver, hello.sender)
        self._me, self._peer = (wire.printable(name, 40) for name in names)
        self._link = hello.connection

    def _hosted(self, frame: Frame, about: About | None) -> int:
        """Experts of the layer at the host that a message is about."""
        host = self._peer if frame.out is (frame.header.kind not in REPLIES) else self._me
        if about is None or host not in about.participants:
            return 0
        counts = about.experts.get(frame.header.layer, ())
        number = about.participants.index(host)
        return counts[number] if number < len(counts) else 0

    def _remains(self, remains: Remains) -> None:
        if remains.why:
            self._account.residue += remains.count
            way = "to" if remains.out else "from"
            self._say(f"{self._path.name}: {remains.count} bytes {way} {self._peer}: {remains.why}")
        else:
            self._account.cut_short += remains.count

    def _blame(self, count: int, key: Key, why: str) -> None:
        self._account.residue += count
        way = f"{key.participant} to {key.peer}" if key.out else f"{key.peer} to {key.participant}"
        self._say(f"{self._path.name}: {key.kind}, {way}, view {key.view}, layer {key.layer}: {why}")

    def _say(self, sentence: str) -> None:
        if len(self._account.faults) < FAULTS_SHOWN:
            self._account.faults.append(sentence)


def _recorded(path: Path) -> int:
    """Bytes that passed, by the recording's own piece headers: counted apart from the frames."""
    size, at, recorded = path.stat().st_size, 0, 0
    with open(path, "rb") as file:
        while len(head := file.read(PIECE.size)) == PIECE.size:
            length = PIECE.unpack(head)[1]
            at += PIECE.size + length
            recorded += length - max(0, at - size)
            file.seek(at)
    return recorded

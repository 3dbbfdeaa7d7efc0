"""Reports and notices as bytes, held to their bounds when they come back; failures as errors."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

from pydantic import TypeAdapter, ValidationError

from pcmoe_node.errors import NodeError, PeerLostError, ProtocolError
from pcmoe_node.exchange import wire
from pcmoe_node.exchange.base import Buffer, Header, Kind, Message
from pcmoe_node.protocol.membership import Failure, Notice, Report

LIMIT = 64 * 1024
"""Bytes of a REPORT or NOTICE."""
LARGEST = 1 << 53
"""Above every number that may be in one."""

_REPORT = TypeAdapter(Report)
_NOTICE = TypeAdapter(Notice)
Words = TypeVar("Words", Report, Notice)


def report_message(report: Report) -> Message:
    """A REPORT."""
    return _message(Kind.REPORT, _REPORT.dump_json(report))


def notice_message(notice: Notice) -> Message:
    """A NOTICE."""
    return _message(Kind.NOTICE, _NOTICE.dump_json(notice))


def read_report(data: bytes, name: str) -> Report:
    """What a node says of itself, its texts printable; a `ProtocolError` names it and the rule."""
    report = _read(_REPORT, data, f"{name} sent a REPORT")
    numbers = (report.view, report.committed, report.finished, *report.rounds)
    _check_numbers(numbers, f"{name} sent a REPORT")
    if list(report.rounds) != sorted(set(report.rounds)) or 0 in report.rounds:
        raise ProtocolError(f"{name} sent a REPORT: rounds must ascend, from 1")
    return replace(
        report,
        mark=wire.printable(report.mark, 40),
        lost=wire.printable(report.lost),
        failure=_printable(report.failure),
    )


def read_notice(data: bytes) -> Notice:
    """What the coordinator says, its texts printable; a `ProtocolError` names the rule."""
    notice = _read(_NOTICE, data, "the coordinator sent a NOTICE")
    _check_numbers((notice.over, notice.committed, notice.finished), "the coordinator sent a NOTICE")
    if notice.view is not None:
        _check_numbers((notice.view.number, notice.view.round), "the coordinator sent a NOTICE")
    return replace(
        notice,
        reason=wire.printable(notice.reason),
        missing=tuple((who, wire.printable(what, 300)) for who, what in notice.missing),
        failure=_printable(notice.failure),
    )


def error_of(failure: Failure, names: Sequence[str], me: int) -> NodeError:
    """A failure that the coordinator told, as the error to end with: of the class it began with, root cause first."""
    kind, origin, reason = wire.error_class(failure.code), failure.origin, failure.reason
    if origin is None or origin == me or not 0 <= origin < len(names):
        return kind(reason, origin=me, reason=reason)
    return kind(f"{names[origin]} ended the run: {reason}", origin=origin, reason=reason)


def failure_of(error: NodeError, me: int) -> Failure | None:
    """What others must know of an error; None: it isn't this node's own, or one after which it may come back."""
    if isinstance(error, PeerLostError) or error.origin is not None:
        return None
    return Failure(code=error.exit_code, origin=me, reason=wire.printable(str(error)))


def _message(kind: Kind, payload: bytes) -> Message:
    if len(payload) > LIMIT:
        raise ProtocolError(f"{kind.name} of {len(payload)} bytes: must be at most {LIMIT}")
    return Message(Header(kind=kind, payload_length=len(payload)), Buffer(bytearray(payload)))


def _read(adapter: TypeAdapter[Words], data: bytes, what: str) -> Words:
    try:
        return adapter.validate_json(data, strict=True)
    except ValidationError as error:
        where = ".".join(map(str, error.errors(include_input=False)[0]["loc"])) or "it"
        raise ProtocolError(f"{what} that can't be read: {wire.printable(where, 80)}") from None


def _check_numbers(numbers: Sequence[int], what: str) -> None:
    for number in numbers:
        if not 0 <= number < LARGEST:
            raise ProtocolError(f"{what} with {number}: out of range")


def _printable(failure: Failure | None) -> Failure | None:
    return None if failure is None else replace(failure, reason=wire.printable(failure.reason))

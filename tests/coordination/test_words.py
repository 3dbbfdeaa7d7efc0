"""What nodes and coordinator tell each other: these words, and no others."""

import json

import pytest

from pcmoe_node.coordination.words import (
    error_of,
    failure_of,
    notice_message,
    read_notice,
    read_report,
    report_message,
)
from pcmoe_node.errors import DataError, NodeError, PeerLostError, ProtocolError, ResourceError
from pcmoe_node.exchange.base import Message
from pcmoe_node.protocol.membership import Failure, Notice, Report, View

NAMES = ("amsterdam", "berlin")
REPORT = Report(
    view=3,
    mark="a" * 16,
    ready=True,
    rounds=(4, 5),
    committed=4,
    finished=0,
    lost="berlin is lost",
    failure=Failure(code=66, origin=0, reason="no space left"),
)
NOTICE = Notice(
    view=View(number=3, round=4, members=((0, "b" * 32), (1, "c" * 32))),
    mark="a" * 16,
    over=2,
    reason="berlin left it",
    committed=5,
    finished=0,
    missing=((1, "is loading"),),
)


def payload(message: Message) -> bytes:
    assert message.payload is not None
    return bytes(message.payload.view[: message.header.payload_length])


def test_a_report_says_where_a_node_stands_and_nothing_of_its_data_or_its_losses() -> None:
    """Whoever adds a field here says in README.md and report/words.py what it tells the coordinator."""
    told = json.loads(payload(report_message(REPORT)))
    assert set(told) == {"view", "mark", "ready", "rounds", "committed", "finished", "lost", "failure"}
    assert set(told["failure"]) == {"code", "origin", "reason"}


def test_words_come_back_as_they_were_said() -> None:
    assert read_report(payload(report_message(REPORT)), "berlin") == REPORT
    assert read_notice(payload(notice_message(NOTICE))) == NOTICE


def test_what_is_said_reaches_a_log_printable_and_short() -> None:
    long = Report(lost="\x1b[2J\n" + "x" * 5000)
    read = read_report(payload(report_message(long)), "berlin")
    assert read.lost.isprintable() and len(read.lost) <= 500
    missing = Notice(missing=((1, "\x07" * 5000),), reason="\x1b")
    notice = read_notice(payload(notice_message(missing)))
    assert (
        notice.reason.isprintable()
        and notice.missing[0][1].isprintable()
        and len(notice.missing[0][1]) <= 300
    )


@pytest.mark.parametrize(
    "words",
    [b"", b"[]", b'{"view": "3"}', b'{"view": true}', b'{"over": -1}', b'{"view": {"number": 1}}'],
)
def test_a_notice_that_can_not_be_read_names_the_coordinator(words: bytes) -> None:
    with pytest.raises(ProtocolError, match="the coordinator sent a NOTICE"):
        read_notice(words)


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (ResourceError("no space left"), Failure(code=66, origin=1, reason="no space left")),
        (
            DataError("notes.txt: record 3: not text"),
            Failure(code=65, origin=1, reason="notes.txt: record 3: not text"),
        ),
        (PeerLostError("lyon is lost"), None),
        (ResourceError("amsterdam ended the run: full", origin=0, reason="full"), None),
    ],
    ids=["own", "own data", "a lost peer", "somebody else's"],
)
def test_others_are_told_of_an_error_of_ones_own_that_no_return_can_cure(
    error: NodeError, told: Failure | None
) -> None:
    assert failure_of(error, 1) == told


def test_a_failure_comes_back_as_the_error_it_was_with_its_root_first() -> None:
    error = error_of(Failure(code=66, origin=1, reason="no space left"), NAMES, 0)
    assert isinstance(error, ResourceError)
    assert str(error) == "berlin ended the run: no space left"
    assert failure_of(error, 0) is None, "it is not told on as if it were one's own"
    found = error_of(Failure(code=66, origin=None, reason="lyon holds none"), NAMES, 0)
    assert str(found) == "lyon holds none"
    assert isinstance(error_of(Failure(code=12345, origin=9, reason="?"), NAMES, 0), PeerLostError)

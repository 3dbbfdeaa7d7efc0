"""Which changes of conditions are told as Events, and how often they are written."""

import asyncio
from collections.abc import Mapping
from datetime import UTC, datetime

import pytest

from pcmoe_operator.cluster import Cluster, ClusterError, Object
from pcmoe_operator.events import QUIET_SECONDS, SETTLED_SECONDS, Events, News, conditions_of, news

BEFORE = {"Accepted": ("True", "Accepted"), "Progressing": ("True", "Training")}


def raw(uid: str = "u1", **conditions: tuple[str, str]) -> Object:
    """A consortium whose conditions are so."""
    made = [
        {"type": kind, "status": status, "reason": reason, "message": f"{reason} in words"}
        for kind, (status, reason) in conditions.items()
    ]
    head = {"apiVersion": "pcmoe.dev/v1alpha1", "kind": "PCMoEConsortium"}
    return {
        **head,
        "metadata": {"name": "pilot", "namespace": "here", "uid": uid},
        "status": {"conditions": made},
    }


@pytest.mark.parametrize(
    ("condition", "told"),
    [
        (("False", "PeerLost"), ("Warning", "PeerLost")),
        (("False", "SuspendRequested"), ("Normal", "SuspendRequested")),
        (("False", "Evicted"), ("Normal", "Evicted")),
        (("False", "SomethingNewer"), ("Warning", "SomethingNewer")),
        (("True", "Training"), None),
        (("False", "Starting"), None),
    ],
    ids=["trouble", "a wish", "nothing to do", "an unknown reason", "no change", "no news"],
)
def test_a_change_is_told_by_its_reason(condition: tuple[str, str], told: tuple[str, str] | None) -> None:
    found = [(each.kind, each.reason) for each in news(BEFORE, raw(Progressing=condition))]
    assert found == ([told] if told else [])


def test_one_reason_of_several_conditions_is_told_once() -> None:
    after = raw(Failed=("True", "ResourceMissing"), Progressing=("False", "ResourceMissing"))
    assert [(each.condition, each.reason) for each in news(BEFORE, after)] == [("Failed", "ResourceMissing")]


def test_that_a_manifest_is_good_is_told_only_after_it_was_not() -> None:
    good = raw(Accepted=("True", "Accepted"))
    assert list(news({}, good)) == []
    [found] = news({"Accepted": ("False", "InvalidSpec")}, good)
    assert (found.kind, found.reason) == ("Normal", "Accepted")


def test_a_note_has_no_more_bytes_than_the_api_server_takes() -> None:
    after = raw(Progressing=("False", "PeerLost"))
    after["status"]["conditions"][0]["message"] = "é" * 1000
    [found] = news(BEFORE, after)
    assert len(found.note.encode()) == 1024 and found.note == "é" * 512


class Server:
    """Keeps Events as the API server does: made once, changed only if they are there."""

    def __init__(self) -> None:
        self.events: dict[str, Object] = {}
        self.requests: list[str] = []
        self.failing = 0

    async def __call__(
        self, method: str, path: str, query: Mapping[str, str], body: Object | None, content_type: str
    ) -> Object:
        self.requests.append(method)
        assert body is not None
        self.failing -= 1
        if self.failing >= 0:
            raise ClusterError(path, 500, "planted")
        name = body["metadata"]["name"] if method == "POST" else path.rpartition("/")[2]
        if (name in self.events) == (method == "POST"):
            raise ClusterError(path, 409 if method == "POST" else 404, "planted")
        self.events[name] = {**self.events.get(name, {}), **body}
        return self.events[name]


class Bench:
    """Events by one operator after another, on a clock that a test sets."""

    def __init__(self) -> None:
        self.server = Server()
        self.now = 0.0
        self.restart()

    def restart(self) -> None:
        """Another operator goes on."""
        self.events = Events(Cluster(self.server), "one", lambda: self.now)

    def tell(self, times: int = 1, note: str = "words") -> list[int]:
        """The same news so many times; the counts of all Events then."""
        regarding = raw()["metadata"] | {"apiVersion": "v1", "kind": "PCMoEConsortium"}
        told = News(kind="Warning", reason="PeerLost", condition="Progressing", note=note)

        async def all_of_them() -> None:
            for _ in range(times):
                await self.events.tell(regarding, told)

        asyncio.run(all_of_them())
        return [(each.get("series") or {}).get("count", 1) for each in self.server.events.values()]


def test_the_same_words_are_one_event_that_is_written_every_few_minutes_at_most() -> None:
    bench = Bench()
    assert bench.tell() == [1]
    assert bench.tell(20) == [1] and len(bench.server.requests) == 1
    bench.now += QUIET_SECONDS
    assert bench.tell() == [22] and len(bench.server.requests) == 2
    assert bench.tell(note="other words") == [22, 1]


def test_an_operator_that_was_started_anew_doubles_no_event() -> None:
    bench = Bench()
    bench.tell()
    bench.restart()
    assert bench.tell(3) == [1], "it was written a moment ago"
    [name] = bench.server.events
    bench.server.events[name]["eventTime"] = datetime(2026, 1, 1, tzinfo=UTC).isoformat()
    bench.restart()
    assert bench.tell() == [2]


def test_an_event_that_the_api_server_has_forgotten_is_made_anew() -> None:
    bench = Bench()
    bench.tell()
    bench.server.events.clear()
    bench.now += QUIET_SECONDS
    assert bench.tell() == [1]


def test_what_is_seen_first_is_no_news_and_what_is_gone_is_forgotten() -> None:
    bench = Bench()
    trouble = raw(Progressing=("False", "PeerLost"))
    for event in (None, "MODIFIED", "DELETED", "ADDED"):
        bench.events.saw(event, trouble)
    assert bench.events._queue.empty()
    bench.events.saw("MODIFIED", raw(Progressing=("False", "OutOfMemory")))
    assert bench.events._queue.qsize() == 1
    assert conditions_of({}) == {}


def test_what_was_seen_while_another_one_told_is_no_news() -> None:
    bench = Bench()
    lost, out = raw(Progressing=("False", "PeerLost")), raw(Progressing=("False", "OutOfMemory"))
    bench.events.saw("ADDED", raw(), tell=False)
    bench.events.saw("MODIFIED", lost, tell=False)
    bench.events.saw("MODIFIED", lost)
    assert bench.events._queue.empty()
    bench.events.saw("MODIFIED", out)
    assert bench.events._queue.qsize() == 1


def written(bench: Bench, *seen: Object, failing: int = 0) -> list[str]:
    """The reasons of the Events that are written after a consortium was seen so, one after another."""

    async def work() -> None:
        bench.events.saw("ADDED", raw())
        for each in seen:
            bench.events.saw("MODIFIED", each)
        bench.now += SETTLED_SECONDS
        bench.server.failing = failing
        writing = asyncio.create_task(bench.events.write())
        async with asyncio.timeout(5.0):
            while not bench.events._queue.empty():
                await asyncio.sleep(0)
            for _ in range(20):
                await asyncio.sleep(0)
        writing.cancel()

    asyncio.run(work())
    return [event["reason"] for event in bench.server.events.values()]


def test_what_has_passed_before_it_settled_is_no_news() -> None:
    trouble = [raw(Progressing=("False", reason)) for reason in ("StatusUnavailable", "PeerLost")]
    assert written(Bench(), *trouble) == ["PeerLost"]


def test_an_event_that_can_not_be_written_is_left_out_and_the_next_one_written() -> None:
    both = raw(Suspended=("False", "GpusReleased"), Progressing=("False", "Unschedulable"))
    assert written(Bench(), both, failing=1) == ["Unschedulable"]

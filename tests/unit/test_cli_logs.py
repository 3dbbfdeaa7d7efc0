"""The logs of many pods as one, and what leaves a cluster in a bundle."""

import asyncio
import json
import tarfile
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import pytest
from tests.unit.remotely import consortium

from pcmoe_operator.errors import UsageError
from pcmoe_operator.remote.access import Access, LogRange
from pcmoe_operator.remote.gather import Gathered, concerns, usual_name, write
from pcmoe_operator.remote.logs import Line, backlog, chosen, nanoseconds, parse, seconds_of
from pcmoe_operator.remote.redact import HIDDEN, clean, clean_text, machine, secret
from pcmoe_operator.remote.session import AccessError, RefusedError

Object = dict[str, Any]


class Logs:
    """Stands for `Access`: logs by pod, or an error."""

    def __init__(self, logs: Mapping[str, list[str] | Exception]) -> None:
        self._logs = logs
        self.asked: list[tuple[str, LogRange]] = []

    async def logs(self, pod: str, wanted: LogRange) -> AsyncGenerator[str]:
        self.asked.append((pod, wanted))
        held = self._logs[pod]
        if isinstance(held, Exception):
            raise held
        for line in held:
            await asyncio.sleep(0)
            yield line


def pod(participant: str) -> Object:
    labels = {"pcmoe.dev/participant": participant} if participant else {}
    return {"metadata": {"name": f"pod-{participant}", "labels": labels}, "status": {"phase": "Running"}}


def read(logs: Logs, *participants: str, **wanted: Any) -> tuple[list[Line], list[str]]:
    """Everything in the order in which it comes, and what was noted."""
    notes: list[str] = []

    async def all_lines() -> list[Line]:
        access = cast(Access, logs)
        pods = [pod(each) for each in participants]
        async with aclosing(backlog(access, pods, LogRange(**wanted), notes.append)) as lines:
            return [line async for line in lines]

    return asyncio.run(all_lines()), notes


def test_lines_of_several_pods_come_in_the_order_of_time() -> None:
    logs = Logs(
        {
            "pod-berlin": ["2026-01-01T12:00:00.1Z one", "2026-01-01T12:00:03Z four"],
            "pod-lyon": ["2026-01-01T13:00:00.12+01:00 two", "2026-01-01T12:00:02.123456789Z three"],
            "pod-": [],
        }
    )
    lines, notes = read(logs, "berlin", "lyon", "", tail=5)
    assert [(line.participant, line.text) for line in lines] == [
        ("berlin", "one"), ("lyon", "two"), ("lyon", "three"), ("berlin", "four"),
    ]  # fmt: skip
    assert notes == []
    assert {wanted for _, wanted in logs.asked} == {LogRange(tail=5, timestamps=True)}


def test_a_line_out_of_time_stays_behind_the_one_before_it() -> None:
    logs = Logs(
        {
            "pod-berlin": ["2026-01-01T12:00:05Z a", "no time", "2026-01-01T12:00:04Z b"],
            "pod-lyon": ["2026-01-01T12:00:06Z c"],
        }
    )
    assert [line.text for line in read(logs, "berlin", "lyon")[0]] == ["a", "no time", "b", "c"]


def test_one_log_that_can_not_be_had_leaves_the_others() -> None:
    logs = Logs(
        {
            "pod-berlin": AccessError("…", 400, 'container "node" is waiting to start: ContainerCreating'),
            "pod-lyon": ["2026-01-01T12:00:06Z c"],
        }
    )
    lines, notes = read(logs, "berlin", "lyon")
    assert [line.text for line in lines] == ["c"]
    assert notes == ['berlin: no log: container "node" is waiting to start: ContainerCreating']


def test_logs_that_nobody_may_read_are_an_error() -> None:
    with pytest.raises(RefusedError):
        read(Logs({"pod-berlin": RefusedError("no", 403), "pod-lyon": []}), "lyon", "berlin")


@pytest.mark.parametrize(
    ("moment", "said"),
    [
        ("1970-01-01T00:00:01Z", 10**9),
        ("1970-01-01T00:00:01.000000001Z", 10**9 + 1),
        ("1970-01-01T01:00:00.5+01:00", 5 * 10**8),
        ("1970-01-01T00:00:01", None),
        ("loaded", None),
        ("", None),
    ],
)
def test_moments_are_read_to_the_nanosecond(moment: str, said: int | None) -> None:
    assert nanoseconds(moment) == said


def test_a_line_keeps_all_of_its_text() -> None:
    assert parse("2026-01-01T12:00:00Z   two  blanks ", "lyon", "p").text == "  two  blanks "
    assert parse("no time at all", "lyon", "p") == Line(
        at=0, time="", participant="lyon", pod="p", text="no time at all"
    )


def test_since_is_a_time_that_people_write() -> None:
    assert [seconds_of(each) for each in ("30", "90s", "10m", "2h", "1d")] == [30, 90, 600, 7200, 86400]
    for wrong in ("", "0", "10x", "-5s", "m"):
        with pytest.raises(UsageError, match="say 90s, 10m, 2h or 1d"):
            seconds_of(wrong)


def test_a_participant_that_is_not_agreed_on_is_told_with_those_that_are() -> None:
    assert chosen(consortium(), []) == {"berlin", "lyon", "coordinator"}
    assert chosen(consortium(), ["lyon"]) == {"lyon"}
    with pytest.raises(UsageError, match="no participant lion; there are: berlin, lyon, coordinator"):
        chosen(consortium(), ["lion"])


# What leaves a cluster in a bundle

PRIVATE = "-----BEGIN EC PRIVATE KEY-----\nMHcCAQEEIB\n-----END EC PRIVATE KEY-----"
TOKEN = "eyJhbGciOiJSUzI1NiJ9.eyJpc3MiOiJrdWJlcm5ldGVz.c2lnbmF0dXJlLXRoZXJl"


@pytest.mark.parametrize(
    ("text", "left"),
    [
        (f"a {PRIVATE} b", f"a (private key {HIDDEN}) b"),
        ("cut: -----BEGIN PRIVATE KEY-----\nMHcC", f"cut: (private key {HIDDEN})"),
        (f"token={TOKEN}, next", f"token=(token {HIDDEN}), next"),
        ("Authorization: Bearer abcdefghijklmnop1234", f"Authorization: Bearer {HIDDEN}"),
        ("https://user:secret@host/x", f"https://{HIDDEN}@host/x"),
        ("round 3: training loss 2.5, lyon.example:8443", "round 3: training loss 2.5, lyon.example:8443"),
    ],
)
def test_keys_and_tokens_are_left_out_of_any_text(text: str, left: str) -> None:
    assert clean_text(text) == left


def test_environments_managed_fields_and_applied_copies_are_left_out() -> None:
    reference = {"name": "KEY", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}
    given = {
        "metadata": {
            "managedFields": [{"manager": "x"}],
            "annotations": {"kubectl.kubernetes.io/last-applied-configuration": "{}", "kept": "yes"},
        },
        "spec": {"containers": [{"env": [{"name": "PASSWORD", "value": "hunter2"}, reference]}]},
    }
    assert clean(given) == {
        "metadata": {"annotations": {"kept": "yes"}},
        "spec": {"containers": [{"env": [{"name": "PASSWORD", "value": HIDDEN}, reference]}]},
    }


def test_of_a_secret_only_name_and_type_are_taken() -> None:
    row = {"cells": ["pilot.lyon.tls", "kubernetes.io/tls", 2, "5m"], "object": {"data": {"tls.key": "x"}}}
    assert secret(row) == {"name": "pilot.lyon.tls", "type": "kubernetes.io/tls"}


def test_of_a_machine_no_addresses_and_images_are_taken() -> None:
    node = {
        "metadata": {"name": "m-1", "labels": {"a": "b"}, "annotations": {"x": "y"}},
        "spec": {"unschedulable": True, "podCIDR": "10.0.0.0/24"},
        "status": {"addresses": [{"address": "10.1.2.3"}], "images": [{}], "allocatable": {"cpu": "8"}},
    }
    assert machine(node) == {
        "name": "m-1", "labels": {"a": "b"}, "taints": [], "unschedulable": True, "allocatable": {"cpu": "8"},
        "conditions": None, "nodeInfo": None,
    }  # fmt: skip


def test_events_of_pods_that_are_gone_belong_to_their_job() -> None:
    names = {"pilot", "pilot.lyon.1"}
    about = {"pilot": True, "pilot.lyon.1-x8d2p": True, "pilots": False, "other.lyon.1": False}
    assert {name: concerns({"involvedObject": {"name": name}}, names) for name in about} == about


def test_a_bundle_says_what_it_holds_and_only_its_owner_can_read_it(tmp_path: Path) -> None:
    found = Gathered()
    found.json("consortium.json", {"metadata": {"name": "pilot", "managedFields": []}})
    found.text("pods/x/log.txt", f"key: {PRIVATE}")
    found.problems.append("secrets: RBAC refuses eve to list secrets")
    path = tmp_path / "pilot.tar.gz"
    contents = write(found, path, datetime(2026, 1, 1, tzinfo=UTC))
    assert path.stat().st_mode & 0o777 == 0o600
    with tarfile.open(path) as archive:
        texts = {each.name: archive.extractfile(each).read().decode() for each in archive}  # type: ignore[union-attr]
    files = {"consortium.json", "pods/x/log.txt", "problems.txt", "contents.txt"}
    assert set(texts) == {f"pilot/{file}" for file in files}
    assert json.loads(texts["pilot/consortium.json"]) == {"metadata": {"name": "pilot"}}
    assert "PRIVATE KEY" not in texts["pilot/pods/x/log.txt"]
    assert texts["pilot/problems.txt"] == "secrets: RBAC refuses eve to list secrets\n"
    assert all(each["file"] in texts["pilot/contents.txt"] for each in contents)
    with pytest.raises(UsageError, match="is there already"):
        write(found, path, datetime.now(UTC))


def test_a_bundle_is_called_after_its_consortium_and_moment() -> None:
    moment = datetime(2026, 1, 1, 12, 30, 5, tzinfo=UTC)
    assert str(usual_name("pilot", moment)) == "pilot-must-gather-20260101T123005Z.tar.gz"

"""What is made of requests and of what watches tell, before anything is done with it."""

from itertools import islice
from typing import Any

import pytest
from yarl import URL

from pcmoe_operator.tracing import Call
from pcmoe_operator.watch_session import Backoffs
from pcmoe_operator.watching import Known, configured


def consortium(name: str, uid: str) -> dict[str, Any]:
    """As much of it as is looked at."""
    return {"metadata": {"name": name, "uid": uid, "namespace": "here"}}


@pytest.mark.parametrize(
    ("method", "path", "call"),
    [
        ("GET", "/apis/batch/v1/namespaces/here/jobs?labelSelector=a", ("list", "jobs", "here")),
        ("GET", "/apis/batch/v1/namespaces/here/jobs?watch=true", ("watch", "jobs", "here")),
        ("GET", "/api/v1/namespaces/here/pods/one", ("get", "pods", "here")),
        ("PATCH", "/apis/a.b/v1/namespaces/here/things/one/status", ("patch", "things/status", "here")),
        ("POST", "/api/v1/namespaces/here/secrets", ("create", "secrets", "here")),
        ("GET", "/api/v1/namespaces/here", ("get", "namespaces", "here")),
        ("GET", "/openapi/v3/apis/a.b/v1", ("get", "openapi", "")),
        ("GET", "/", ("get", "", "")),
    ],
)
def test_a_request_is_counted_as_rbac_would_call_it(
    method: str, path: str, call: tuple[str, str, str]
) -> None:
    found = Call.of(method, URL(f"https://server{path}"))
    assert (found.verb, found.resource, found.namespace) == call


def test_what_a_new_listing_does_not_have_is_gone() -> None:
    known = Known()
    for each in (consortium("a", "1"), consortium("b", "2")):
        assert known.saw("ADDED", each)
    before = known.snapshot()
    [gone] = known.gone(before, [consortium("b", "2")])
    assert gone["metadata"] == {"name": "a", "uid": "1"}


def test_what_came_after_a_listing_is_not_gone() -> None:
    known = Known()
    known.saw("ADDED", consortium("a", "1"))
    before = known.snapshot()
    known.saw("ADDED", consortium("b", "2"))
    known.saw("ADDED", consortium("a", "3"))
    assert list(known.gone(before, [])) == [], "a has another one's name by now"


def test_the_end_of_one_whose_name_another_has_is_no_news() -> None:
    known = Known()
    known.saw("ADDED", consortium("a", "1"))
    known.saw("ADDED", consortium("a", "2"))
    assert not known.saw("DELETED", consortium("a", "1"))
    assert known.saw("DELETED", consortium("a", "2"))
    assert known.saw("DELETED", consortium("a", "2")), "nothing has that name"


def test_kopf_tries_again_without_an_end_and_more_than_once() -> None:
    backoffs = Backoffs()
    assert list(islice(backoffs, 7)) == list(islice(backoffs, 7)) == [1, 1, 2, 3, 5, 5, 5]


def test_a_silent_connection_is_dead_within_a_minute_and_a_quiet_watch_is_not() -> None:
    watching = configured(30).watching
    assert watching.server_timeout is not None and watching.connect_timeout is not None
    assert watching.server_timeout < watching.inactivity_timeout
    assert watching.inactivity_timeout + watching.connect_timeout <= 60

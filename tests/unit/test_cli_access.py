"""The way into a cluster, and what becomes of its answers: kubeconfigs, refusals, silence, watches that break."""

import asyncio
import base64
import json
import stat
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, asynccontextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from pcmoe_operator.errors import OperatorError, UsageError
from pcmoe_operator.remote.access import CONSORTIA, Access, reach
from pcmoe_operator.remote.following import Told, follow
from pcmoe_operator.remote.kubeconfig import find_way
from pcmoe_operator.remote.session import AccessError, NoAnswerError, NoCRDError, NotThereError, RefusedError

Object = dict[str, Any]
LIST = "/apis/pcmoe.dev/v1alpha1/namespaces/hospital/pcmoeconsortia"


class Server:
    """Answers as told, by path; what was asked for is in `asked`."""

    def __init__(self) -> None:
        self.answers: dict[str, list[tuple[int, bytes]]] = {}
        """By path without the query; the last answer stays."""
        self.asked: list[tuple[str, str, str | None]] = []
        """Method, path with query, Authorization."""
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server.asked.append((self.command, self.path, self.headers.get("Authorization")))
                left = server.answers.get(self.path.partition("?")[0]) or [(404, status(404, "no"))]
                code, body = left.pop(0) if len(left) > 1 else left[0]
                self.send_response(code)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                """Nothing."""

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._http.server_port}"
        threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()


def status(code: int, message: str, **details: str) -> bytes:
    """An API server's no."""
    return json.dumps({"kind": "Status", "code": code, "message": message, "details": details}).encode()


def listed(*objects: Object, version: str = "7", **metadata: str) -> bytes:
    return json.dumps({"items": list(objects), "metadata": {"resourceVersion": version, **metadata}}).encode()


def one(name: str, version: str = "1") -> Object:
    return {
        "metadata": {"name": name, "namespace": "hospital", "uid": f"u-{name}", "resourceVersion": version}
    }


def kubeconfig(path: Path, server: str, user: Object, name: str = "test", **cluster: Any) -> Path:
    config = {
        "clusters": [{"name": name, "cluster": {"server": server, **cluster}}],
        "users": [{"name": name, "user": user}],
        "contexts": [{"name": name, "context": {"cluster": name, "user": name, "namespace": "hospital"}}],
        "current-context": name,
    }
    path.write_text(yaml.safe_dump(config))
    return path


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    found = Server()
    monkeypatch.setenv("KUBECONFIG", str(kubeconfig(tmp_path / "config", found.url, {"token": "t-1"})))
    yield found
    found.close()


@asynccontextmanager
async def quickly() -> AsyncIterator[Access]:
    """A session; nothing in it may take long."""
    async with asyncio.timeout(20), reach() as access:
        yield access


async def listing() -> list[Object]:
    async with quickly() as access:
        return await access.consortia()


async def reading(name: str) -> Object:
    async with quickly() as access:
        return await access.consortium(name)


# Kubeconfigs


def test_the_first_of_several_files_counts_and_paths_are_relative_to_their_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "token").write_text("from a file\n")
    first = kubeconfig(tmp_path / "sub" / "a", "http://a.example/", {"tokenFile": "token"}, name="a")
    second = kubeconfig(tmp_path / "b", "http://b.example", {"username": "u", "password": "p"}, name="b")
    monkeypatch.setenv("KUBECONFIG", f"{first}:{tmp_path / 'not-there'}:{second}")
    way = find_way()
    assert (way.server, way.context, way.namespace) == ("http://a.example", "a", "hospital")
    assert way.headers() == {"Authorization": "Bearer from a file"}
    other = find_way("b", "clinic")
    assert (other.server, other.namespace) == ("http://b.example", "clinic")
    assert other.headers() == {"Authorization": f"Basic {base64.b64encode(b'u:p').decode()}"}


def test_a_file_before_all_others_may_choose_the_context_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = tmp_path / "chosen"
    chosen.write_text("current-context: b\n")
    first = kubeconfig(tmp_path / "a", "http://a.example", {}, name="a")
    second = kubeconfig(tmp_path / "b", "http://b.example", {}, name="b")
    monkeypatch.setenv("KUBECONFIG", f"{chosen}:{first}:{second}")
    assert find_way().server == "http://b.example"


def test_who_asks_in_the_name_of_another_does_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    user = {"token": "t", "as": "system:serviceaccount:hospital:reader", "as-groups": ["viewers"]}
    monkeypatch.setenv("KUBECONFIG", str(kubeconfig(tmp_path / "a", "http://a.example", user)))
    assert find_way().headers() == {
        "Authorization": "Bearer t",
        "Impersonate-User": "system:serviceaccount:hospital:reader",
        "Impersonate-Group": "viewers",
    }
    kubeconfig(tmp_path / "a", "http://a.example", {**user, "as-groups": ["viewers", "keepers"]})
    with pytest.raises(UsageError, match="more than one group is not supported"):
        find_way()


def test_a_context_that_is_not_there_is_told_with_those_that_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = kubeconfig(tmp_path / "a", "http://a.example", {})
    monkeypatch.setenv("KUBECONFIG", str(file))
    with pytest.raises(UsageError, match=r"no context prod; there are: test"):
        find_way("prod")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "is no YAML"),
        ("[]", "is no kubeconfig"),
        ("current-context: x", "no context x; there are: none"),
        (
            "{contexts: [{name: x, context: {cluster: y, user: z}}], current-context: x}",
            "clusters has no entry 'y'",
        ),
    ],
)
def test_a_kubeconfig_that_is_none_is_told(
    text: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "config"
    file.write_text(text)
    monkeypatch.setenv("KUBECONFIG", str(file))
    with pytest.raises(UsageError, match=said):
        find_way()


def test_no_kubeconfig_at_all_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "nowhere"))
    with pytest.raises(UsageError, match=r"no way into a cluster: .*nowhere is not there"):
        find_way()


def test_a_credential_plugin_is_asked_again_when_its_credential_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plugin = tmp_path / "plugin"
    plugin.write_text(
        "#!/bin/sh\necho x >> calls\n"
        'token="t$(wc -l < calls)$SUFFIX"\n'
        'echo "{\\"status\\": {\\"token\\": \\"$token\\", \\"expirationTimestamp\\": \\"$UNTIL\\"}}"\n'
    )
    plugin.chmod(plugin.stat().st_mode | stat.S_IXUSR)
    monkeypatch.chdir(tmp_path)
    environment = [{"name": "SUFFIX", "value": "s"}, {"name": "UNTIL", "value": "2020-01-01T00:00:00Z"}]
    user = {"exec": {"command": "./plugin", "env": environment}}
    monkeypatch.setenv("KUBECONFIG", str(kubeconfig(tmp_path / "config", "http://a.example", user)))
    way = find_way()
    assert [way.headers()["Authorization"] for _ in range(2)] == ["Bearer t1s", "Bearer t2s"]
    environment[1]["value"] = "2100-01-01T00:00:00Z"
    kubeconfig(tmp_path / "config", "http://a.example", user)
    way = find_way()
    assert [way.headers()["Authorization"] for _ in range(2)] == ["Bearer t3s", "Bearer t3s"]
    assert way.headers(anew=True)["Authorization"] == "Bearer t4s"


def test_a_credential_plugin_that_fails_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    user = {"exec": {"command": "no-such-plugin", "installHint": "see example.org"}}
    monkeypatch.setenv("KUBECONFIG", str(kubeconfig(tmp_path / "config", "http://a.example", user)))
    with pytest.raises(UsageError, match=r"plugin no-such-plugin .* failed.*; see example.org"):
        find_way()


def test_certificates_that_are_none_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = base64.b64encode(b"no certificate").decode()
    file = kubeconfig(tmp_path / "config", "https://a.example", {}, **{"certificate-authority-data": data})
    monkeypatch.setenv("KUBECONFIG", str(file))
    with pytest.raises(UsageError, match="the certificates of context test"):
        find_way()


# What the cluster says


def test_consortia_come_in_pages(server: Server) -> None:
    server.answers[LIST] = [(200, listed(one("a"), **{"continue": "more"})), (200, listed(one("b")))]
    assert [each["metadata"]["name"] for each in asyncio.run(listing())] == ["a", "b"]
    assert [path for _, path, _ in server.asked] == [f"{LIST}?limit=500", f"{LIST}?limit=500&continue=more"]
    assert {token for _, _, token in server.asked} == {"Bearer t-1"}


@pytest.mark.parametrize(
    ("code", "body", "kind", "said"),
    [
        (
            403,
            status(
                403,
                'pcmoeconsortia.pcmoe.dev is forbidden: User "eve" cannot list resource "pcmoeconsortia" in API group '
                '"pcmoe.dev" in the namespace "hospital"',
            ),
            RefusedError,
            "RBAC refuses eve to list pcmoeconsortia.pcmoe.dev in namespace hospital; docs/cli.md has a Role",
        ),
        (401, status(401, "Unauthorized"), RefusedError, "doesn't take these credentials"),
        (404, b"404 page not found\n", NoCRDError, "the CRD is not installed"),
        (503, b"upstream connect error", NoAnswerError, "upstream connect error"),
        (500, status(500, "etcd is slow"), AccessError, "500: etcd is slow"),
        (200, b"<html>", AccessError, "is no JSON"),
    ],
)
def test_what_the_cluster_refuses_is_a_sentence(
    code: int, body: bytes, kind: type[OperatorError], said: str, server: Server
) -> None:
    server.answers[LIST] = [(code, body)]
    with pytest.raises(kind, match=said):
        asyncio.run(listing())


def test_every_kind_of_failure_has_its_exit_code() -> None:
    kinds = (AccessError, NotThereError, NoCRDError, NoAnswerError, RefusedError)
    assert [kind.exit_code for kind in kinds] == [70, 66, 66, 75, 77]


def test_a_token_that_was_refused_is_drawn_anew_once(server: Server) -> None:
    server.answers[LIST] = [(401, status(401, "Unauthorized")), (200, listed(one("a")))]
    assert len(asyncio.run(listing())) == 1


def test_a_name_that_is_not_there_brings_near_ones(server: Server) -> None:
    server.answers[LIST] = [(200, listed(one("hospitals"), one("banks")))]
    server.answers[f"{LIST}/hospitls"] = [(404, status(404, "not found", name="hospitls"))]
    with pytest.raises(
        NotThereError, match=r"no consortium hospitls in namespace hospital; near that: hospitals$"
    ):
        asyncio.run(reading("hospitls"))


def test_a_name_of_another_namespace_brings_that(server: Server) -> None:
    server.answers[LIST] = [(200, listed())]
    server.answers["/apis/pcmoe.dev/v1alpha1/pcmoeconsortia"] = [
        (200, listed({"metadata": {"name": "banks", "namespace": "finance"}}))
    ]
    server.answers[f"{LIST}/banks"] = [(404, status(404, "not found", name="banks"))]
    with pytest.raises(NotThereError, match=r"but in finance: say --namespace finance"):
        asyncio.run(reading("banks"))


def test_a_server_that_is_not_there_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECONFIG", str(kubeconfig(tmp_path / "config", "http://127.0.0.1:1", {})))
    with pytest.raises(NoAnswerError, match=r"http://127.0.0.1:1 can't be reached: "):
        asyncio.run(listing())


# Watches


def change(kind: str, of: Object) -> bytes:
    return json.dumps({"type": kind, "object": of}).encode() + b"\n"


def test_a_watch_that_ends_goes_on_and_a_forgotten_version_is_listed_anew(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pcmoe_operator.remote.following.BREATH_SECONDS", 0.05)
    gone = json.dumps({"type": "ERROR", "object": {"code": 410, "message": "too old"}}).encode()
    server.answers[LIST] = [
        (200, listed(one("a", "1"), one("b", "2"))),
        (200, change("MODIFIED", one("a", "8"))),
        (503, b"away"),
        (200, listed(one("a", "8"), one("b", "2"))),
        (200, gone),
        (200, listed(one("a", "9"))),
        (200, b""),
    ]

    async def told() -> list[Told]:
        found: list[Told] = []
        async with quickly() as access, aclosing(follow(access, CONSORTIA)) as source:
            async for each in source:
                found.append(each)
                if len(found) == 9:
                    break
        return found

    names = [
        (
            each.object["metadata"]["name"] + each.object["metadata"]["resourceVersion"]
            if each.object
            else each.lost[:4]
        )
        + ("-" if each.gone else "")
        for each in asyncio.run(told())
    ]
    assert names == ["a1", "b2", "", "a8", f"{LIST}: away"[:4], "", "b2-", "a9", ""]
    watches = [path for _, path, _ in server.asked if "watch=true" in path]
    assert ["resourceVersion=7" in watches[0], "resourceVersion=8" in watches[1]] == [True, True]


def test_a_watch_that_is_refused_ends(server: Server) -> None:
    server.answers[LIST] = [(200, listed(one("a"))), (403, status(403, "no"))]

    async def told() -> None:
        async with quickly() as access, aclosing(follow(access, CONSORTIA)) as source:
            async for _ in source:
                pass

    with pytest.raises(RefusedError):
        asyncio.run(told())

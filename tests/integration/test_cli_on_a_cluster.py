"""The commands that look after a consortium in a cluster, as a user starts them, with an operator at work.

One operator for all tests, and a consortium each. Pods are fake: a server in the place of the kubelets has their logs.
"""

import json
import os
import re
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.cluster import build
from tests.cluster.plane import ControlPlane
from tests.cluster.waiting import eventually
from tests.integration.logs_of_pods import KubeletLogs, kubelet_logs
from tests.integration.operating import NAMES, Operated, operated

ROOT = Path(__file__).parents[2]
PROGRAM = "from pcmoe_operator.cli import main; main()"
SECONDS = 90.0
"""Long enough for controllers and fake kubelets to find back to an API server that was started anew."""
pytestmark = pytest.mark.timeout(300)


class Here(Operated):
    """An operator that sees every consortium of the namespace, and its command line."""

    def settings(self) -> dict[str, Any]:
        """With a lease that outlives a restart of the API server: nobody here starts an operator again that lost it."""
        return {**super().settings(), "leaseSeconds": 60}

    def environment(self, kubeconfig: Path | None = None) -> dict[str, str]:
        return {
            **os.environ,
            "KUBECONFIG": str(kubeconfig or self.plane.kubeconfig),
            "PYTHONPATH": os.pathsep.join(sys.path),
            "TERM": "dumb",
        }

    def pcmoe(self, *words: str, kubeconfig: Path | None = None) -> subprocess.CompletedProcess[str]:
        """Run a command to its end."""
        return subprocess.run(
            [sys.executable, "-c", PROGRAM, *words, "--namespace", self.namespace],
            capture_output=True, text=True, timeout=SECONDS, env=self.environment(kubeconfig), check=False,
        )  # fmt: skip

    def shown(self, *words: str) -> Any:
        """What a command gives as JSON."""
        done = self.pcmoe(*words, "-o", "json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    @contextmanager
    def started(self, *words: str) -> Iterator[tuple[subprocess.Popen[str], Path]]:
        """A command that goes on, and where its output is."""
        out = self._folder / f"{words[0]}-{time.monotonic_ns()}.txt"
        with out.open("w") as file, subprocess.Popen(
            [sys.executable, "-c", PROGRAM, *words, "--namespace", self.namespace],
            stdout=file, stderr=subprocess.STDOUT, text=True, env=self.environment(),
        ) as process:  # fmt: skip
            try:
                yield process, out
            finally:
                process.kill()

    def pods_of(self, name: str) -> dict[str, dict[str, Any]]:
        """Running pods of a consortium by participant; the coordinator's is ''."""
        found = {}
        for pod in self.plane.pods(self.namespace, f"pcmoe.dev/consortium={name}"):
            if not pod["metadata"].get("deletionTimestamp") and pod["status"].get("phase") == "Running":
                found[pod["metadata"]["labels"].get("pcmoe.dev/participant", "")] = pod
        return found

    def running(self, name: str) -> dict[str, str]:
        """A new consortium whose pods all run: their names."""
        self.apply(name)
        eventually(f"pods of {name}", lambda: set(self.pods_of(name)) == {"", *NAMES}, within=SECONDS)
        return {who: pod["metadata"]["name"] for who, pod in self.pods_of(name).items()}

    def problems(self, name: str, kubeconfig: Path, file: Path) -> str:
        """What a bundle says that it lacks."""
        done = self.pcmoe("must-gather", name, "--output", str(file), kubeconfig=kubeconfig)
        assert done.returncode == 0, done.stderr
        with tarfile.open(file) as archive:
            return archive.extractfile(f"{file.name.removesuffix('.tar.gz')}/problems.txt").read().decode()  # type: ignore[union-attr]

    def fail(self, pod: str, code: int = 66) -> None:
        """Have a pod's container end so."""
        mark = f"pcmoe.dev/test-outcome=fail:{code}"
        self.plane.kubectl("annotate", "pod", pod, "-n", self.namespace, "--overwrite", mark)


@pytest.fixture(scope="module")
def here(own_plane: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Here]:
    folder = tmp_path_factory.mktemp("cli")
    with own_plane.namespace() as namespace, operated(own_plane, namespace, folder, Here) as found:
        yield found


@pytest.fixture(scope="module")
def logs(here: Here) -> Iterator[KubeletLogs]:
    with kubelet_logs(here.plane) as found:
        yield found


def says(out: Path, *texts: str) -> None:
    """Wait until a file has these texts."""
    eventually(
        f"{texts} in {out.name}", lambda: all(text in out.read_text() for text in texts), within=SECONDS
    )


def test_all_are_listed_and_one_is_told_whole_with_what_is_wrong_first(here: Here) -> None:
    pods = here.running("wrong")
    here.apply("asleep", suspend=True)
    here.fail(pods["lyon"])
    eventually("failure", lambda: here.status("wrong").get("state") == "Failed", within=SECONDS)
    eventually("sleep", lambda: here.status("asleep").get("state") == "Suspended", within=SECONDS)
    lines = here.pcmoe("status").stdout.splitlines()
    assert lines[0].split("   ")[0] == "NAME"
    rows = {line.split()[0]: line for line in lines[1:]}
    assert "something that it must have is missing" in rows["wrong"]
    assert "pcmoe resume asleep" in rows["asleep"]
    one = here.pcmoe("status", "wrong").stdout.splitlines()
    assert re.match(
        r"wrong: lyon: something that it must have is missing.*; provide what is named, then raise", one[0]
    )
    assert one[1].startswith("Failed, round 0 of 4, 0 of 2 ready, attempt 1, age ")
    assert [line.split()[0] for line in one[3:6]] == ["PARTICIPANT", "berlin", "lyon"]
    shown = here.shown("status", "wrong")
    assert (shown["verdict"]["level"], shown["verdict"]["end"]) == ("wrong", "Failed")
    everywhere = json.loads(here.pcmoe("status", "-A", "-o", "json").stdout)["consortia"]
    assert {"wrong", "asleep"} <= {each["name"] for each in everywhere if each["namespace"] == here.namespace}
    gone = here.pcmoe("status", "wrang")
    assert (gone.returncode, "near that: wrong" in gone.stderr) == (66, True)
    assert here.pcmoe("watch", "wrong").returncode == 1


def test_suspend_and_resume_say_what_happens_and_wait_for_it(here: Here) -> None:
    here.running("paused")
    done = here.pcmoe("suspend", "paused", "--wait")
    assert done.returncode == 0, done.stderr
    assert "told to stop and end within 30 s" in done.stdout.splitlines()[0]
    assert not set(here.pods_of("paused")) & set(NAMES)
    assert here.shown("suspend", "paused")["changed"] is False
    done = here.pcmoe("resume", "paused", "--wait")
    assert done.returncode == 0, done.stderr
    assert set(NAMES) <= set(here.pods_of("paused"))
    late = here.pcmoe("suspend", "paused", "--wait", "--timeout", "0.1")
    assert (late.returncode, "not within 0.1 s" in late.stderr) == (75, True)


def test_logs_are_one_and_go_on_with_whoever_takes_a_pod_s_place(here: Here, logs: KubeletLogs) -> None:
    pods = here.running("told")
    for who, text in (("berlin", "first"), ("lyon", "second"), ("", "third"), ("lyon", "fourth")):
        logs.say(pods[who], text)
    assert here.pcmoe("logs", "told").stdout.splitlines() == [
        "berlin first", "lyon second", "coordinator third", "lyon fourth",
    ]  # fmt: skip
    assert here.pcmoe("logs", "told", "lyon", "--tail", "1").stdout == "lyon fourth\n"
    wrong = here.pcmoe("logs", "told", "lion")
    assert (wrong.returncode, "no participant lion" in wrong.stderr) == (64, True)
    with here.started("logs", "told", "lyon", "berlin", "--follow") as (process, out):
        says(out, "lyon fourth")
        logs.say(pods["lyon"], "before its end")
        logs.end(pods["lyon"])
        logs.say(pods["lyon"], "after a restart")
        says(out, "lyon before its end", "lyon after a restart")
        here.plane.kubectl("delete", "pod", pods["lyon"], "-n", here.namespace, "--wait=false")
        eventually(
            "another pod",
            lambda: (
                here.pods_of("told").get("lyon", {}).get("metadata", {}).get("name")
                not in (None, pods["lyon"])
            ),
            within=SECONDS,
        )
        logs.say(here.pods_of("told")["lyon"]["metadata"]["name"], "in its place")
        says(out, "lyon in its place")
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 130
        lines = out.read_text().splitlines()
    assert [line for line in lines if line.startswith(("berlin", "lyon"))] == [
        "berlin first", "lyon second", "lyon fourth", "lyon before its end", "lyon after a restart",
        "lyon in its place",
    ]  # fmt: skip


def test_a_watch_outlives_a_restart_of_the_api_server_and_ends_with_the_consortium(here: Here) -> None:
    pods = here.running("watched")
    with here.started("watch", "watched") as (process, out):
        says(out, "2 of 2 ready")
        here.plane.restart_apiserver()
        says(out, "it is tried again every second", "the API server answers again")
        here.fail(pods["berlin"])
        assert process.wait(SECONDS) == 1
        assert "watched: berlin: something that it must have is missing" in out.read_text()


def test_a_bundle_has_all_but_secrets(here: Here, logs: KubeletLogs, tmp_path: Path) -> None:
    pods = here.running("bundled")
    logs.say(pods["lyon"], "a line of lyon's, with Bearer abcdefghijklmnopqrstuvwxyz")
    file = tmp_path / "bundle.tar.gz"
    done = here.pcmoe("must-gather", "bundled", "--output", str(file), "--operator-namespace", here.namespace)
    assert done.returncode == 0, done.stderr
    with tarfile.open(file) as archive:
        texts = {each.name.partition("/")[2]: archive.extractfile(each).read().decode() for each in archive}  # type: ignore[union-attr]
    assert {
        "consortium.json",
        "jobs.json",
        "pods.json",
        "configmaps.json",
        "secrets.json",
        "events.json",
    } <= set(texts)
    assert "a line of lyon's" in texts[f"pods/{pods['lyon']}/log.txt"]
    assert {each["name"] for each in json.loads(texts["secrets.json"])} >= {
        "bundled.lyon.tls",
        "bundled.ca",
    }
    whole = "".join(texts.values())
    for secret in here.plane.read("secrets", "-n", here.namespace)["items"]:
        assert not [
            key for key, value in secret.get("data", {}).items() if key.endswith("key") and value in whole
        ]
    assert "PRIVATE KEY" not in whole
    assert "abcdefghijklmnopqrstuvwxyz" not in whole


def test_the_roles_of_the_documentation_suffice(here: Here, logs: KubeletLogs, tmp_path: Path) -> None:
    pods = here.running("allowed")
    logs.say(pods["lyon"], "said")
    text = (ROOT / "docs" / "cli.md").read_text()
    roles = [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)]
    kubeconfigs = {}
    for role in roles:
        name = role["metadata"]["name"]
        here.plane.apply(role, namespace=here.namespace)
        here.plane.kubectl("create", "serviceaccount", name, "-n", here.namespace)
        bound = f"--serviceaccount={here.namespace}:{name}"
        here.plane.kubectl("create", "rolebinding", name, f"--role={name}", bound, "-n", here.namespace)
        kubeconfigs[name] = here.plane.kubeconfig_for(f"system:serviceaccount:{here.namespace}:{name}")
    reader, keeper = kubeconfigs["pcmoe-reader"], kubeconfigs["pcmoe-keeper"]
    for command in (["status"], ["status", "allowed"], ["logs", "allowed"]):
        done = here.pcmoe(*command, kubeconfig=reader)
        assert (done.returncode, done.stderr) == (0, "")
    no = here.pcmoe("suspend", "allowed", kubeconfig=reader)
    assert (no.returncode, "to patch pcmoeconsortia.pcmoe.dev" in no.stderr) == (77, True)
    assert here.pcmoe("suspend", "allowed", "--wait", kubeconfig=keeper).returncode == 0
    who = f"system:serviceaccount:{here.namespace}"
    problems = here.problems("allowed", reader, tmp_path / "reader.tar.gz")
    for resource in ("secrets", "nodes", "deployments in pcmoe-system"):
        assert f"{resource}: RBAC refuses {who}:pcmoe-reader to list" in problems
    problems = here.problems("allowed", kubeconfigs["pcmoe-gatherer"], tmp_path / "gatherer.tar.gz")
    refused = {line.partition(":")[0] for line in problems.splitlines() if "RBAC" in line}
    assert {each for each in refused if "pcmoe-system" not in each} == {"secrets", "nodes"}


def test_kubectl_has_it_as_a_plugin_and_completes_names(here: Here, tmp_path: Path) -> None:
    here.apply("completed", suspend=True)
    for name, function in (("kubectl-pcmoe", "main"), ("kubectl_complete-pcmoe", "complete")):
        script = tmp_path / name
        script.write_text(f"#!{sys.executable}\nfrom pcmoe_operator.cli import {function}\n{function}()\n")
        script.chmod(0o700)
    environment = here.environment() | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    kubectl = str(build.ensure("kubectl")["kubectl"])

    def run(*words: str) -> str:
        done = subprocess.run(
            [kubectl, *words], capture_output=True, text=True, timeout=SECONDS, env=environment, check=True
        )
        return done.stdout

    assert run("pcmoe", "status", "--help").startswith("Usage: kubectl pcmoe status")
    assert "completed" in run("pcmoe", "status", "-n", here.namespace)
    offered = run("__complete", "pcmoe", "status", "--namespace", here.namespace, "comp").splitlines()
    assert offered[:2] == ["completed", ":4"]
    offered = run("__complete", "pcmoe", "logs", "--namespace", here.namespace, "completed", "").splitlines()
    assert offered[:3] == ["berlin", "lyon", "coordinator"]
    assert run("__complete", "pcmoe", "status", "--context", "none", "comp").splitlines()[0] == ":4"

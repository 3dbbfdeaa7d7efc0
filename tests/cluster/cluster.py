"""A cluster as tests use it: kubectl, namespaces, and acting as others. Ours or one that was there before."""

import base64
import json
import os
import subprocess
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.cluster import build
from tests.cluster.audit import Request
from tests.cluster.authority import write_kubeconfig
from tests.cluster.errors import ClusterError, KubectlError
from tests.cluster.reading import Reader
from tests.cluster.waiting import eventually

KUBECTL_SECONDS = 60.0
SERVICE_ACCOUNT = "system:serviceaccount:"


class Cluster:
    """Any cluster that a kubeconfig with all rights leads to.

    Args:
        kubeconfig: That kubeconfig.
        folder: For kubeconfigs and caches; must exist.
    """

    def __init__(self, kubeconfig: Path, folder: Path) -> None:
        self.kubeconfig = kubeconfig
        self.folder = folder
        self._kubectl = build.ensure("kubectl")["kubectl"]
        self._reader = Reader(kubeconfig)

    def kubectl(
        self,
        *args: str | Path,
        given: str | Mapping[str, Any] | None = None,
        kubeconfig: Path | None = None,
        seconds: float = KUBECTL_SECONDS,
    ) -> str:
        """Run kubectl and return what it prints.

        Args:
            args: Its command line.
            given: Its standard input, for `-f -`: text, or an object that is sent as JSON.
            kubeconfig: Whom to act as; the admin if None.
            seconds: Deadline.

        Raises:
            KubectlError: it ended with an error, or did not end in time.
        """
        command = [str(self._kubectl), f"--cache-dir={self.folder / 'kubectl-cache'}", *map(str, args)]
        shown = " ".join(["kubectl", *map(str, args)])
        direct = f"{os.environ.get('NO_PROXY', '')},127.0.0.1,10.0.0.0/8".lstrip(",")
        environment = {"KUBECONFIG": str(kubeconfig or self.kubeconfig), "NO_PROXY": direct}
        try:
            done = subprocess.run(
                command,
                input=given if given is None or isinstance(given, str) else json.dumps(given),
                env={**os.environ, **environment},
                stdin=subprocess.DEVNULL if given is None else None,
                capture_output=True,
                text=True,
                timeout=seconds,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise KubectlError(shown, -1, f"it still ran after {seconds:g} s") from error
        if done.returncode:
            raise KubectlError(shown, done.returncode, done.stderr.strip(), done.stdout)
        return done.stdout

    def read(self, *args: str | Path, kubeconfig: Path | None = None) -> Any:
        """What `kubectl get ARGS -o json` prints, as Python has it."""
        if kubeconfig is None and (found := self._reader.read([str(each) for each in args])) is not None:
            return found
        return json.loads(self.kubectl("get", *args, "-o", "json", kubeconfig=kubeconfig))

    def apply(self, *manifests: Path | str | Mapping[str, Any], namespace: str | None = None) -> None:
        """Apply files, YAML texts or objects by server-side apply.

        Raises:
            KubectlError: the API server refused one; those before it are applied.
        """
        where = () if namespace is None else ("--namespace", namespace)
        for manifest in manifests:
            text = manifest.read_text() if isinstance(manifest, Path) else manifest
            self.kubectl("apply", "--server-side", "--force-conflicts", *where, "-f", "-", given=text)

    def define(self, crd: Mapping[str, Any]) -> None:
        """Apply a CustomResourceDefinition and wait until its objects are served.

        `kubectl wait` takes one without conditions, as a new one is, for an error.
        """
        self.apply(crd)

        def established() -> bool:
            conditions = self.read("crd", crd["metadata"]["name"]).get("status", {}).get("conditions") or []
            return any(each["type"] == "Established" and each["status"] == "True" for each in conditions)

        eventually(f"{crd['metadata']['name']} served", established, within=30)

    @contextmanager
    def namespace(self, prefix: str = "test") -> Iterator[str]:
        """A namespace with a name of its own; at the end it is deleted, and its pods hold no capacity any more."""
        name = f"{prefix}-{uuid.uuid4().hex[:8]}"
        self.kubectl("create", "namespace", name)
        try:
            # Without it the first pods are refused, and a Job tries again only after 10 s.
            account = ("serviceaccounts", "--namespace", name, "--field-selector", "metadata.name=default")
            eventually(f"service account of {name}", lambda: self.read(*account)["items"], within=30)
            yield name
        finally:
            self.kubectl("delete", "namespace", name, "--wait=false")
            # Nothing new can be made in it from now on; what is there would be deleted only after 5 s.
            self.kubectl("delete", "pods", "--all", "--namespace", name, "--wait=false")
            eventually(f"end of the pods of {name}", lambda: not self.pods(name), within=60)

    def pods(self, namespace: str, selector: str = "") -> list[dict[str, Any]]:
        """The pods of a namespace, those with these labels."""
        found = self.read("pods", "--namespace", namespace, "--selector", selector)
        return list(found["items"])

    def kubeconfig_for(self, user: str, groups: Sequence[str] = ()) -> Path:
        """A kubeconfig for somebody else. Who they are is proved to the API server, not only said, so that every client
        takes it. Here only service accounts, `system:serviceaccount:NAMESPACE:NAME`, by a token of an hour.

        Raises:
            ClusterError: another kind of user; this cluster's certificate authority isn't ours.
        """
        if not user.startswith(SERVICE_ACCOUNT) or groups:
            raise ClusterError(
                f"{user} in {list(groups)}: only service accounts can be acted as in {self.kubeconfig}"
            )
        namespace, name = user.removeprefix(SERVICE_ACCOUNT).split(":")
        token = self.kubectl("create", "token", name, "--namespace", namespace, "--duration", "1h").strip()
        server, authority = self._address()
        return write_kubeconfig(self._fresh("kubeconfig"), server, authority, {"token": token})

    def requests(self, user: str | None = None) -> list[Request]:
        """What the API server was asked for by a user, or by anybody.

        Raises:
            ClusterError: this cluster's audit log isn't ours.
        """
        raise ClusterError(f"the audit log of {self.kubeconfig} can't be read (asked for {user})")

    def _fresh(self, suffix: str) -> Path:
        """A name for a new file."""
        return self.folder / f"{uuid.uuid4().hex[:8]}.{suffix}"

    def _address(self) -> tuple[str, Path]:
        """The API server's address, and a file with the certificates it is known by."""
        config = json.loads(self.kubectl("config", "view", "--minify", "--flatten", "--raw", "-o", "json"))
        cluster = config["clusters"][0]["cluster"]
        authority = self._fresh("crt")
        authority.write_bytes(base64.b64decode(cluster.get("certificate-authority-data", "")))
        return str(cluster["server"]), authority

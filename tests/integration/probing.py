"""An operator that is asked what it says of itself, and acts as whom a test wants."""

import re
import signal
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.cluster.plane import ControlPlane
from tests.cluster.processes import free_ports
from tests.cluster.waiting import eventually
from tests.integration.operating import CRD, Operated


class Probed(Operated):
    """An operator of which the probes can be read, with settings and a kubeconfig of its own."""

    def __init__(
        self,
        plane: ControlPlane,
        namespace: str,
        folder: Path,
        kubeconfig: Path | None = None,
        **settings: Any,
    ) -> None:
        folder.mkdir(exist_ok=True)
        super().__init__(plane, namespace, folder)
        self.kubeconfig = kubeconfig or plane.kubeconfig
        self._more = {"metricsPort": free_ports(1)[0], **settings}

    def settings(self) -> dict[str, Any]:
        """What the operator is told."""
        return {**super().settings(), **self._more}

    def get(self, path: str) -> tuple[int, str]:
        """(status, text) of a page; (0, "") if nobody listens yet."""
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(f"http://127.0.0.1:{self._more['metricsPort']}{path}", timeout=5) as answer:
                return int(answer.status), answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()
        except OSError:
            return 0, ""

    def metric(self, series: str) -> float:
        """The value of a series of `/metrics`, named with its labels; nan if it isn't there."""
        found = re.search(rf"^{re.escape(series)} (\S+)$", self.get("/metrics")[1], re.MULTILINE)
        return float(found[1]) if found else float("nan")

    def watches(self, resource: str) -> bool:
        """Whether it has opened a watch of this resource."""
        series = f'pcmoe_operator_api_requests_total{{code="200",resource="{resource}",verb="watch"}}'
        return self.metric(series) >= 1

    def until_leading(self, within: float = 20) -> None:
        """Wait until it leads."""
        eventually("it leads", lambda: self.metric("pcmoe_operator_leader") == 1, within=within)

    def told(self, line: str) -> bool:
        """Whether its log has a line with these words."""
        return self.log.exists() and line in self.log.read_text()

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        assert self._process is not None
        self._process.send_signal(number)

    @property
    def running(self) -> bool:
        """Whether the process is there."""
        return self._process is not None and self._process.poll() is None

    def ended(self, within: float) -> int:
        """Wait for its end; the exit code."""
        assert self._process is not None
        return self._process.wait(within)


@contextmanager
def running(operator: Probed) -> Iterator[Probed]:
    """The CRD installed and the operator started, until it is killed."""
    operator.plane.define(CRD)
    operator.start()
    try:
        yield operator
    finally:
        operator.kill()
        operator.answers.close()


def account(plane: ControlPlane, namespace: str, name: str) -> Path:
    """A kubeconfig of a service account with all rights."""
    plane.kubectl("create", "serviceaccount", name, "-n", namespace)
    subject = f"--serviceaccount={namespace}:{name}"
    plane.kubectl(
        "create", "clusterrolebinding", f"{namespace}-{name}", "--clusterrole=cluster-admin", subject
    )
    return plane.kubeconfig_for(user_of(namespace, name))


def user_of(namespace: str, name: str) -> str:
    """A service account as the API server calls it."""
    return f"system:serviceaccount:{namespace}:{name}"

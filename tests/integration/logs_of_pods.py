"""A server that answers for logs as a kubelet does, so that the API server has some to give."""

import json
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

from tests.cluster.plane import ControlPlane


class KubeletLogs:
    """Logs by pod: what was said, and whether the container goes on."""

    def __init__(self, plane: ControlPlane) -> None:
        self._lines: dict[str, list[tuple[datetime, str]]] = {}
        self._over: dict[str, int] = {}
        """How often a container of the pod has ended."""
        self._changed = threading.Condition()
        kubelet = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                address = urlsplit(self.path)
                asked = {key: values[0] for key, values in parse_qs(address.query).items()}
                self.send_response(200)
                self.end_headers()
                kubelet._write(self, address.path.split("/")[3], asked)

            def log_message(self, *_: object) -> None:
                """Nothing."""

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(plane.folder / "server.crt", plane.folder / "server.key")
        self._http.socket = context.wrap_socket(self._http.socket, server_side=True)
        threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def port(self) -> int:
        """Where it listens."""
        return self._http.server_port

    def say(self, pod: str, text: str) -> None:
        """A line of a pod's log, now."""
        with self._changed:
            self._lines.setdefault(pod, []).append((datetime.now(UTC), text))
            self._changed.notify_all()

    def end(self, pod: str) -> None:
        """The container ends: whoever follows its log has come to the end."""
        with self._changed:
            self._over[pod] = self._over.get(pod, 0) + 1
            self._changed.notify_all()

    def close(self) -> None:
        """Stop."""
        self._http.shutdown()
        self._http.server_close()

    def _write(self, answer: BaseHTTPRequestHandler, pod: str, asked: dict[str, str]) -> None:
        since = datetime.fromisoformat(asked["sinceTime"]) if "sinceTime" in asked else None
        with self._changed:
            done, life = 0, self._over.get(pod, 0)
            if "tailLines" in asked:
                done = max(0, len(self._lines.get(pod, [])) - int(asked["tailLines"]))
        while True:
            with self._changed:
                new = self._lines.get(pod, [])[done:]
                over = asked.get("follow") != "true" or self._over.get(pod, 0) > life
                if not new and not over:
                    self._changed.wait(1)  # whoever follows may go away; then the write below says so
                    continue
            done += len(new)
            for moment, text in new:
                if since is None or moment >= since:
                    answer.wfile.write(f"{moment.isoformat()} {text}\n".encode())
            answer.wfile.flush()
            if over:
                return


@contextmanager
def kubelet_logs(plane: ControlPlane) -> Iterator[KubeletLogs]:
    """Such a server, in the place of every node's kubelet."""
    found = KubeletLogs(plane)
    patch = json.dumps({"status": {"daemonEndpoints": {"kubeletEndpoint": {"Port": found.port}}}})
    for node in plane.read("nodes")["items"]:
        name = node["metadata"]["name"]
        plane.kubectl("patch", "node", name, "--subresource=status", "--type=merge", "-p", patch)
    try:
        yield found
    finally:
        found.close()

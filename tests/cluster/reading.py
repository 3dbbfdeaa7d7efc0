"""Reading objects without starting kubectl, which costs a tenth of a second of a core each time that a test looks."""

import json
import threading
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from pathlib import Path
from typing import Any

from kubernetes import client, config
from urllib3.exceptions import HTTPError

SECONDS = 10.0
PATHS: Mapping[str, str] = {
    "pcmoe": "/apis/pcmoe.dev/v1alpha1/{}/pcmoeconsortia",
    "pods": "/api/v1/{}/pods",
    "jobs": "/apis/batch/v1/{}/jobs",
    "secrets": "/api/v1/{}/secrets",
    "serviceaccounts": "/api/v1/{}/serviceaccounts",
    "lease": "/apis/coordination.k8s.io/v1/{}/leases",
    "nodes": "/api/v1/nodes",
    "crd": "/apis/apiextensions.k8s.io/v1/customresourcedefinitions",
}
"""What tests look at again and again, as they call it."""
FLAGS: Mapping[str, str] = {
    "-n": "namespace",
    "--namespace": "namespace",
    "-l": "labelSelector",
    "--selector": "labelSelector",
    "--field-selector": "fieldSelector",
}


class Reader:
    """Asks an API server as a kubeconfig says."""

    def __init__(self, kubeconfig: Path) -> None:
        self._kubeconfig = kubeconfig
        self._api: client.ApiClient | None = None
        self._lock = threading.Lock()

    def read(self, args: Sequence[str]) -> Any | None:
        """What `kubectl get ARGS -o json` would print; None if kubectl has to be asked, also for what went wrong."""
        asked = _asked(args)
        if asked is None:
            return None
        path, query = asked
        try:
            with self._lock:
                if self._api is None:
                    direct = client.Configuration()
                    direct.proxy = None
                    self._api = config.new_client_from_config(
                        str(self._kubeconfig), client_configuration=direct
                    )
            answer = self._api.rest_client.pool_manager.request(
                "GET",
                self._api.configuration.host + path,
                fields=query,
                headers=self._headers(),
                timeout=SECONDS,
                retries=False,
            )
        except HTTPError:
            return None
        return json.loads(answer.data) if answer.status == HTTPStatus.OK else None

    def _headers(self) -> dict[str, str]:
        assert self._api is not None
        token = self._api.configuration.get_api_key_with_prefix("BearerToken")
        return {"Accept": "application/json"} | ({"Authorization": token} if token else {})


def _asked(args: Sequence[str]) -> tuple[str, dict[str, str]] | None:
    """(path, query) of a `kubectl get`, if it is a plain one."""
    words, query, rest = [], {}, list(args)
    while rest:
        word = rest.pop(0)
        if word in FLAGS and rest:
            query[FLAGS[word]] = rest.pop(0)
        elif word.startswith("-"):
            return None
        else:
            words.append(word)
    if not 1 <= len(words) <= 2 or words[0] not in PATHS:
        return None
    path, namespace = PATHS[words[0]], query.pop("namespace", None)
    if ("{}" in path) != (namespace is not None):
        return None
    if namespace is not None:
        path = path.format(f"namespaces/{namespace}")
    return "/".join([path, *words[1:]]), {key: value for key, value in query.items() if value}

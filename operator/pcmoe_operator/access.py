"""The way into a cluster: where it is, whom to trust there, and who we are; found by the Kubernetes client.

The requests are aiohttp's, those of watches and all others: the client on top of it would cost half as much again.
"""

from importlib.metadata import version
from typing import Any, Self
from urllib.request import getproxies_environment

import aiohttp
from kubernetes.aio.client import Configuration
from kubernetes.aio.client.rest import RESTClientObject
from kubernetes.aio.config import ConfigException, load_incluster_config, load_kube_config
from yarl import URL

from pcmoe_operator.errors import UsageError

AGENT = f"pcmoe-operator/{version('pcmoe')}"
"""As an audit log shows it."""


class Access:
    """Where a cluster is, and sessions of requests to it."""

    def __init__(self, configuration: Configuration) -> None:
        self._configuration = configuration
        self._tls = RESTClientObject(configuration).ssl_context
        self.server: str = configuration.host.rstrip("/")
        self._place = _place(URL(self.server))

    @classmethod
    async def found(cls, kubeconfig: str | None = None) -> Self:
        """The way into the cluster this runs in, or into a kubeconfig's; `UsageError` where there is neither."""
        configuration = Configuration()
        try:
            if kubeconfig is None:
                load_incluster_config(client_configuration=configuration)  # type: ignore[no-untyped-call]
            else:
                await load_kube_config(  # type: ignore[no-untyped-call]
                    config_file=kubeconfig, client_configuration=configuration
                )
            return cls(configuration)
        except (ConfigException, OSError) as error:
            where = kubeconfig or "this pod's service account"
            raise UsageError(f"{where}: no way into a cluster: {error}") from error

    def session(self, *outer: aiohttp.ClientMiddlewareType, **more: Any) -> aiohttp.ClientSession:
        """A session whose requests say who we are, each with the token of its time, and to this cluster alone.

        `outer` stands around that.
        """
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, ssl=self._tls),
            headers={"User-Agent": AGENT},
            proxy=self._configuration.proxy,
            # Where the environment names no proxy, no request need look for one, nor read .netrc.
            trust_env=bool(getproxies_environment()),
            middlewares=(*outer, self.authorize),
            **more,
        )

    async def authorize(
        self, request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
    ) -> aiohttp.ClientResponse:
        """A session's middleware: the token of the hour, for this cluster alone.

        Raises:
            aiohttp.ClientError: there is no token, or the request is for another server.
        """
        if _place(request.url) != self._place:  # a watch follows redirects
            raise aiohttp.ClientError(f"our token is not for another server: {request.url.origin()}")
        try:
            token = await self._configuration.get_api_key_with_prefix("BearerToken")
        except ConfigException as error:  # as good as no answer: the next attempt reads it anew
            raise aiohttp.ClientError(f"no token: {error}") from error
        if token:
            request.headers["Authorization"] = token
        if self._configuration.tls_server_name:
            request.server_hostname = self._configuration.tls_server_name
        return await handler(request)


def _place(url: URL) -> tuple[str, str, int | None]:
    """Where an address leads, however it is written: in any case, with or without the port that goes without saying."""
    return url.scheme, (url.raw_host or "").lower(), url.port

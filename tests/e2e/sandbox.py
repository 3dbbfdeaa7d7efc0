"""What `unshare` can't do: a network, folders and control groups that a real node may have for itself.

`make e2e` runs pytest in namespaces of its own for processes, mounts and the network. So whatever happens, when pytest
ends the kernel ends every container, and takes away every mount, link and iptables chain. What lies outside of
namespaces, the control groups, is removed here: at the end, or by the next run.
"""

import contextlib
import os
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ADDRESS = "10.200.0.1"
"""The machine's address: not loopback, which no Service may lead to."""
POD_RANGE = "10.244.0.0/16"
COVERED = ("/run", "/var/lib/cni", "/var/log/containers")
"""Where containerd, CNI and kubelet write whatever they are told."""
CONTROL_GROUPS = Path("/sys/fs/cgroup")
PREFIX = "pcmoe-e2e-"
SHARES = 4096
"""The four pods that train count as four processes."""


class NotAloneError(Exception):
    """This process shares namespaces with the rest of the machine."""


def enter() -> None:
    """Set up the network and folders of these namespaces.

    Raises:
        NotAloneError: they are not ours.
    """
    if os.getpid() != 1 or len(_links()) > 1:
        raise NotAloneError("not in namespaces of its own: run `make e2e`")
    for folder in COVERED:
        Path(folder).mkdir(parents=True, exist_ok=True)
        subprocess.run(["mount", "-t", "tmpfs", "tmpfs", folder], check=True, timeout=30)
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True, timeout=30)
    subprocess.run(["ip", "address", "add", f"{ADDRESS}/32", "dev", "lo"], check=True, timeout=30)
    Path("/proc/sys/net/ipv4/ip_forward").write_text("1")


def _links() -> list[str]:
    names = (line.split(":")[0].strip() for line in Path("/proc/net/dev").read_text().splitlines()[2:])
    return [
        name for name in names if not name.startswith(("tunl", "sit", "gre", "erspan", "ip6", "ip_", "teql"))
    ]


@contextmanager
def control_group() -> Iterator[str]:
    """A control group for all of a node's pods, in every hierarchy; its path as kubelet's `cgroupRoot`."""
    for stale in _groups(PREFIX):
        _remove(stale)
    name = f"{PREFIX}{uuid.uuid4().hex[:8]}"
    for hierarchy in _hierarchies():
        made = hierarchy / name
        made.mkdir()
        for file in (
            "cpuset.cpus",
            "cpuset.mems",
        ):  # version 1 leaves them empty, and then nothing may run there
            if (made / file).exists() and not (made / file).read_text().strip():
                (made / file).write_text((hierarchy / file).read_text())
        if (made / "cpu.shares").exists():  # all pods together would count as one process of the machine
            (made / "cpu.shares").write_text(str(SHARES))
    try:
        yield f"/{name}"
    finally:
        for group in _groups(name):
            _remove(group)


def _hierarchies() -> list[Path]:
    if (CONTROL_GROUPS / "cgroup.controllers").exists():  # version 2: one
        return [CONTROL_GROUPS]
    return [path for path in CONTROL_GROUPS.iterdir() if path.is_dir() and not path.is_symlink()]


def _groups(prefix: str) -> list[Path]:
    return [path for hierarchy in _hierarchies() for path in hierarchy.glob(f"{prefix}*")]


def _remove(group: Path) -> None:
    """From the leaves up; one that has processes is another run's, and stays."""
    for folder, _, _ in os.walk(group, topdown=False):
        with contextlib.suppress(OSError):
            os.rmdir(folder)

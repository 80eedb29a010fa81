"""Namespaces of its own for the whole run: network, mounts and processes.

The program starts itself again under `unshare`. Whatever it makes (links, addresses, named namespaces, small disks,
processes) lives in there and is gone when its first process ends, however it ends: the kernel cleans up, so that a
crash leaves nothing behind and the host's own network is never touched. Where user namespaces are allowed, no
privileges are needed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from typing import NoReturn

# The shell stays as the first process and buries the orphans: agents of killed nodes end up as its children.
_FIRST = 'mount -t tmpfs -o size=1g dim-chaos /run && mkdir /run/netns && "$@"; code=$?; exit $code'
_TRIAL = (
    "sh",
    "-ec",
    "ip link add name b0 type bridge; ip netns add n0; ip link add name v0 type veth peer name v1 netns n0; ip netns del n0",
)


def command(*argv: str) -> list[str]:
    """``argv`` as it runs inside namespaces of its own."""
    user = () if os.geteuid() == 0 else ("--user", "--map-root-user")
    return ["unshare", *user, "--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c", _FIRST, "sh", *argv]


def why_not() -> str | None:
    """Why such namespaces cannot be made here; None if they can."""
    for needed in ("unshare", "nsenter", "ip"):
        if shutil.which(needed) is None:
            return f"the program {needed} is not installed (Debian: iproute2, util-linux)"
    try:
        done = subprocess.run(command(*_TRIAL), capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired) as e:
        return f"namespaces cannot be made: {e}"
    return None if done.returncode == 0 else f"namespaces cannot be made here: {(done.stderr or done.stdout).strip()}"


def enter(argv: Sequence[str], environ: Mapping[str, str]) -> NoReturn:
    """Replaces this process by ``argv`` inside: whoever ends it ends all."""
    inside = command(*argv)
    os.execvpe(inside[0], inside, dict(environ))

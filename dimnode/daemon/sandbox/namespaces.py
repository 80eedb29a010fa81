"""A network without interfaces and a user without rights outside: Linux namespaces. See user_namespaces(7)."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from dimnode.daemon.sandbox import linux

NEW_IPC, NEW_USER, NEW_NET = 0x08000000, 0x10000000, 0x40000000


def enter() -> None:
    """For a process with one thread. Raises `OSError` where the system does not allow it; then nothing has changed."""
    uid, gid = os.getuid(), os.getgid()
    linux.unshare(NEW_USER | NEW_NET | NEW_IPC)
    # without a map everything is owned by nobody, which changes names, not rights
    with contextlib.suppress(OSError):
        _write("setgroups", "deny")
        _write("uid_map", f"{uid} {uid} 1")
        _write("gid_map", f"{gid} {gid} 1")


def _write(name: str, text: str) -> None:
    (Path("/proc/self") / name).write_text(text)


def likely() -> bool:
    """Whether `enter` would probably work; changes nothing."""
    if _number("/proc/sys/user/max_user_namespaces") == 0 or _number("/proc/sys/kernel/unprivileged_userns_clone") == 0:
        return False
    return os.geteuid() == 0 or _number("/proc/sys/kernel/apparmor_restrict_unprivileged_userns") != 1


def _number(path: str) -> int | None:
    try:
        return int(Path(path).read_text())
    except (OSError, ValueError):
        return None

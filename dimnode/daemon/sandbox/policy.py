"""What one agent may see and use. Pure, but for looking at which folders there are."""

from __future__ import annotations

import importlib.util
import os
import sys
import sysconfig
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec

from dimnode.daemon.sandbox.report import Mode

SYSTEM_LIBRARIES = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib", "/usr/local/lib64")
SYSTEM_FILES = (
    "/etc/ld.so.cache", "/etc/localtime", "/usr/share/zoneinfo", "/dev/null", "/dev/zero", "/dev/urandom",
    "/proc/cpuinfo", "/proc/meminfo", "/proc/self/maps", "/proc/self/status", "/proc/self/statm", "/sys/devices/system/cpu",
    "/sys/devices/system/node",
)  # fmt: skip
"""Read by language runtimes and mathematics libraries to learn about the processor and themselves."""
OWN_PACKAGES = ("dimnode", "loaders")


class AgentPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """Paths are absolute; those that are not there are left out when the policy is applied."""

    mode: Mode = "best"
    read: tuple[str, ...] = ()
    scratch: str = ""
    """The private folder. It can be written to if ``file_bytes`` is not 0."""
    devices: tuple[str, ...] = ()
    """Device files that the framework's accelerator needs."""
    memory: int
    """Bytes, RLIMIT_DATA."""
    file_bytes: int = 0
    """Largest file that may be written."""
    open_files: int = 256
    processes: int = 256
    """Threads, where the system counts them by agent."""


def library_folders() -> tuple[str, ...]:
    """Where the interpreter, its packages, DIM's own code and shared libraries lie."""
    paths = sysconfig.get_paths()
    mine = [paths[k] for k in ("stdlib", "platstdlib", "purelib", "platlib")]
    mine += [p for p in sys.path if p and Path(p).name in ("site-packages", "dist-packages", "lib-dynload")]
    mine += [_folder_of(name) for name in OWN_PACKAGES]
    shared = sysconfig.get_config_var("LIBDIR")
    if shared and str(shared).startswith(sys.base_prefix):
        mine.append(str(shared))
    return tuple(dict.fromkeys(os.path.realpath(p) for p in (*mine, *SYSTEM_LIBRARIES) if p))


def _folder_of(package: str) -> str:
    spec = importlib.util.find_spec(package)
    return os.path.dirname(spec.origin) if spec is not None and spec.origin else ""


def devices(loaders: Iterable[str]) -> tuple[str, ...]:
    """Device files of NVIDIA cards, for frameworks that may use them. (Written after NVIDIA's documentation.)"""
    if not set(loaders) & {"onnx", "pt2", "torch", "torchscript", "safetensors"}:
        return ()
    folder = Path("/dev")
    return tuple(sorted(str(p) for pattern in ("nvidia*", "dri/render*") for p in folder.glob(pattern)))


def without(roots: Sequence[str], private: Path) -> tuple[str, ...]:
    """``roots`` such that nothing in ``private`` can be reached: a root around it is replaced by its other children.

    A home may lie inside a virtual environment or a checkout; Landlock knows no exceptions, only what is allowed."""
    hidden = private.resolve()
    out: list[str] = []
    for root in roots:
        path = Path(root)
        if path == hidden or hidden in path.parents:
            continue
        if path in hidden.parents:
            out += without(sorted(str(p) for p in path.iterdir()), hidden)
        else:
            out.append(root)
    return tuple(out)

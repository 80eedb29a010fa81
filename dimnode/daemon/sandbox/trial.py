"""Goes into an agent's sandbox on this machine, tries what must not work, and tells: ``python -m dimnode.daemon.sandbox.trial``.

Prints one JSON document: ``report`` (a `Confinement`), ``open`` (what worked and must not).
"""

from __future__ import annotations

import os
import socket
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import msgspec

from dimnode.daemon.sandbox.confine import confine
from dimnode.daemon.sandbox.policy import AgentPolicy, library_folders
from dimnode.daemon.sandbox.report import Confinement

MEMORY = 2 << 30


class Trial(msgspec.Struct, frozen=True):
    report: Confinement
    open: tuple[str, ...]


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="dim-trial-") as folder:
        secret = Path(folder) / "secret"
        secret.write_text("secret")
        child = os.fork()
        if not child:
            _try(folder, secret)
        os.waitpid(child, 0)


def _try(folder: str, secret: Path) -> None:
    scratch = os.path.join(folder, "agent")
    os.mkdir(scratch)
    os.chdir(scratch)
    report = confine(AgentPolicy(memory=MEMORY, read=library_folders(), scratch=scratch))
    attempts: dict[str, Callable[[], object]] = {
        "files": secret.read_text,
        "network": lambda: socket.socket().close(),
        "processes": _child,
        "privileges": lambda: os.chmod(secret, 0o644),
    }
    done = tuple(name for name, attempt in attempts.items() if _worked(attempt))
    sys.stdout.write(msgspec.json.encode(Trial(report, done)).decode() + "\n")
    sys.stdout.flush()
    os._exit(0)


def _child() -> None:
    if not os.fork():
        os._exit(0)


def _worked(attempt: Callable[[], object]) -> bool:
    try:
        attempt()
    except OSError:
        return False
    return True


if __name__ == "__main__":
    main()

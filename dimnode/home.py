"""A node's home: the folder that holds everything it must remember.

``bootstrap.toml`` (settings), ``identity.key``, ``names.key`` (what it publishes under), ``swarm.key`` and ``swarm.name`` (the swarm it belongs
to), ``operator.id`` (whose lists of voters count) and, in one home, ``operator.key``, ``control.json`` (how the command line reaches the running node), ``lock``; the parts keep blocks,
journal, cabinets and models in folders of their own.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import secrets
import stat
import tempfile
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec

from dimnode.errors import FailedPrecondition, InvalidArgument, Unavailable

MAX_SOCKET_PATH = 100
"""Bytes. The kernel's limit is 104 (macOS) or 108 (Linux), its closing zero included."""
_KEY = re.compile(r"[0-9a-f]{64}")


class Control(msgspec.Struct, frozen=True, kw_only=True):
    """How to reach the running node: gRPC targets of its Unix sockets."""

    node: str
    orchestrator: str
    pid: int


def home_path(flag: str | None, environ: Mapping[str, str]) -> Path:
    """``--home``, else ``DIM_HOME``, else the platform's user data folder."""
    named = flag or environ.get("DIM_HOME")
    if named:
        return Path(named).expanduser().absolute()
    from platformdirs import user_data_path

    return user_data_path("dimnode", appauthor=False)


@dataclass(frozen=True, slots=True)
class Home:
    path: Path

    def create(self) -> None:
        """Make the folder, readable by its owner only. Raises `FailedPrecondition`."""
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as e:
            raise FailedPrecondition(f"the home cannot be made: {e.strerror}", hint="Name another folder with --home.") from e

    def exists(self) -> bool:
        return self.path.is_dir()

    @property
    def config_path(self) -> Path:
        return self.path / "bootstrap.toml"

    @property
    def identity_path(self) -> Path:
        return self.path / "identity.key"

    @property
    def names_key_path(self) -> Path:
        """What this node publishes the swarm's state under, while it holds a seat. Another key than the node's own, which
        no other program ever has to know."""
        return self.path / "names.key"

    @property
    def swarm_key_path(self) -> Path:
        return self.path / "swarm.key"

    @property
    def swarm_name_path(self) -> Path:
        return self.path / "swarm.name"

    @property
    def operator_key_path(self) -> Path:
        """The key that signs the electorate: in one home of the swarm."""
        return self.path / "operator.key"

    @property
    def operator_path(self) -> Path:
        return self.path / "operator.id"

    @property
    def control_path(self) -> Path:
        return self.path / "control.json"

    @property
    def lock_path(self) -> Path:
        return self.path / "lock"

    def folder(self, name: str) -> Path:
        """A part's own folder in the home, made if it is not there."""
        path = self.path / name
        path.mkdir(mode=0o700, exist_ok=True)
        return path

    # --- the swarm -------------------------------------------------------------------------------

    def was_started(self) -> bool:
        """Whether a node ever was ready here. Until then an invite may still choose the swarm."""
        return (self.path / "started").exists()

    def mark_started(self) -> None:
        (self.path / "started").touch(mode=0o600)

    def swarm_key(self) -> str | None:
        """64 hexadecimal digits, or None if the home has none yet. Raises `InvalidArgument`."""
        return read_key(self.swarm_key_path) if self.swarm_key_path.exists() else None

    def swarm_name(self) -> str | None:
        try:
            return self.swarm_name_path.read_text(encoding="utf-8").strip() or None
        except FileNotFoundError:
            return None

    def set_swarm(self, name: str, key: str) -> None:
        """Durable when it returns; the key is readable by its owner only."""
        self.write(self.swarm_key_path, key + "\n", mode=0o600)
        self.write(self.swarm_name_path, name + "\n", mode=0o600)

    def operator(self) -> str | None:
        """The peer id of the operator's key, if this home knows it."""
        try:
            return self.operator_path.read_text(encoding="ascii").strip() or None
        except (FileNotFoundError, UnicodeDecodeError):
            return None

    def set_operator(self, peer_id: str | None) -> None:
        """Durable when it returns. None: it is not known any more."""
        if peer_id is None:
            self.operator_path.unlink(missing_ok=True)
        else:
            self.write(self.operator_path, peer_id + "\n", mode=0o600)

    # --- one node at a time ----------------------------------------------------------------------

    @contextmanager
    def lock(self) -> Generator[None, None, None]:
        """Held while a node runs here. Raises `FailedPrecondition` if another one does."""
        fd = os.open(self.lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise FailedPrecondition(
                    "a node is already running in this home", hint="Stop it, or start this one with another --home."
                ) from None
            yield
        finally:
            os.close(fd)

    # --- how the command line finds the node -----------------------------------------------------

    def socket_path(self, name: str) -> Path:
        """Where the socket ``name`` goes: in the home, or in a short private folder if the path would
        be too long for the kernel. The folder is made. Raises `FailedPrecondition`."""
        path = self.path / f"{name}.sock"
        if len(os.fsencode(path)) <= MAX_SOCKET_PATH:
            return path
        digest = hashlib.sha256(os.fsencode(self.path)).hexdigest()[:12]
        folder = Path(tempfile.gettempdir()) / f"dim-{os.getuid()}-{digest}"
        folder.mkdir(mode=0o700, exist_ok=True)
        info = folder.lstat()
        if not stat.S_ISDIR(info.st_mode) or info.st_uid != os.getuid() or stat.S_IMODE(info.st_mode) & 0o077:
            raise FailedPrecondition("the folder for sockets belongs to somebody else", hint="Choose a --home with a shorter path.")
        return folder / f"{name}.sock"

    def write_control(self, control: Control) -> None:
        self.write(self.control_path, msgspec.json.encode(control).decode() + "\n", mode=0o600)

    def clear_control(self) -> None:
        self.control_path.unlink(missing_ok=True)

    def control(self) -> Control:
        """Raises `Unavailable` if no node runs here."""
        try:
            found = msgspec.json.decode(self.control_path.read_bytes(), type=Control)
            os.kill(found.pid, 0)
        except PermissionError:
            raise Unavailable("the node of this home belongs to another user") from None
        except (OSError, msgspec.DecodeError, OverflowError):
            raise Unavailable("no node is running in this home", hint="Start one: dimnode start") from None
        return found

    def write(self, path: Path, text: str, *, mode: int = 0o600) -> None:
        """Replace a file whole: a reader sees the old content or the new, also after a crash."""
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        try:
            with os.fdopen(fd, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def new_key() -> str:
    """A fresh swarm key: 32 random bytes, hexadecimal."""
    return secrets.token_hex(32)


def read_key(path: Path) -> str:
    """The swarm key in a file. Raises `InvalidArgument`."""
    try:
        text = path.read_text(encoding="ascii").strip().lower()
    except (OSError, UnicodeDecodeError) as e:
        raise InvalidArgument(f"the swarm key file {path.name} cannot be read: {type(e).__name__}") from e
    if not _KEY.fullmatch(text):
        raise InvalidArgument(f"the swarm key file {path.name} must hold 64 hexadecimal digits")
    return text

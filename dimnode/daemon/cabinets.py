"""Data cabinets: named data of this node. Where the data lies and what its owner allows is kept in one file
in the node's home; the data itself is never copied and never uploaded."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import trio

from dimnode.daemon import cabinet_files, cabinet_policy
from dimnode.daemon.cabinet_files import Array, Content
from dimnode.daemon.cabinet_inputs import to_inputs
from dimnode.daemon.cabinet_policy import Policy
from dimnode.daemon.files import write_atomically
from dimnode.domain.model import ModelManifest
from dimnode.domain.node import CabinetInfo
from dimnode.domain.task import CabinetQuery
from dimnode.errors import FieldProblem, InvalidArgument, NotFound

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._\-]{0,127}", re.ASCII)
FILE = "cabinets.json"


class Stored(msgspec.Struct, frozen=True, kw_only=True):
    """One cabinet as it is written down."""

    path: str
    info: CabinetInfo
    policy: Policy
    commitment: str
    mtime_ns: int
    size: int


@dataclass(frozen=True, slots=True)
class CabinetRead:
    """What a task gets."""

    inputs: dict[str, Array]
    rows: int
    commitment: str
    policy: Policy


class Cabinets:
    def __init__(self, folder: Path, *, cache_bytes: int, on_change: Callable[[], None] = lambda: None) -> None:
        self._file = folder / FILE
        self._cache_bytes = cache_bytes
        self._on_change = on_change
        self._cabinets: dict[str, Stored] = {}
        self._content: dict[str, tuple[Stored, Content]] = {}  # least recently used first
        self._lock = trio.Lock()

    async def open(self) -> None:
        """Reads what was registered before."""

        def load() -> dict[str, Stored]:
            return msgspec.json.decode(self._file.read_bytes(), type=dict[str, Stored]) if self._file.exists() else {}

        self._cabinets = await trio.to_thread.run_sync(load)

    def infos(self) -> tuple[CabinetInfo, ...]:
        return tuple(msgspec.structs.replace(c.info, sandbox=c.policy.sandbox) for c in self._cabinets.values())

    def policy(self, name: str) -> Policy:
        """Raises `NotFound`."""
        return self._get(name).policy

    async def add(self, name: str, path: Path, policy: Mapping[str, Any] | None) -> CabinetInfo:
        """Registers, or registers anew. Raises `InvalidArgument`, `NotFound`."""
        if not _NAME.fullmatch(name):
            rule = "must be letters, digits, dot, dash or underscore, at most 128, and not client_data"
            raise InvalidArgument(f"name {rule}", fields=(FieldProblem("name", rule),))
        if name == "client_data" or re.fullmatch(r"step_[0-9]+_output", name):
            raise InvalidArgument(f"{name} has a meaning of its own in jobs", fields=(FieldProblem("name", "is reserved"),))
        allowed = cabinet_policy.parse(policy)
        async with self._lock:
            stored, content = await trio.to_thread.run_sync(_register, name, path, allowed)
            await self._keep(name, stored, content)
        self._on_change()
        return stored.info

    async def read(self, name: str, manifest: ModelManifest, query: CabinetQuery, given: Collection[str] = ()) -> CabinetRead:
        """The model's inputs from a cabinet; those ``given`` come from elsewhere. A file that has changed is
        read and committed to anew. Raises `NotFound`, `InvalidArgument`."""
        async with self._lock:
            stored, content = await self._fresh(name)
        inputs = await trio.to_thread.run_sync(to_inputs, content, manifest.inputs, query, given)
        return CabinetRead(inputs, stored.info.rows, stored.commitment, stored.policy)

    async def _fresh(self, name: str) -> tuple[Stored, Content]:
        stored = self._get(name)
        state = await trio.to_thread.run_sync(_state, Path(stored.path))
        cached = self._content.pop(name, None)
        if cached is not None and cached[0] is stored and state == (stored.mtime_ns, stored.size):
            self._content[name] = cached
            return cached
        fresh, content = await trio.to_thread.run_sync(_register, name, Path(stored.path), stored.policy)
        if fresh == stored:
            self._remember(name, stored, content)
            return stored, content
        await self._keep(name, fresh, content)
        self._on_change()
        return fresh, content

    async def _keep(self, name: str, stored: Stored, content: Content) -> None:
        cabinets = {**self._cabinets, name: stored}
        await trio.to_thread.run_sync(write_atomically, self._file, msgspec.json.format(msgspec.json.encode(cabinets)))
        self._cabinets = cabinets
        self._remember(name, stored, content)

    def _remember(self, name: str, stored: Stored, content: Content) -> None:
        self._content.pop(name, None)
        self._content[name] = (stored, content)
        while self._content and sum(_nbytes(c) for _, c in self._content.values()) > self._cache_bytes:
            del self._content[next(iter(self._content))]

    def _get(self, name: str) -> Stored:
        found = self._cabinets.get(name)
        if found is None:
            raise NotFound(f"this node has no cabinet {name!r}")
        return found


def _nbytes(content: Content) -> int:
    """Text is guessed at 64 bytes each."""
    return sum(64 * a.size if a.dtype.kind == "O" else a.nbytes for a in content.values())


def _state(path: Path) -> tuple[int, int]:
    """(mtime in ns, size). Raises `NotFound`."""
    try:
        stat = path.stat()
    except OSError as e:
        raise NotFound("the file of the cabinet is gone", hint="Register the cabinet again.") from e
    return stat.st_mtime_ns, stat.st_size


def _register(name: str, path: Path, policy: Policy) -> tuple[Stored, Content]:
    path = path.expanduser().resolve()
    kind = cabinet_files.recognise(path)
    mtime_ns, size = _state(path)
    content = cabinet_files.read(path, kind)
    info = CabinetInfo(name=name, rows=cabinet_files.rows(content), columns=cabinet_files.schema(content), format=kind)
    commitment = cabinet_files.commitment(content)
    return Stored(path=str(path), info=info, policy=policy, commitment=commitment, mtime_ns=mtime_ns, size=size), content

"""What the machine has to give, and whether that is enough for a task."""

from __future__ import annotations

import logging
import platform
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
import trio

from dimnode.core.needs import GPU_CONTEXT
from dimnode.daemon import gpus
from dimnode.daemon.gpus import Gpu
from dimnode.daemon.grant import Grant
from dimnode.domain.node import Capabilities
from dimnode.errors import ResourceExhausted

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Snapshot:
    memory_total: int
    memory_free: int
    cpu: float
    """0..1 over all cores, since the last look."""
    disk_free: int
    gpus: tuple[Gpu, ...] = ()


class NoRoom(ResourceExhausted):
    """What the machine has is given away. Nothing was tried: it may work elsewhere, or later."""


def take_snapshot(folder: Path) -> Snapshot:
    """Without cards. Blocks for some milliseconds: call it in a thread."""
    memory = psutil.virtual_memory()
    return Snapshot(memory.total, available_memory(memory.available), psutil.cpu_percent(None) / 100, psutil.disk_usage(str(folder)).free)


def look_around(folder: Path, before: tuple[Gpu, ...]) -> Snapshot:
    """With cards, of which those ``before`` are taken to be here still if asking again takes long. Blocks as `take_snapshot`."""
    cards = before if before and sys.platform == "darwin" else gpus.look()
    return replace(take_snapshot(folder), gpus=cards)


Look = Callable[[Path, tuple[Gpu, ...]], Snapshot]


def available_memory(machine: int) -> int:
    """Bytes that this process and its children may still take: what the machine has, or less under a limit of its own (a container, a
    systemd unit). Blocks for some microseconds. See the kernel's cgroup-v2, "Memory Interface Files"."""
    try:
        here = Path("/proc/self/cgroup").read_text().rpartition("0::")[2].partition("\n")[0].lstrip("/")
        folder = Path("/sys/fs/cgroup") / here
        most = (folder / "memory.max").read_text().strip()
        if most == "max":
            return machine
        return max(0, min(machine, int(most) - int((folder / "memory.current").read_text())))
    except (OSError, ValueError):
        return machine


def refusal(snapshot: Snapshot, *, memory: int, disk: int, min_memory: int, min_disk: int) -> str | None:
    """Why work that needs so many more bytes of memory and disk is not taken now; None if it is."""
    if snapshot.memory_free - memory < min_memory:
        return (
            f"not enough free memory: {_mib(memory)} MiB needed beside a reserve of {_mib(min_memory)}, {_mib(snapshot.memory_free)} free"
        )
    if snapshot.disk_free - disk < min_disk:
        return f"not enough free disk: {_mib(disk)} MiB needed beside a reserve of {_mib(min_disk)}, {_mib(snapshot.disk_free)} free"
    return None


def _mib(n: int) -> int:
    return n >> 20


def capabilities(
    loaders: tuple[str, ...], sandbox: tuple[str, ...] = (), gpus: tuple[Gpu, ...] = (), gpu_formats: tuple[str, ...] = ()
) -> Capabilities:
    return Capabilities(
        sandbox=sandbox,
        gpus=tuple(g.name for g in gpus),
        gpu_memory=tuple(g.memory_total for g in gpus),
        gpu_formats=gpu_formats,
        os=platform.system().lower(),
        arch=platform.machine().lower(),
        cpus=psutil.cpu_count() or 1,
        memory=psutil.virtual_memory().total,
        loaders=loaders,
    )


class Reservations:
    """What was granted and no look at the machine has seen whole yet: a grant counts until the look after its load has ended, however long
    that takes (importing a framework and reading a large model outlast several looks)."""

    def __init__(self) -> None:
        self._loading: list[_Reservation] = []
        self._loaded: list[_Reservation] = []

    @property
    def memory(self) -> int:
        """Bytes."""
        return sum(r.memory for r in (*self._loading, *self._loaded))

    def on_card(self, index: int) -> int:
        """Bytes of this card."""
        return sum(r.grant.gpu_memory + GPU_CONTEXT for r in (*self._loading, *self._loaded) if r.grant.gpu == index)

    def add(self, grant: Grant, memory: int) -> None:
        """``memory``: bytes that it will probably take, which is less than it may."""
        self._loading.append(_Reservation(grant, memory))

    def loaded(self, grant: Grant) -> None:
        """Or given up. ``grant``: the very one that was added."""
        self._loaded += [r for r in self._loading if r.grant is grant]
        self._loading = [r for r in self._loading if r.grant is not grant]

    def looked(self) -> None:
        self._loaded.clear()


@dataclass(frozen=True, slots=True)
class _Reservation:
    grant: Grant
    memory: int


class ResourceMonitor:
    """Keeps a recent `Snapshot`; the looking is done in a thread."""

    def __init__(
        self,
        folder: Path,
        *,
        interval: float,
        on_change: Callable[[], None] = lambda: None,
        cards: tuple[Gpu, ...] = (),
        look: Look = look_around,
    ) -> None:
        """``cards``: those that are known already."""
        self._folder = folder
        self._interval = interval
        self._on_change = on_change
        self._look_around = look
        self._latest: Snapshot | None = None
        self._cards = cards

    @property
    def cards(self) -> tuple[Gpu, ...]:
        """Those of the last look. One that failed has none: the next asks again."""
        return self._cards

    @property
    def latest(self) -> Snapshot:
        """Valid once `run` has started."""
        assert self._latest is not None
        return self._latest

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        self._latest = await self._look()
        task_status.started()
        while True:
            await trio.sleep(self._interval)
            try:
                self._latest = await self._look()
            except OSError as e:  # the node's disk may be out of reach for a while: what was seen last holds
                _log.warning("memory and disk could not be looked at", extra={"reason": type(e).__name__})
                continue
            self._on_change()

    async def _look(self) -> Snapshot:
        seen = await trio.to_thread.run_sync(self._look_around, self._folder, self._cards)
        if len(seen.gpus) != len(self._cards):
            _log.warning("the number of graphics processors has changed", extra={"before": len(self._cards), "now": len(seen.gpus)})
        self._cards = seen.gpus
        return seen

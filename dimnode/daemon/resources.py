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

from dimnode.daemon import gpus
from dimnode.daemon.gpus import Gpu
from dimnode.domain.node import Capabilities

MEMORY_FACTOR = 3
"""A loaded model takes about so many times its file: the file while it is read, weights, working memory."""
MEMORY_BASE = {
    "onnx": 150 << 20, "coreml": 150 << 20, "mlx": 100 << 20, "mlx-lm": 200 << 20, "builtin": 150 << 20,
    "pt2": 400 << 20, "torchscript": 400 << 20, "safetensors": 400 << 20,
}  # fmt: skip
"""Bytes of an agent before its model."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Snapshot:
    memory_total: int
    memory_free: int
    cpu: float
    """0..1 over all cores, since the last look."""
    disk_free: int
    gpus: tuple[Gpu, ...] = ()


def take_snapshot(folder: Path) -> Snapshot:
    """Blocks for some milliseconds: call it in a thread."""
    memory = psutil.virtual_memory()
    return Snapshot(memory.total, available_memory(memory.available), psutil.cpu_percent(None) / 100, psutil.disk_usage(str(folder)).free)


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


def estimate_memory(format: str, size: int) -> int:
    """Bytes that an agent with a model of ``size`` bytes will need."""
    return MEMORY_BASE.get(format, 200 << 20) + MEMORY_FACTOR * size


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


def capabilities(loaders: tuple[str, ...], sandbox: tuple[str, ...] = (), gpus: tuple[Gpu, ...] = ()) -> Capabilities:
    return Capabilities(
        sandbox=sandbox,
        gpus=tuple(g.name for g in gpus),
        os=platform.system().lower(),
        arch=platform.machine().lower(),
        cpus=psutil.cpu_count() or 1,
        memory=psutil.virtual_memory().total,
        loaders=loaders,
    )


class Reservations:
    """Memory promised to what is just starting, which no look at the machine has seen yet. It counts until the second look."""

    def __init__(self) -> None:
        self._before = self._now = 0

    @property
    def total(self) -> int:
        return self._before + self._now

    def add(self, nbytes: int) -> None:
        self._now += nbytes

    def looked(self) -> None:
        self._before, self._now = self._now, 0


class ResourceMonitor:
    """Keeps a recent `Snapshot`; the looking is done in a thread."""

    def __init__(self, folder: Path, *, interval: float, on_change: Callable[[], None] = lambda: None, cards: tuple[Gpu, ...] = ()) -> None:
        self._folder = folder
        self._interval = interval
        self._on_change = on_change
        self._latest: Snapshot | None = None
        self._gpus = cards

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
        """Cards come and go with the machine only: which there are is asked once, their memory each time."""
        if self._gpus and sys.platform != "darwin":
            self._gpus = await trio.to_thread.run_sync(gpus.look)
        return replace(await trio.to_thread.run_sync(take_snapshot, self._folder), gpus=self._gpus)

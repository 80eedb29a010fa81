"""How much memory processes hold, and how many threads. Blocks for some microseconds a process."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from dimnode.core.needs import GPU_CONTEXT
from dimnode.daemon.gpus import Gpu
from dimnode.daemon.grant import Grant

LINUX = sys.platform.startswith("linux")


@dataclass(frozen=True, slots=True)
class Usage:
    memory: int
    """Bytes: its own pages and shared memory; on Linux without those of files."""
    threads: int


def usage(pids: Iterable[int]) -> dict[int, Usage]:
    """Processes that are gone are left out."""
    return {pid: found for pid in pids if (found := (_linux(pid) if LINUX else _any_system(pid))) is not None}


def too_much_of_a_card(grant: Grant, pid: int, cards: Sequence[Gpu]) -> bool:
    """Whether a process holds more of the card that it was granted than it was granted of it, as far as the card's driver tells."""
    if grant.gpu is None or not grant.gpu_memory or grant.gpu >= len(cards):
        return False
    return dict(cards[grant.gpu].processes).get(pid, 0) > grant.gpu_memory + GPU_CONTEXT


def _linux(pid: int) -> Usage | None:
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return None
    fields = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)

    def number(name: str) -> int:
        return int(fields.get(name, "0").split()[0])

    return Usage((number("RssAnon") + number("RssShmem")) * 1024, number("Threads"))


def _any_system(pid: int) -> Usage | None:
    try:
        process = psutil.Process(pid)
        return Usage(process.memory_info().rss, process.num_threads())
    except psutil.Error:
        return None

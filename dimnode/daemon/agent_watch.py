"""Ends agents that hold more than they may: what the system's limits do not count (shared memory, and everything on systems that limit
little) is found here."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import psutil
import trio

from dimnode.core.needs import GPU_CONTEXT
from dimnode.daemon.gpus import Gpu
from dimnode.daemon.grant import Grant
from dimnode.daemon.settings import AgentSettings

LINUX = sys.platform.startswith("linux")


@dataclass(frozen=True, slots=True)
class Usage:
    memory: int
    """Bytes: its own pages and shared memory; on Linux without those of files."""
    threads: int


class Watched(Protocol):
    """An agent, as far as what it takes goes."""

    pid: int
    grant: Grant
    used: int
    """Bytes of memory, as of the last look."""

    def stop_for(self, reason: str) -> None: ...


async def watch(settings: AgentSettings, agents: Callable[[], Sequence[Watched]]) -> None:
    """Until cancelled."""
    while True:
        await trio.sleep(settings.watch_interval)
        living = agents()
        if not living:
            continue
        used = await trio.to_thread.run_sync(usage, [a.pid for a in living])
        for agent in living:
            look = used.get(agent.pid)
            if look is None:
                continue
            agent.used = look.memory
            if look.memory > agent.grant.memory:
                agent.stop_for(f"the agent used more than its {agent.grant.memory >> 20} MiB of memory and was ended")
            elif look.threads > settings.most_threads:
                agent.stop_for(f"the agent started more than {settings.most_threads} threads and was ended")


def stop_who_takes_too_much_of_a_card(agents: Iterable[Watched], cards: Sequence[Gpu]) -> None:
    for agent in agents:
        if too_much_of_a_card(agent.grant, agent.pid, cards):
            agent.stop_for(f"the agent used more than its {agent.grant.gpu_memory >> 20} MiB of GPU memory and was ended")


def usage(pids: Iterable[int]) -> dict[int, Usage]:
    """Processes that are gone are left out. Blocks for some microseconds a process."""
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

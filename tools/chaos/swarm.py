"""The nodes: real processes, each in a namespace of its own with a small disk of its own for its home."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from dimnode.errors import DimError
from dimnode.home import Home
from dimnode.rpc.clients import ClientSettings, NodeClient
from tests.support.models import UNTRIED
from tests.support.real_swarm import RealNode, wait_until
from tools.chaos.network import Network, address

PORT = 50051
LOOK_EVERY = 0.1
"""Seconds between two looks at a node: what the times to a new orchestrator are exact to."""
MEMORY_EVERY = 10.0
LEFT = 3
WORK_LEFT = "could not be handed over before this node left"
"""Exit code and last words of a node that stopped with jobs or records left that no other node has taken."""
_LOOK = ClientSettings(timeout=1.0, retry_for=0.0, backoff_max=0.2)
DISK = 4 << 30
"""Bytes of each node's disk: above what a node wants to have free before it takes work. It takes memory for what is on it only."""
FILL_TRIES = 20


@dataclass
class FireNode(RealNode):
    number: int = 0
    wanted: bool = False
    """Whether it should be running: if it is not, it died by itself."""
    ails: str = ""
    """The fault that it suffers now."""
    cpu: float = 0.0
    """Seconds of processor time of its earlier lives."""
    cpu_now: float = 0.0
    rss: int = 0
    """Most bytes of memory that node and agents had."""
    memory: list[tuple[float, int]] = field(default_factory=list[tuple[float, int]])
    """(monotonic time, bytes of the node without its agents) of this life, every `MEMORY_EVERY` seconds."""
    lives: list[list[tuple[float, int]]] = field(default_factory=list[list[tuple[float, int]]])
    """The same of all its lives, the present one last."""

    @property
    def log_path(self) -> Path:
        return self.home.path.with_suffix(".log")

    def __post_init__(self) -> None:
        self.lives.append(self.memory)

    def longest_life(self) -> list[tuple[float, int]]:
        """The memory line of its longest life."""
        return max(self.lives, key=lambda line: line[-1][0] - line[0][0] if line else 0.0)

    def measure(self) -> None:
        if not self.running:
            return
        with contextlib.suppress(psutil.Error):
            node = psutil.Process(self.pid)
            now = time.monotonic()
            if not self.memory or now - self.memory[-1][0] >= MEMORY_EVERY:
                self.memory.append((now, node.memory_info().rss))
            whole = [node, *self.agents()]
            self.rss = max(self.rss, sum(p.memory_info().rss for p in whole))
            self.cpu_now = sum(sum(p.cpu_times()[:2]) for p in whole)

    def ended(self) -> None:
        self.cpu, self.cpu_now = self.cpu + self.cpu_now, 0.0
        self.memory = []
        self.lives.append(self.memory)

    def fill_disk(self) -> None:
        """The disk shrinks to what is on it: the same for the node as one filled by others, without using memory for it."""
        for _ in range(FILL_TRIES):  # the node writes meanwhile, and a disk cannot be smaller than what is on it
            stat = os.statvfs(self.home.path)
            if self._resize((stat.f_blocks - stat.f_bfree) * stat.f_frsize).returncode == 0:
                return
        raise RuntimeError(f"the disk of {self.name} grows faster than it can be filled")

    def free_disk(self) -> None:
        self._resize(DISK).check_returncode()

    def _resize(self, size: int) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(["mount", "-o", f"remount,size={size}", str(self.home.path)], capture_output=True, check=False)


@dataclass(frozen=True, slots=True)
class Seen:
    """A change of what one node says of itself: whether its client API is open."""

    at: float
    node: int
    serves: bool


@dataclass
class FireSwarm:
    folder: Path
    """Inside the run's own mounts, so that it goes with them."""
    network: Network
    settings: Mapping[str, str]
    nodes: dict[int, FireNode] = field(default_factory=dict)
    seen: list[Seen] = field(default_factory=list)
    troubles: list[str] = field(default_factory=list)
    """What no fault explains: nodes that died, did not start or did not stop."""
    stops_with_work_left: int = 0
    """While another node ailed, too."""
    _invite: tuple[str, ...] = ()
    _over: threading.Event = field(default_factory=threading.Event)
    _threads: list[threading.Thread] = field(default_factory=list)

    @property
    def targets(self) -> list[str]:
        return [f"{address(n)}:{PORT}" for n in self.nodes]

    def start(self, models: Mapping[str, Path]) -> None:
        """All nodes up, in sight of each other, each with all models."""
        numbers = list(self.network.members[1:])
        for n in numbers:
            self._make(n)
        first = self.nodes[numbers[0]]
        self.up(first)
        with first.node_client() as client:
            self._invite = (client.invite(),)
        for n in numbers[1:]:
            self.nodes[n].join = self._invite
            self.up(self.nodes[n], ready=False)
        for n in numbers[1:]:
            self.nodes[n].wait_ready()
        self.wait_formed()
        for node in self.nodes.values():
            with node.node_client() as client:
                for name, path in models.items():
                    client.add_model_file(str(path), id=name, form=UNTRIED if name == "slow" else "")
        for node in self.nodes.values():
            self._threads += [threading.Thread(target=self._look, args=(node,), daemon=True)]
        self._threads.append(threading.Thread(target=self._measure, daemon=True))
        for thread in self._threads:
            thread.start()

    def _make(self, n: int) -> None:
        name, at = f"node{n}", address(n)
        home = Home(self.folder / name)
        home.create()
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK}", f"dim-{name}", str(home.path)], check=True)
        own = {
            "swarm.mdns": "false",
            "p2p.listen": f"/ip4/{at}/tcp/4101",
            "p2p.redial_max": "2",
            "orchestrator.listen": f"{at}:{PORT}",
            "daemon.listen": f"{at}:50052",
            "daemon.slots": "2",
            "auth.mode": "open",
            **self.settings,
        }
        self.nodes[n] = FireNode(name, home, own, prefix=self.network.enter(n), number=n)

    # --- life

    def up(self, node: FireNode, *, ready: bool = True) -> None:
        """Starts it; that it does not come up is noted."""
        try:
            node.start(ready=ready, defaults={})
        except AssertionError as e:
            self.trouble(f"{node.name} did not start: {e}")
        node.wanted = True

    def kill(self, node: FireNode) -> None:
        node.wanted = False
        node.kill()
        node.ended()

    def stop(self, node: FireNode) -> None:
        """A stop on request. Whether all its work could go elsewhere depends on the others: while one of them ails, what is
        left (code 3) is noted without blame."""
        node.wanted = False
        beset = self._others_ail(node)
        try:
            code, took = node.stop()
        except AssertionError as e:
            self.trouble(str(e))
            node.kill()
        else:
            if code == LEFT and WORK_LEFT in node.log(5) and (beset or self._others_ail(node)):
                self.stops_with_work_left += 1
            elif code:
                self.trouble(f"{node.name} ended with {code} after {took:.1f} s of a clean stop")
        node.ended()

    def _others_ail(self, node: FireNode) -> bool:
        return any(other.ails for other in self.nodes.values() if other is not node)

    def end(self) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(5)
        for node in self.nodes.values():
            node.end()

    def trouble(self, what: str) -> None:
        print(f"trouble: {what}", flush=True)
        self.troubles.append(what)

    # --- what can be seen

    def serving(self) -> frozenset[int]:
        """Nodes whose client API is open, by the last look."""
        return holders(self.seen, float("inf"))

    def wait_formed(self, within: float = 60.0) -> None:
        names = [n.name for n in self.nodes.values()]
        for node in self.nodes.values():
            wait_until(lambda n=node: n.sees(*names), f"{node.name} sees {names}\n{node.log(5)}", within)

    def _look(self, node: FireNode) -> None:
        """Looks at one node again and again; starts it anew if it died by itself."""
        pid, client, served = -1, None, False
        while not self._over.wait(LOOK_EVERY):
            if node.wanted and not node.running and node.process is not None:
                self.trouble(f"{node.name} died by itself with {node.process.returncode}:\n{node.log(20)}")
                node.ended()
                self.up(node, ready=False)
            serves = False
            try:
                if node.running:
                    if client is None or pid != node.pid:
                        pid, client = node.pid, NodeClient(node.home.control().node, _LOOK)
                    serves = bool(client.status()["grpc"])
            except DimError:
                if pid != node.pid or not node.running:
                    client = None
            if serves != served:
                served = serves
                self.seen.append(Seen(time.monotonic(), node.number, serves))

    def _measure(self) -> None:
        while not self._over.wait(1.0):
            for node in self.nodes.values():
                node.measure()

    def tracebacks(self) -> list[str]:
        return [node.name for node in self.nodes.values() if node.crashed()]

    def keep(self, where: Path) -> None:
        """Copies homes and logs to a folder that outlives the run, instead of what is there. Sockets stay behind."""

        def left_out(folder: str, found: list[str]) -> list[str]:
            return [f for f in found if not ((at := Path(folder) / f).is_file() or at.is_dir())]

        shutil.rmtree(where, ignore_errors=True)
        try:
            shutil.copytree(self.folder, where, ignore=left_out, dirs_exist_ok=True)
        except OSError as e:
            if e.errno != errno.ENOSPC:
                raise
            self.trouble(f"no room to keep homes and logs in {where}")


def holders(seen: Sequence[Seen], at: float) -> frozenset[int]:
    """Who served at a moment."""
    last = {s.node: s.serves for s in seen if s.at <= at}
    return frozenset(node for node, serves in last.items() if serves)


SEATS = 3
"""`election.orchestrators` of the nodes."""


def others_suffice(seen: Sequence[Seen], victim: int, at: float) -> bool:
    """Whether as many others serve as there are seats: after a partition there may be more holders than seats, and one that goes then
    is replaced by nobody."""
    return len(holders(seen, at) - {victim}) >= SEATS


def replaced(seen: Sequence[Seen], victim: int, at: float) -> tuple[float, int] | None:
    """Seconds after ``at`` until a node served that had not then (or the victim did again), and which; None if none did."""
    before = holders(seen, at) - {victim}
    gone = False
    for s in sorted(seen, key=lambda s: s.at):
        if s.at <= at:
            continue
        gone = gone or (s.node == victim and not s.serves)
        if s.serves and s.node not in before and (s.node != victim or gone):
            return s.at - at, s.node
    return None

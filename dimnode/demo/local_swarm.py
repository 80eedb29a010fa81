"""Three real node processes on this machine, for the demo and for ``make up``.

Each has its own home and free ports; the first starts the swarm, the others join it with its invite. mDNS
is off, so that no stranger on the network is met.

    python -m dimnode.demo.local_swarm up --dir DIR
    python -m dimnode.demo.local_swarm down --dir DIR
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import psutil

from dimnode.errors import DeadlineExceeded, DimError, FailedPrecondition
from dimnode.home import Home

SETTINGS = (
    "swarm.mdns=false",
    "p2p.listen=/ip4/127.0.0.1/tcp/0",
    "orchestrator.listen=127.0.0.1:0",
    "daemon.listen=127.0.0.1:0",
)
NAMES = ("anna", "bert", "cora")


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds."""

    ready: float = 60.0
    """For one node to say that it is ready, and for the swarm to form."""
    stop: float = 10.0
    """After SIGTERM before a node is killed."""
    poll: float = 0.1


@dataclass
class LocalNode:
    name: str
    home: Home
    process: subprocess.Popen[bytes]

    @property
    def log(self) -> Path:
        return self.home.path / "node.log"

    def tail(self, lines: int = 20) -> str:
        try:
            return "\n".join(self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])
        except FileNotFoundError:
            return ""


@dataclass
class LocalSwarm:
    folder: Path
    timing: Timing = field(default_factory=Timing)
    nodes: list[LocalNode] = field(default_factory=list[LocalNode])

    def start(self, names: tuple[str, ...] = NAMES, say: Callable[[str], None] = lambda _: None) -> None:
        """Returns when every node sees all the others and seats are held. Raises `DimError`."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        first = self._launch(names[0], ())
        self._wait(first, lambda: self._status(first) is not None, "is ready")
        say(f"{first.name} started a swarm")
        invite = self.node_client(first).invite()
        for name in names[1:]:
            self._launch(name, ("--join", invite))
        for node in self.nodes:
            self._wait(node, lambda n=node: self._joined(n, len(names)), f"sees {len(names)} nodes and an orchestrator")
            say(f"{node.name} is in the swarm")

    def node_client(self, node: LocalNode) -> Any:
        from dimnode.rpc.clients import NodeClient

        return NodeClient(node.home.control().node)

    def client(self, node: LocalNode) -> Any:
        from dimnode.client import Client

        return Client(node.home.control().orchestrator)

    def _launch(self, name: str, extra: tuple[str, ...]) -> LocalNode:
        home = Home(self.folder / name)
        home.create()
        command = [sys.executable, "-m", "dimnode", "start", "--home", str(home.path), "--name", name]
        for text in SETTINGS:
            command += ["--set", text]
        environ = {k: v for k, v in os.environ.items() if not k.startswith("DIM_")}
        with (home.path / "node.log").open("ab") as log:
            process = subprocess.Popen(  # noqa: S603 - our own interpreter and package
                [*command, *extra], stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environ, start_new_session=True
            )
        node = LocalNode(name, home, process)
        self.nodes.append(node)
        return node

    def _status(self, node: LocalNode) -> dict[str, Any] | None:
        try:
            if node.home.control().pid != node.process.pid:
                return None  # left over from an earlier run
            with self.node_client(node) as client:
                return client.status()
        except DimError:
            return None

    def _joined(self, node: LocalNode, count: int) -> bool:
        status = self._status(node)
        if status is None or len(status.get("orchestrators") or ()) < count:
            return False
        with self.node_client(node) as client:
            return sum(n["state"] == "alive" for n in client.nodes()) >= count

    def _wait(self, node: LocalNode, ready: Callable[[], bool], what: str) -> None:
        until = time.monotonic() + self.timing.ready
        while not ready():
            if node.process.poll() is not None:
                raise FailedPrecondition(f"{node.name} ended with exit code {node.process.returncode}")
            if time.monotonic() > until:
                raise DeadlineExceeded(f"{node.name} was not ready in {self.timing.ready:g} s ({what})")
            time.sleep(self.timing.poll)

    def stop(self) -> None:
        """Every node gets SIGTERM, and SIGKILL (its agents too) if it does not heed it."""
        for node in self.nodes:
            if node.process.poll() is None:
                node.process.terminate()
        until = time.monotonic() + self.timing.stop
        for node in self.nodes:
            try:
                node.process.wait(timeout=max(0.1, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                os.killpg(node.process.pid, signal.SIGKILL)
                node.process.wait()


@contextmanager
def local_swarm(
    folder: Path, say: Callable[[str], None] = lambda _: None, timing: Timing | None = None
) -> Generator[LocalSwarm, None, None]:
    """A running swarm of three; stopped on the way out, however that happens."""
    swarm = LocalSwarm(folder, timing or Timing())
    try:
        swarm.start(say=say)
        yield swarm
    finally:
        swarm.stop()


def up(folder: Path) -> int:
    """Start and leave running. Exit code."""
    folder = folder.absolute()
    record = folder / "swarm.json"
    if record.exists():
        click.echo(f"a swarm is there already: {record}", err=True)
        return 1
    swarm = LocalSwarm(folder)
    try:
        swarm.start(say=lambda text: click.echo(text, err=True))
    except DimError as e:
        swarm.stop()
        _explain(swarm, e)
        return 1
    record.write_text(json.dumps([{"name": n.name, "pid": n.process.pid} for n in swarm.nodes]), encoding="utf-8")
    for node in swarm.nodes:
        click.echo(f"dimnode status --home {node.home.path}")
    return 0


def down(folder: Path, timing: Timing | None = None) -> int:
    """Stop what `up` started."""
    timing = timing or Timing()
    record = folder.absolute() / "swarm.json"
    if not record.exists():
        click.echo("no swarm to stop", err=True)
        return 0
    homes = [(entry["pid"], Home(record.parent / entry["name"])) for entry in json.loads(record.read_text(encoding="utf-8"))]
    ours = [pid for pid, home in homes if _runs(pid, home)]
    processes = [psutil.Process(pid) for pid in ours]
    for process in processes:
        process.terminate()
    _, stubborn = psutil.wait_procs(processes, timeout=timing.stop)
    for process in stubborn:
        if process.status() != psutil.STATUS_ZOMBIE:
            os.killpg(process.pid, signal.SIGKILL)
    record.unlink()
    return 0


def _runs(pid: int, home: Home) -> bool:
    """Whether the home's node runs with this process id (which may have gone to somebody else by now)."""
    try:
        return home.control().pid == pid
    except DimError:
        return False


def _explain(swarm: LocalSwarm, error: DimError) -> None:
    click.echo(f"Error: {error.message}", err=True)
    for node in swarm.nodes:
        click.echo(f"--- log of {node.name}\n{node.tail()}", err=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("verb", choices=("up", "down"))
    parser.add_argument("--dir", type=Path, default=Path(".dim-demo"))
    given = parser.parse_args()
    return up(given.dir) if given.verb == "up" else down(given.dir)


if __name__ == "__main__":
    sys.exit(main())

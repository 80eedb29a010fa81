"""Real node processes on loopback: started, killed, paused, stopped and started again with the same home and ports.

Nothing here sleeps for luck: every wait names what it waits for and how long at the most, and shows the node's log
when that does not come.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import psutil

from dimnode.client import Client, Settings
from dimnode.errors import DimError
from dimnode.home import Home
from dimnode.rpc.clients import ClientSettings, NodeClient

T = TypeVar("T")
MODELS = Path(__file__).parents[1] / "fixtures" / "models"
FORMS = Path(__file__).parents[1] / "fixtures" / "forms"
ENVIRON = {k: v for k, v in os.environ.items() if not k.startswith("DIM_") and k != "PYTHONDONTWRITEBYTECODE"}
"""Hundreds of nodes are started: their code is compiled once."""
LOOPBACK = {
    "swarm.mdns": "false",
    "p2p.listen": "/ip4/127.0.0.1/tcp/0",
    "orchestrator.listen": "127.0.0.1:0",
    "daemon.listen": "127.0.0.1:0",
    "daemon.slots": "2",
}
READY = 60.0
"""Seconds for a node to say that it is ready, on a machine with other things to do."""
POLL = 0.05
_NONE: Any = object()


def wait_until(look: Callable[[], T], what: str, within: float = 30.0) -> T:
    """What ``look`` returns as soon as it is true; a `DimError` counts as "not yet"."""
    until = time.monotonic() + within
    while True:
        try:
            seen: Any = look()
        except DimError as e:
            seen, last = None, e
        else:
            last = seen
        if seen:
            return seen
        assert time.monotonic() < until, f"not within {within:g} s: {what}; last seen: {last!r}"
        time.sleep(POLL)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def refuses(port: int) -> bool:
    """Whether a TCP connection to this loopback port is refused."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
    except ConnectionRefusedError:
        return True
    return False


@dataclass
class RealNode:
    name: str
    home: Home
    settings: dict[str, str] = field(default_factory=dict)
    join: tuple[str, ...] = ()
    process: subprocess.Popen[bytes] | None = None
    prefix: tuple[str, ...] = ()
    """What comes before the command, to run it elsewhere (a namespace)."""

    # --- life

    def start(self, *, ready: bool = True, defaults: Mapping[str, str] = LOOPBACK) -> RealNode:
        self.home.create()
        command = [*self.prefix, sys.executable, "-m", "dimnode", "start", "--home", str(self.home.path), "--name", self.name]
        for key, value in {**defaults, **self.settings}.items():
            command += ["--set", f"{key}={value}"]
        for address in self.join:
            command += ["--join", address]
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                command, env=ENVIRON, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, start_new_session=True
            )
        if ready:
            self.wait_ready()
        return self

    def wait_ready(self) -> None:
        assert self.process is not None
        assert self.process.stdout is not None
        answered, _, _ = select.select([self.process.stdout], [], [], READY)
        line = self.process.stdout.readline() if answered else b""
        assert line.startswith(b"dimnode ready"), f"{self.name} is not ready: {line!r}\n{self.log()}"

    def stop(self, number: int = signal.SIGTERM, within: float = 15.0) -> tuple[int, float]:
        """Exit code, and the seconds that it took."""
        assert self.process is not None
        began = time.monotonic()
        self.process.send_signal(number)
        try:
            code = self.process.wait(within)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.name} did not stop within {within:g} s\n{self.log()}") from None
        return self._closed(code), time.monotonic() - began

    def kill(self) -> None:
        """As ``kill -9`` of the node alone; its agents are not signalled."""
        assert self.process is not None
        self.process.kill()
        self._closed(self.process.wait(10))

    def end(self) -> None:
        """For the end of a test: the node and all that it started are gone."""
        if self.process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self._closed(self.process.wait(10))

    def _closed(self, code: int) -> int:
        assert self.process is not None
        if self.process.stdout is not None:
            self.process.stdout.close()
        return code

    def pause(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def agents(self) -> list[psutil.Process]:
        """Every process that this node started."""
        return psutil.Process(self.pid).children(recursive=True)

    # --- what it says

    @property
    def log_path(self) -> Path:
        return self.home.path / "node.log"

    def log(self, lines: int = 40) -> str:
        text = self.log_path.read_text(encoding="utf-8", errors="replace")
        return "\n".join(text.splitlines()[-lines:])

    def crashed(self) -> bool:
        """Whether a traceback is in its log."""
        text = self.log_path.read_text(encoding="utf-8", errors="replace")
        return "Traceback" in text or '"exception"' in text

    def status(self) -> dict[str, Any]:
        with self.node_client() as client:
            return client.status()

    def nodes(self) -> dict[str, dict[str, Any]]:
        """name -> node, as this one sees the swarm."""
        with self.node_client() as client:
            return {n["name"]: n for n in client.nodes()}

    def sees(self, *names: str) -> bool:
        found = self.nodes()
        return all(found.get(name, {}).get("state") == "alive" for name in names)

    def node_client(self) -> NodeClient:
        return NodeClient(self.home.control().node)

    def client(self, retry_for: float = 10.0) -> Client:
        return Client(self.home.control().orchestrator, Settings(connection=ClientSettings(timeout=60.0, retry_for=retry_for)))

    def address(self) -> str:
        return self.status()["listen"][0]

    def keep_ports(self) -> None:
        """The next start uses the ports that this one has."""
        status = self.status()
        listen = status["listen"][0].split("/p2p/")[0]
        self.settings |= {"p2p.listen": listen, "daemon.listen": status["daemon_grpc"]}
        if status["grpc"]:
            self.settings["orchestrator.listen"] = status["grpc"]

    # --- the command line

    def cli(self, *argv: str, code: int = 0, stdin: str | None = None) -> Any:
        """One verb with ``--json``: its one document. Stdout must hold nothing else."""
        done = run_cli(*argv, "--home", str(self.home.path), "--json", stdin=stdin)
        assert done.returncode == code, f"{argv}: exit {done.returncode}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr, done.stderr
        return json.loads(done.stdout)


def run_cli(*argv: str, stdin: str | None = None, timeout: float = 90.0) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "dimnode", *argv]
    return subprocess.run(command, env=ENVIRON, capture_output=True, text=True, timeout=timeout, check=False, input=stdin)


@dataclass
class RealSwarm:
    """The first node starts a swarm, the others join it with its invite. Use it as a context manager."""

    folder: Path
    settings: Mapping[str, str] = field(default_factory=dict)
    nodes: dict[str, RealNode] = field(default_factory=dict)
    invite: str = ""

    def __enter__(self) -> RealSwarm:
        return self

    def __exit__(self, *_: object) -> None:
        for node in self.nodes.values():
            node.end()

    def __getitem__(self, name: str) -> RealNode:
        return self.nodes[name]

    def node(self, name: str, **settings: str) -> RealNode:
        """A node of this swarm, not started. Settings: ``daemon__slots="1"``."""
        own = {k.replace("__", "."): v for k, v in settings.items()}
        node = RealNode(name, Home(self.folder / name), {**self.settings, **own}, (self.invite,) if self.invite else ())
        self.nodes[name] = node
        return node

    def start(self, *names: str) -> RealSwarm:
        """All nodes, at once after the first; returns when each sees the others."""
        first, *rest = (self.nodes.get(name) or self.node(name) for name in names)
        first.start()
        with first.node_client() as client:
            self.invite = client.invite()
        for node in rest:
            node.join = node.join or (self.invite,)
            node.start(ready=False)
        for node in rest:
            node.wait_ready()
        self.wait_formed()
        return self

    def wait_formed(self, within: float = 30.0) -> None:
        names = [n.name for n in self.nodes.values() if n.running]
        for node in self.nodes.values():
            if node.running:
                wait_until(lambda n=node: n.sees(*names), f"{node.name} sees {names}\n{node.log(5)}", within)

    def holders(self, observer: str) -> list[str]:
        """Names of those that hold a seat, as one node sees it."""
        return [o["name"] for o in self.nodes[observer].status()["orchestrators"]]


def mlp(x: np.ndarray) -> np.ndarray:
    """The fixture model, run directly. [N, 30] -> [N, 2]."""
    import onnxruntime

    session = onnxruntime.InferenceSession(MODELS / "mlp.onnx")
    return np.asarray(session.run(None, {"x": x})[0])


def rows(count: int, seed: int = 0) -> np.ndarray:
    """Inputs for the fixture model: float32 [count, 30]."""
    return np.random.default_rng(seed).normal(size=(count, 30)).astype(np.float32)


def one_task(model: str = "mlp", **more: Any) -> dict[str, Any]:
    """A job of one task on ``client_data``."""
    return {"pattern": "chained", "config": {"pipeline": [{"step": 1, "model_id": model, "input_source": "client_data"}]}, **more}


def write_json(path: Path, document: object) -> Path:
    path.write_text(json.dumps(document), encoding="utf-8")
    return path


def names(found: Sequence[Mapping[str, Any]]) -> set[str]:
    return {n["name"] for n in found}

"""The node's side of its fork servers: one process per framework, started when a model first needs it."""

from __future__ import annotations

import array
import os
import signal
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Mapping
from pathlib import Path

import msgspec
import trio

from dimnode.daemon.agent_main import AgentOptions
from dimnode.daemon.fork_server import Notice, Order, ServerOptions
from dimnode.daemon.settings import AgentSettings
from dimnode.daemon.spawner import Spawner

ENDED_KEPT = 256
"""Ends of agents that are remembered although nobody has asked yet."""


class ServerDied(Exception):
    """The fork server is gone, and its agents with it; or the system starts no more processes. The message says which."""


class ServerProcess:
    """Made by `start`, runs by `run`. When it ends, for whatever reason, all its agents have ended."""

    def __init__(self, process: subprocess.Popen[bytes], connection: trio.socket.SocketType) -> None:
        self._process = process
        self._socket = connection
        self._ready = trio.Event()
        self._gone = trio.Event()
        self._answers: deque[Notice] = deque()
        self._changed = trio.Event()
        self._starting = trio.Lock()
        self._ended: dict[int, int] = {}
        self._agents: set[int] = set()
        self.started = trio.current_time()
        self.forks = False
        """Agents are forked; else each is started anew."""
        self.blamed = False
        """Its end has been counted."""

    @classmethod
    async def start(cls, spawner: Spawner, settings: AgentSettings, framework: str, cwd: Path) -> ServerProcess:
        """Raises `ServerDied`."""
        ours, theirs = socket.socketpair()
        fork = sys.platform == "linux" and settings.fork
        options = msgspec.json.encode(ServerOptions(framework=framework, fork=fork, parent=os.getpid())).decode()
        arguments = [sys.executable, "-P", "-s", "-m", "dimnode.daemon.fork_server", str(theirs.fileno()), options]
        with theirs:
            try:
                process = await spawner.start(arguments, cwd=cwd, env=environment(settings), fd=theirs.fileno())
            except OSError as e:
                ours.close()
                raise ServerDied("no agent process could be started") from e
        ours.setblocking(False)
        return cls(process, trio.socket.from_stdlib_socket(ours))

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def agents(self) -> int:
        """Those that have not ended."""
        return len(self._agents)

    @property
    def gone(self) -> bool:
        return self._gone.is_set()

    async def run(self) -> None:
        """Hears what the server tells, until it ends."""
        buffer = bytearray()
        try:
            while data := await self._socket.recv(1 << 16):
                buffer += data
                while (end := buffer.find(b"\n")) >= 0:
                    self._hear(msgspec.json.decode(buffer[:end], type=Notice))
                    del buffer[: end + 1]
        except (OSError, trio.ClosedResourceError, msgspec.DecodeError):
            pass  # all of these end the server, which is told below
        finally:
            self.kill()
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(self._process.wait)
            self._gone.set()
            self._wake()

    def _hear(self, notice: Notice) -> None:
        if notice.ended:
            self._agents.discard(notice.ended)
            self._ended[notice.ended] = notice.status
            while len(self._ended) > ENDED_KEPT:
                del self._ended[next(iter(self._ended))]
        elif notice.started or notice.failed:
            if notice.started:
                self._ended.pop(notice.started, None)  # the number is used again
                self._agents.add(notice.started)
            self._answers.append(notice)
        else:
            self.forks = notice.forks
            self._ready.set()
        self._wake()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    async def wait_ready(self) -> None:
        """Returns when the framework is there. Raises `ServerDied`."""
        while not self._ready.is_set():
            if self.gone:
                raise ServerDied(
                    "the framework could not be started"
                    if self._process.returncode != -signal.SIGKILL
                    else "the framework's server was killed"
                )
            await self._changed.wait()

    async def start_agent(self, options: AgentOptions, fd: int) -> int:
        """The process id of a new agent with ``fd`` as its socket. Not interrupted between order and answer, which takes
        milliseconds. Raises `ServerDied`; then the server must not be used again."""
        await self.wait_ready()
        async with self._starting:
            with trio.CancelScope(shield=True), trio.move_on_after(5.0):
                await self._order(Order(start=options), fd)
                while not self._answers:
                    if self.gone:
                        raise ServerDied("the framework's server ended")
                    await self._changed.wait()
                answer = self._answers.popleft()
                if answer.failed:
                    raise ServerDied(answer.failed)
                return answer.started
        self.kill()
        raise ServerDied("the framework's server does not answer")

    async def _order(self, order: Order, fd: int) -> None:
        data = msgspec.json.encode(order) + b"\n"
        try:
            sent = await self._socket.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))])
            while sent < len(data):
                sent += await self._socket.send(data[sent:])
        except (OSError, trio.ClosedResourceError) as e:
            raise ServerDied("the framework's server ended") from e

    def status(self, pid: int) -> int | None:
        """How the agent ended (negative: by this signal); None while it runs."""
        if pid in self._agents and not self.gone:
            return None
        return self._ended.get(pid, -signal.SIGKILL)

    async def wait_ended(self, pid: int) -> int:
        while (status := self.status(pid)) is None:
            await self._changed.wait()
        return status

    def kill_agent(self, pid: int) -> None:
        """Asks for it; a server that cannot even be asked is killed, which ends its agents."""
        if self.status(pid) is not None:
            return
        data = msgspec.json.encode(Order(kill=pid)) + b"\n"
        stream = socket.socket(fileno=os.dup(self._socket.fileno())) if self._socket.fileno() >= 0 else None
        try:
            if stream is None or stream.send(data, socket.MSG_DONTWAIT) < len(data):
                self.kill()
        except OSError:
            self.kill()
        finally:
            if stream is not None:
                stream.close()

    def kill(self) -> None:
        """The server and all its agents, at once: on Linux by the kernel, elsewhere by their sockets."""
        self._process.kill()
        self._socket.close()


def environment(settings: AgentSettings) -> Mapping[str, str]:
    """The little that agents get to see of the node's environment."""
    passed = {k: os.environ[k] for k in ("PYTHONPATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "SYSTEMROOT") if k in os.environ}
    return {
        **passed,
        # no place where a library could make its cache folder, no need to look the user up
        "HOME": os.devnull,
        "USER": "dim",
        "LOGNAME": "dim",
        "LANG": "C.UTF-8",
        "PYTHONUTF8": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONWARNINGS": "ignore",
        "OMP_NUM_THREADS": str(settings.threads),
        # numpy's own pool would start threads at import, and a process with threads cannot be forked
        "OPENBLAS_NUM_THREADS": "1",
        # onnxruntime starts a thread for it at import, and it is nobody's business
        "ORT_DISABLE_TELEMETRY": "1",
        # a framework that compiles with the system's compiler could not do so in the sandbox
        "MLX_DISABLE_COMPILE": "1",
        **settings.environment,
    }

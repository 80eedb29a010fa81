"""One agent as its node sees it: a process in a session of its own and one socket."""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec
import trio

from dimnode.daemon.agent_main import Limits
from dimnode.daemon.agent_protocol import (
    PREFIX,
    Array,
    Header,
    ProtocolError,
    pack,
    unpack_header,
    unpack_prefix,
    unpack_tensors,
)
from dimnode.daemon.settings import AgentSettings

SMALL = 1 << 16
"""Frames up to this size are sent in one piece."""
SOCKET_BUFFER = 1 << 20
EXIT_WAIT = 1.0
"""Seconds for a process whose socket broke to tell how it ended."""


class AgentDied(Exception):
    """The agent is gone, or said something that makes no sense; the message says which."""


class Spawner:
    """One thread that starts all agents.

    Linux sends the parent-death signal when the *thread* that started a process ends, so agents must not be
    started from a pool of threads that come and go.
    """

    def __init__(self) -> None:
        self._work: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    async def start(self, args: list[str], *, cwd: Path, env: Mapping[str, str], fd: int) -> subprocess.Popen[bytes]:
        """Raises `OSError`. Not interrupted in the middle: a process that was started is always returned."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="dim-spawner", daemon=True)
            self._thread.start()
        token, done = trio.lowlevel.current_trio_token(), trio.Event()
        results: list[subprocess.Popen[bytes] | Exception] = []

        def work() -> None:
            try:
                results.append(_popen(args, cwd, env, fd))
            except Exception as e:  # noqa: BLE001 - raised again below; the thread must live, or nobody is answered any more
                results.append(e)
            token.run_sync_soon(done.set)

        self._work.put(work)
        with trio.CancelScope(shield=True):
            await done.wait()
        if isinstance(results[0], Exception):
            raise results[0]
        return results[0]

    def close(self) -> None:
        """Ends the thread, and with it, on Linux, agents that are still there."""
        if self._thread is not None:
            self._work.put(None)
            self._thread = None

    def _run(self) -> None:
        while (work := self._work.get()) is not None:
            work()


def _popen(args: list[str], cwd: Path, env: Mapping[str, str], fd: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen(  # noqa: S603 - our own interpreter and module
        args,
        cwd=cwd,
        env=dict(env),
        pass_fds=(fd,),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def environment(settings: AgentSettings) -> dict[str, str]:
    """The little that an agent gets to see of the node's environment."""
    passed = {k: os.environ[k] for k in ("PYTHONPATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "SYSTEMROOT") if k in os.environ}
    return {
        **passed,
        # no place where a library could make its cache folder
        "HOME": os.devnull,
        "LANG": "C.UTF-8",
        "PYTHONUTF8": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONWARNINGS": "ignore",
        "OMP_NUM_THREADS": str(settings.threads),
        **settings.environment,
    }


class AgentProcess:
    """Made by `start`; owned by the pool."""

    def __init__(self, process: subprocess.Popen[bytes], connection: trio.socket.SocketType) -> None:
        self._process = process
        self._socket = connection
        self._stream = trio.SocketStream(connection)
        self.model = ""
        """CID of the model it holds."""
        self.calls = 0
        self.idle_since = 0.0

    @property
    def pid(self) -> int:
        return self._process.pid

    @classmethod
    async def start(cls, spawner: Spawner, settings: AgentSettings, cwd: Path, memory: int) -> AgentProcess:
        """``memory``: bytes that it may hold. Raises `AgentDied` if no process can be started."""
        ours, theirs = socket.socketpair()
        limits = Limits(memory, settings.file_bytes, settings.open_files, settings.threads, os.getpid())
        args = [sys.executable, "-P", "-s", "-m", "dimnode.daemon.agent_main", str(theirs.fileno()), msgspec.json.encode(limits).decode()]
        with theirs:
            try:
                for end in (ours, theirs):
                    end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BUFFER)
                process = await spawner.start(args, cwd=cwd, env=environment(settings), fd=theirs.fileno())
            except OSError as e:
                ours.close()
                raise AgentDied("no agent process could be started") from e
        ours.setblocking(False)
        return cls(process, trio.socket.from_stdlib_socket(ours))

    def alive(self) -> bool:
        return self._process.poll() is None

    async def call(self, header: Header, tensors: Mapping[str, Array], max_reply: int) -> tuple[Header, dict[str, Array]]:
        """One request, one reply. Raises `AgentDied`. After a cancellation the agent must be killed."""
        self.calls += 1
        try:
            await self._send(pack(header, tensors))
            header_size, payload_size = unpack_prefix(await self._exactly(PREFIX.size), max_reply)
            reply = unpack_header(await self._exactly(header_size))
            return reply, unpack_tensors(reply.tensors, await self._exactly(payload_size))
        except (trio.BrokenResourceError, trio.ClosedResourceError, OSError, EOFError) as e:
            raise AgentDied(await self._how_it_ended()) from e
        except ProtocolError as e:
            raise AgentDied(f"the agent sent nonsense: {e}") from e

    async def _send(self, pieces: list[bytes | memoryview]) -> None:
        if sum(map(len, pieces)) <= SMALL:
            pieces = [b"".join(pieces)]
        for piece in pieces:
            await self._stream.send_all(piece)

    async def _exactly(self, n: int) -> bytearray:
        data = bytearray(n)
        view = memoryview(data)
        while view:
            got = await self._socket.recv_into(view)
            if not got:
                raise EOFError
            view = view[got:]
        return data

    async def _how_it_ended(self) -> str:
        with contextlib.suppress(subprocess.TimeoutExpired):
            await trio.to_thread.run_sync(self._process.wait, EXIT_WAIT)
        return ending(self._process.returncode)

    def kill(self) -> None:
        """At once, and whatever it started; `reap` collects it."""
        self._socket.close()
        # the group outlives its leader if the agent left children behind
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)

    async def reap(self) -> None:
        """After `kill`: waits for the process to be gone."""
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(self._process.wait)


def ending(code: int | None) -> str:
    """How a process ended, in words. Exit code 0 is no better than others: a library may end a process so."""
    if code is None:
        return "the agent broke its connection"
    if code == -signal.SIGKILL:
        return "the agent was killed, probably for using too much memory"
    if code < 0:
        try:
            return f"the agent crashed with {signal.Signals(-code).name}"
        except ValueError:
            return f"the agent crashed with signal {-code}"
    return f"the agent ended without an answer, exit code {code}"

"""One agent as its node sees it: a sandboxed process with one model and one socket."""

from __future__ import annotations

import array
import contextlib
import mmap
import os
import shutil
import signal
import socket
import sys
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import msgspec
import trio

from dimnode.daemon import text_tensors
from dimnode.daemon.agent_main import AgentOptions
from dimnode.daemon.agent_protocol import (
    ALIGNMENT,
    PREFIX,
    Array,
    Header,
    ProtocolError,
    TensorHead,
    check_sizes,
    numeric_bytes,
    pack,
    unpack_header,
    unpack_prefix,
    unpack_tensors,
)
from dimnode.daemon.agent_servers import ServerDied, ServerProcess
from dimnode.daemon.grant import Grant
from dimnode.daemon.sandbox.report import Confinement
from dimnode.daemon.shared_memory import AVAILABLE, create, size_for
from dimnode.domain.tensors import STRING

T = TypeVar("T")

SMALL = 1 << 16
"""Frames up to this size are sent in one piece."""
SOCKET_BUFFER = 1 << 20
SHARED_MOST = 256 << 20
"""Larger tensors travel in frames: shared memory stays as long as the agent does."""
COPY_INLINE = 2 << 20
"""Bytes from which on copying is done in a thread."""
CLEARED = 1 << 20
"""Bytes from which on the system gives memory page by page."""
EXIT_WAIT = 1.0
"""Seconds for a process whose socket broke to tell how it ended."""


class AgentDied(Exception):
    """The agent is gone, or said something that makes no sense; the message says which."""


class AgentProcess:
    """Made by `start`; owned by the pool."""

    def __init__(self, server: ServerProcess, pid: int, connection: trio.socket.SocketType, folder: Path, share_from: int) -> None:
        self._server = server
        self._socket = connection
        self._stream = trio.SocketStream(connection)
        self._folder = folder
        self.pid = pid
        self.model = ""
        """CID of the model it holds."""
        self.claims = ""
        """Those of the manifest by which it loads the model, see `dimnode.daemon.model_file`."""
        self.calls = 0
        self.idle_since = 0.0
        self.confinement = Confinement()
        """What it said when it was ready."""
        self.grant = Grant(threads=1, memory=0)
        """What it may use."""
        self.used = 0
        """Bytes that it held at the last look."""
        self.load_seconds = 0.0
        self.retired = False
        """It ends with what it does now: its model was removed."""
        self._stopped_for = ""
        self._share_from = share_from or sys.maxsize
        self._in: mmap.mmap | None = None
        self._out: mmap.mmap | None = None
        self._wanted_out = 0

    @classmethod
    async def start(cls, server: ServerProcess, options: AgentOptions, share_from: int) -> AgentProcess:
        """``share_from``: bytes from which on tensors go through shared memory; 0: never. In a folder of its own, the policy's
        ``scratch``, which is made here. Raises `ServerDied`."""
        folder = Path(options.policy.scratch)
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                for end in (ours, theirs):
                    end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BUFFER)
                folder.mkdir(mode=0o700 if options.policy.file_bytes else 0o500)  # noqa: ASYNC240 - one system call
                pid = await server.start_agent(options, theirs.fileno())
            except BaseException as e:
                ours.close()
                _remove(folder)
                if isinstance(e, OSError):
                    raise ServerDied("no agent process could be started") from e
                raise
        ours.setblocking(False)
        return cls(server, pid, trio.socket.from_stdlib_socket(ours), folder, share_from)

    def alive(self) -> bool:
        return self._server.status(self.pid) is None

    @property
    def orphaned(self) -> bool:
        """Its server has ended, and it with it."""
        return self._server.gone

    async def wait_ready(self) -> None:
        """Returns when it has its framework and is in its sandbox. Raises `AgentDied`."""
        async with self._talking():
            reply, _ = await self._head(0)
            if reply.op != "ready":
                raise ProtocolError("no greeting")
            self.confinement = reply.confinement or Confinement()

    async def call(
        self, header: Header, tensors: Mapping[str, Array], max_reply: int, tell: Callable[[int, str], None] | None = None
    ) -> tuple[Header, dict[str, Array]]:
        """One request, one reply; ``tell`` is called with the row and the text of pieces that come before it. Raises `AgentDied`.
        After a cancellation the agent must be killed."""
        self.calls += 1
        async with self._talking():
            await self._request(header, tensors)
            while True:
                reply, payload_size = await self._head(max_reply)
                if reply.op != "partial":
                    break
                if tell is None or payload_size:
                    raise ProtocolError("a piece of text that nobody asked for")
                tell(reply.row, reply.text)
            size = check_sizes(reply.tensors, payload_size, max_reply)
            payload = await self._exactly(payload_size)
            self._wanted_out = max(self._wanted_out, size + ALIGNMENT * len(reply.tensors))
            text = sum(t.nbytes for t in reply.tensors if t.dtype == STRING)
            # in the shared memory: all that is not in the payload
            heavy = size - payload_size >= COPY_INLINE or text > text_tensors.INLINE
            return reply, await _off_loop(heavy, _unpack, reply.tensors, payload, self._out)

    @contextlib.asynccontextmanager
    async def _talking(self) -> AsyncGenerator[None]:
        try:
            yield
        except (trio.BrokenResourceError, trio.ClosedResourceError, OSError, EOFError) as e:
            raise AgentDied(await self._how_it_ended()) from e
        except ProtocolError as e:
            raise AgentDied(f"the agent sent nonsense: {e}") from e

    async def _head(self, max_payload: int) -> tuple[Header, int]:
        """A frame's header and the size of what follows it."""
        header_size, payload_size = unpack_prefix(await self._exactly(PREFIX.size), max_payload)
        return unpack_header(await self._exactly(header_size)), payload_size

    async def _request(self, header: Header, tensors: Mapping[str, Array]) -> None:
        """Grows the shared memory first if that helps."""
        fds: list[int] = []
        try:
            needed = numeric_bytes(tensors)
            if self._worth(needed, self._in):
                fd, self._in = create(size_for(needed))
                fds.append(fd)
                header = msgspec.structs.replace(header, memory_in=len(self._in))
            if self._worth(self._wanted_out, self._out):
                fd, self._out = create(size_for(self._wanted_out))
                fds.append(fd)
                header = msgspec.structs.replace(header, memory_out=len(self._out))
            share = self._in if needed >= self._share_from else None
            heavy = needed >= COPY_INLINE or text_tensors.large(tensors.values())
            await self._send(await _off_loop(heavy, pack, header, tensors, share), fds)
        finally:
            for fd in fds:
                os.close(fd)

    def _worth(self, nbytes: int, present: mmap.mmap | None) -> bool:
        return AVAILABLE and self._share_from <= nbytes <= SHARED_MOST and (present is None or len(present) < nbytes)

    async def _send(self, pieces: list[bytes | memoryview], fds: list[int]) -> None:
        if sum(map(len, pieces)) <= SMALL:
            pieces = [b"".join(pieces)]
        if fds:
            rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))
            sent = await self._socket.sendmsg([pieces[0]], [rights])
            pieces[0] = memoryview(pieces[0])[sent:]
        for piece in pieces:
            await self._stream.send_all(piece)

    async def _exactly(self, n: int) -> bytearray | mmap.mmap:
        """What an agent announces takes memory, and time to clear it, only as it really comes."""
        data = bytearray(n) if n < CLEARED else mmap.mmap(-1, n, flags=mmap.MAP_PRIVATE)
        view = memoryview(data)
        while view:
            got = await self._socket.recv_into(view)
            if not got:
                raise EOFError
            view = view[got:]
        return data

    async def _how_it_ended(self) -> str:
        if self._stopped_for:
            return self._stopped_for
        with trio.move_on_after(EXIT_WAIT):
            return ending(await self._server.wait_ended(self.pid))
        return ending(None)

    def stop_for(self, reason: str) -> None:
        """Kills it; whoever waits for its answer hears why."""
        self._stopped_for = reason
        self._server.kill_agent(self.pid)

    def kill(self) -> None:
        """At once, and whatever it started; `reap` collects it."""
        self._socket.close()
        self._server.kill_agent(self.pid)

    async def reap(self) -> None:
        """After `kill`: waits for the process to be gone, and removes its folder."""
        with trio.CancelScope(shield=True):
            await self._server.wait_ended(self.pid)
            await trio.to_thread.run_sync(_remove, self._folder)


def _unpack(heads: Sequence[TensorHead], payload: bytearray | mmap.mmap, shared: mmap.mmap | None) -> dict[str, Array]:
    """Copied: the next reply is written over this one."""
    return unpack_tensors(heads, payload, shared, copy=True)


async def _off_loop(heavy: bool, work: Callable[..., T], *args: object) -> T:
    """In a thread if there is much to copy or to encode. After a cancellation the thread may still write where nobody reads."""
    if not heavy:
        return work(*args)
    return await trio.to_thread.run_sync(lambda: work(*args), abandon_on_cancel=True)


def _remove(folder: Path) -> None:
    """An agent's folder; what cannot be removed goes at the next start."""
    shutil.rmtree(folder, ignore_errors=True)


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

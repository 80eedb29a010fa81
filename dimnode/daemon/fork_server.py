"""The fork server: a small process that has imported one framework and forks an agent in milliseconds.

Started by the node as ``python -m dimnode.daemon.fork_server FD JSON``. It has one thread, touches no model and computes
nothing, since neither threads nor what a framework keeps between runs survives a fork. It tells the node how each agent ended and kills
those that the node no longer wants: being their parent, it alone can do so without hitting another process under the same number.
When the node is gone, so are all.

Where a framework must not be forked (macOS: Metal, Core ML), agents are started anew under the same protocol.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import socket
import subprocess
import sys

import msgspec

from dimnode.daemon import agent_main
from dimnode.daemon.agent_main import AgentOptions, die_with_parent
from dimnode.daemon.preload import formats_of, preload

MOST = 1 << 20
"""Bytes of one order."""


class ServerOptions(msgspec.Struct, frozen=True, kw_only=True):
    framework: str
    """See `dimnode.daemon.preload.framework_of`."""
    fork: bool
    parent: int


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """From the node, one JSON document a line. An order to start comes with the agent's end of its socket."""

    start: AgentOptions | None = None
    kill: int = 0


class Notice(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """To the node, in order. A notice of nothing started, failed or ended says that the server is ready."""

    started: int = 0
    failed: str = ""
    """Why nothing was started."""
    ended: int = 0
    status: int = 0
    """As `os.waitstatus_to_exitcode` has it."""
    forks: bool = False
    """With ready: agents are forked, not started anew."""


def main() -> None:
    options = msgspec.json.decode(sys.argv[2], type=ServerOptions)
    die_with_parent(options.parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    connection = socket.socket(fileno=int(sys.argv[1]))
    if options.fork:
        preload(*formats_of(options.framework))
    ForkServer(connection, fork=options.fork and threads() == 1).serve()


def threads() -> int:
    """A framework that starts threads at import cannot be forked safely: its locks may be held by threads that the child has not."""
    return len(os.listdir("/proc/self/task"))


class ForkServer:
    def __init__(self, connection: socket.socket, *, fork: bool) -> None:
        self._connection = connection
        self._fork = fork
        self._children: set[int] = set()
        self._popen: dict[int, subprocess.Popen[bytes]] = {}
        self._buffer = bytearray()
        self._fds: list[int] = []

    def serve(self) -> None:
        """Until the node hangs up; then every agent is killed."""
        wake, woken = socket.socketpair()
        woken.setblocking(False)
        wake.setblocking(False)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        signal.set_wakeup_fd(woken.fileno(), warn_on_full_buffer=False)
        self._inherited = (wake, woken)
        with selectors.DefaultSelector() as selector:
            self._selector = selector
            selector.register(self._connection, selectors.EVENT_READ)
            selector.register(wake, selectors.EVENT_READ)
            self._tell(Notice(forks=self._fork))
            while True:
                ready = [key.fileobj for key, _ in selector.select()]
                if wake in ready:
                    wake.recv(4096)
                    self._collect()
                if self._connection in ready and not self._receive():
                    break
        for pid in self._children:
            _kill(pid)

    def _receive(self) -> bool:
        try:
            data, fds, _, _ = socket.recv_fds(self._connection, 1 << 16, 8)
        except OSError:
            return False
        self._fds += fds
        self._buffer += data
        while (end := self._buffer.find(b"\n")) >= 0:
            order = msgspec.json.decode(self._buffer[:end], type=Order)
            del self._buffer[: end + 1]
            self._obey(order)
        return bool(data) and len(self._buffer) <= MOST

    def _obey(self, order: Order) -> None:
        if order.kill in self._children:
            _kill(order.kill)
        if order.start is not None and self._fds:
            fd = self._fds.pop(0)
            try:
                pid = self._start(order.start, fd)
            except OSError as e:
                self._tell(Notice(failed=f"the system starts no more processes ({os.strerror(e.errno or 0)})"))
            else:
                self._children.add(pid)
                self._tell(Notice(started=pid))
            finally:
                os.close(fd)

    def _start(self, options: AgentOptions, fd: int) -> int:
        if not self._fork:
            return self._spawn(options, fd)
        me = os.getpid()
        pid = os.fork()
        if pid:
            return pid
        try:
            self._become_agent()
            agent_main.run(os.dup(fd), options, me)
        finally:
            # an agent never returns into the server's loop
            os._exit(0)

    def _become_agent(self) -> None:
        """In the child: nothing of the server is left open."""
        os.setsid()
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        self._selector.close()
        for end in (*self._inherited, self._connection):
            end.close()

    def _spawn(self, options: AgentOptions, fd: int) -> int:
        arguments = [
            sys.executable,
            "-P",
            "-s",
            "-m",
            "dimnode.daemon.agent_main",
            str(fd),
            msgspec.json.encode(options).decode(),
            str(os.getpid()),
        ]
        process = subprocess.Popen(  # noqa: S603 - our own interpreter and module
            agent_main.confined_command(options, arguments),
            cwd=options.policy.scratch,
            pass_fds=(fd,),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        self._popen[process.pid] = process  # or its end would be waited for twice
        return process.pid

    def _collect(self) -> None:
        for pid in list(self._children):
            status = self._ended(pid)
            if status is not None:
                self._children.discard(pid)
                self._tell(Notice(ended=pid, status=status))

    def _ended(self, pid: int) -> int | None:
        if pid in self._popen:
            status = self._popen[pid].poll()
            if status is not None:
                del self._popen[pid]
            return status
        if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            return None
        _kill(pid)  # what it left behind, as long as nobody else can have its number
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    def _tell(self, notice: Notice) -> None:
        # a node that is gone shows at the next receive
        with contextlib.suppress(OSError):
            self._connection.sendall(msgspec.json.encode(notice) + b"\n")


def _kill(pid: int) -> None:
    """The agent and, where no sandbox forbids them, its children: the group outlives its leader."""
    for kill in (os.killpg, os.kill):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            kill(pid, signal.SIGKILL)


if __name__ == "__main__":
    main()

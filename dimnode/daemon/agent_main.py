"""The agent: a process that holds one model and runs it when its node asks.

Forked by a fork server, or started as ``python -m dimnode.daemon.agent_main FD JSON-OPTIONS PARENT``, with an empty working directory,
its own session and next to no environment. It puts itself into its sandbox before it touches a model, talks to its node over one
socket, and ends with it: on end of file, when the socket breaks while it computes (a watcher thread), and on Linux by
the kernel's parent-death signal.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import resource
import select
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import msgspec

from dimnode.daemon import model_about
from dimnode.daemon.agent_protocol import (
    PREFIX,
    Array,
    Header,
    ProtocolError,
    SchemaItem,
    pack,
    unpack_header,
    unpack_prefix,
    unpack_tensors,
)
from dimnode.daemon.grant import Grant, show_card
from dimnode.daemon.preload import preload
from dimnode.daemon.rows import independent
from dimnode.daemon.sandbox import linux, macos
from dimnode.daemon.sandbox.confine import confine
from dimnode.daemon.sandbox.policy import AgentPolicy
from dimnode.daemon.sandbox.report import CannotConfine, Confinement
from dimnode.daemon.shared_memory import attach
from dimnode.domain.tensors import DTYPES, MAX_ELEMENTS
from dimnode.errors import InvalidArgument
from loaders.api import (
    About,
    DeviceMissing,
    InferenceFailed,
    InputRejected,
    LoadedModel,
    LoaderError,
    ModelRejected,
    StreamingModel,
    TensorSchema,
)
from loaders.registry import open_loader
from loaders.trial import check_golden, made_up, try_out

MAX_REQUEST = 16 << 30
PIECE_INTERVAL = 0.05
"""Seconds between pieces of text: what comes faster is told together."""


class AgentOptions(msgspec.Struct, frozen=True, kw_only=True):
    policy: AgentPolicy
    grant: Grant
    format: str


def main() -> None:
    options = msgspec.json.decode(sys.argv[2], type=AgentOptions)
    preload(options.format)
    run(int(sys.argv[1]), options, int(sys.argv[3]), seatbelt=_seatbelt(options))


def run(fd: int, options: AgentOptions, parent: int, *, seatbelt: bool = False) -> None:
    """The whole life of an agent. ``fd``: its socket; ``parent``: the process that started it."""
    os.chdir(options.policy.scratch)
    # libraries that ask where temporary files go would try to write one
    tempfile.tempdir = options.policy.scratch
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    show_card(options.grant, os.environ)
    report, error = Confinement(), ""
    try:
        report = confine(options.policy, seatbelt=seatbelt, last=lambda: die_with_parent(parent))
    except CannotConfine as e:
        error = str(e)
    connection = socket.socket(fileno=fd)
    threading.Thread(target=watch, args=(connection.fileno(),), daemon=True).start()
    agent = Agent(connection, options.grant, unconfined=error)
    with contextlib.suppress(OSError):  # a node that is gone shows at the first receive
        agent.greet(report)
    agent.serve()


def die_with_parent(parent: int) -> None:
    """Ends this process when the thread ends that started it (Linux), and now if that has happened already."""
    if sys.platform == "linux":
        linux.prctl(linux.PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def _seatbelt(options: AgentOptions) -> bool:
    return sys.platform == "darwin" and options.policy.mode != "off" and macos.available()


def confined_command(options: AgentOptions, arguments: list[str]) -> list[str]:
    """How an agent is started that is not forked."""
    return macos.command(options.policy, arguments) if _seatbelt(options) else arguments


def watch(fd: int) -> None:
    """Ends the process when the node's end of the socket is gone, also in the middle of a computation."""
    poll = select.poll()
    poll.register(fd, 0)
    while True:
        for _, events in poll.poll():
            if events & (select.POLLHUP | select.POLLERR | select.POLLNVAL):
                os._exit(0)


class Agent:
    """``unconfined``: why it may not work, if the sandbox that it must have cannot be had."""

    def __init__(self, connection: socket.socket, grant: Grant, *, unconfined: str = "") -> None:
        self._connection = connection
        self._grant = grant
        self._unconfined = unconfined
        self._model: LoadedModel | None = None
        self._fds: list[int] = []
        self._in: mmap.mmap | None = None
        self._out: mmap.mmap | None = None

    def greet(self, report: Confinement) -> None:
        self._send(pack(Header(op="ready", confinement=report), {}))

    def serve(self) -> None:
        """Until the node hangs up."""
        while True:
            try:
                header, tensors = self._receive()
            except (EOFError, OSError, ValueError, IndexError, ProtocolError):
                return
            pieces = self._packed(header, tensors)
            del tensors
            try:
                self._send(pieces)
            except OSError:
                return

    def _packed(self, header: Header, tensors: dict[str, Array]) -> list[bytes | memoryview]:
        """The answer as a frame: one that no frame carries, or that there is no memory for, becomes an error."""
        try:
            return pack(*self._answer(header, tensors), self._out)
        except InvalidArgument as e:
            error = Header(op="error", kind="failed", message=f"the model's answer cannot be sent: {e.message}")
        except MemoryError:
            error = Header(op="error", kind="memory", message="the agent's memory limit was reached by the model's answer")
        except Exception as e:  # noqa: BLE001 - outputs are whatever a framework made of them; the agent lives
            error = Header(op="error", kind="failed", message=f"the model's answer cannot be sent ({type(e).__name__})")
        return pack(error, {})

    def _answer(self, header: Header, tensors: dict[str, Array]) -> tuple[Header, dict[str, Array]]:
        if self._unconfined:
            return Header(op="error", kind="unconfined", message=self._unconfined), {}
        try:
            if header.op == "load":
                return self._load(header), {}
            assert self._model is not None
            if header.op == "probe":
                return Header(op="result", independent=independent(self._model)), {}
            if header.stream and isinstance(self._model, StreamingModel):
                return Header(op="result"), self._stream(self._model, tensors)
            return Header(op="result"), self._model.run(tensors)
        except InputRejected as e:
            return Header(op="error", kind="input", message=str(e)), {}
        except InferenceFailed as e:
            return Header(op="error", kind="failed", message=str(e)), {}
        except DeviceMissing as e:
            return Header(op="error", kind="device", message=str(e)), {}
        except LoaderError as e:
            return Header(op="error", kind="rejected", message=str(e)), {}
        except MemoryError:
            return Header(op="error", kind="memory", message="the agent's memory limit was reached"), {}
        except Exception as e:  # noqa: BLE001 - whatever a framework raises becomes an answer, and the agent lives
            return Header(op="error", kind="failed", message=f"the loader failed with {type(e).__name__}"), {}

    def _stream(self, model: StreamingModel, tensors: dict[str, Array]) -> dict[str, Array]:
        pieces = Pieces(lambda row, text: self._send(pack(Header(op="partial", row=row, text=text), {})))
        try:
            return model.stream(tensors, pieces.tell)
        finally:
            pieces.flush()

    def _load(self, header: Header) -> Header:
        grant = self._grant
        about = replace(_said(header.about), device=grant.device, gpu_memory=grant.gpu_memory)
        self._model = model = open_loader(header.format).load(Path(header.path), grant.threads, about)
        if about.golden is not None:
            check_golden(model, about.golden)
        elif header.check:
            try_out(model)
        elif header.warm:
            warm_up(model)
        rows = independent(model) if header.rows and header.warm else None
        return Header(
            op="loaded",
            independent=rows,
            inputs=_items(model.schema.inputs),
            outputs=_items(model.schema.outputs),
            task=model.schema.task,
            memory=most_memory(),
        )

    def _receive(self) -> tuple[Header, dict[str, Array]]:
        header_size, payload_size = unpack_prefix(self._prefix(), MAX_REQUEST)
        header = unpack_header(self._exactly(header_size))
        if header.memory_in:
            self._in = attach(self._fds.pop(0), header.memory_in)
        if header.memory_out:
            self._out = attach(self._fds.pop(0), header.memory_out)
        return header, unpack_tensors(header.tensors, self._exactly(payload_size), self._in)

    def _prefix(self) -> bytes:
        """Descriptors come with a frame's first bytes."""
        data, fds, _, _ = socket.recv_fds(self._connection, PREFIX.size, 4)
        self._fds += fds
        if not data:
            raise EOFError
        return data + bytes(self._exactly(PREFIX.size - len(data)))

    def _exactly(self, n: int) -> bytearray:
        data = bytearray(n)
        view = memoryview(data)
        while view:
            got = self._connection.recv_into(view)
            if not got:
                raise EOFError
            view = view[got:]
        return data

    def _send(self, pieces: list[bytes | memoryview]) -> None:
        small = sum(map(len, pieces)) <= 1 << 16
        for piece in [b"".join(pieces)] if small else pieces:
            self._connection.sendall(piece)


class Pieces:
    """Pieces of text on their way to the node, joined until ``PIECE_INTERVAL`` is over."""

    def __init__(self, send: Callable[[int, str], None]) -> None:
        self._send = send
        self._row, self._text, self._sent = 0, "", 0.0

    def tell(self, row: int, text: str) -> None:
        if row != self._row:
            self.flush()
        self._row, self._text = row, self._text + text
        if time.monotonic() - self._sent >= PIECE_INTERVAL:
            self.flush()

    def flush(self) -> None:
        if self._text:
            self._send(self._row, self._text)
            self._text, self._sent = "", time.monotonic()


def _said(about: str) -> About:
    """Anybody may publish a manifest about anybody's file: what is wrong with it counts against it, and not against the file."""
    try:
        said = model_about.decode(about)
    except InvalidArgument as e:
        raise ModelRejected(f"its manifest is malformed: {e.message}") from e
    except (msgspec.DecodeError, ValueError, OverflowError, RecursionError) as e:
        raise ModelRejected("its manifest is malformed") from e
    for t in said.inputs:
        if t.dtype not in DTYPES or not all(0 <= n <= MAX_ELEMENTS for n in t.shape if isinstance(n, int)):
            raise ModelRejected(f"its manifest is malformed: input {t.name[:64]!r} has a dtype or a size that no tensor has")
    return said


def _items(tensors: tuple[TensorSchema, ...]) -> tuple[SchemaItem, ...]:
    return tuple(SchemaItem(t.name, t.dtype, t.shape, t.optional) for t in tensors)


def most_memory() -> int:
    """Bytes of RAM that this process has held at the most; macOS counts in bytes, others in KiB."""
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def warm_up(model: LoadedModel) -> None:
    """One run on zeros: the first run of a framework is many times slower than the next. Models that do
    not take zeros are none the worse."""
    inputs = dict(model.schema.sample) or made_up(model.schema, 1)
    if inputs is not None:  # or a manifest claims sizes that are out of all reason
        with contextlib.suppress(LoaderError):
            model.run(inputs)


if __name__ == "__main__":
    main()

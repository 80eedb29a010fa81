"""The agent: a process that holds one model and runs it when its node asks.

Started as ``python -m dimnode.daemon.agent_main FD JSON-LIMITS`` with an empty working directory, its own session
and next to no environment. It bounds itself before it touches a model, talks to its node over one socket,
and ends with it: on end of file, when the socket breaks while it computes (a watcher thread), and on Linux by
the kernel's parent-death signal.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import select
import signal
import socket
import sys
import tempfile
import threading
from pathlib import Path

import msgspec
import numpy as np

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
from loaders.api import InferenceFailed, InputRejected, LoadedModel, LoaderError, ModelSchema, TensorSchema
from loaders.registry import open_loader
from loaders.trial import check_golden, try_out

PR_SET_PDEATHSIG = 1
MAX_REQUEST = 16 << 30


class Limits(msgspec.Struct, frozen=True):
    memory: int
    file_bytes: int
    open_files: int
    threads: int
    parent: int


def main() -> None:
    limits = msgspec.json.decode(sys.argv[2], type=Limits)
    bound(limits)
    connection = socket.socket(fileno=int(sys.argv[1]))
    threading.Thread(target=watch, args=(connection.fileno(),), daemon=True).start()
    Agent(connection, limits.threads).serve()


def bound(limits: Limits) -> None:
    """Resource limits for good, and death with the parent. Limits that the system lacks are skipped."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != limits.parent:
        os._exit(1)
    # libraries that ask where temporary files go would try to write one
    tempfile.tempdir = os.getcwd()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    wanted = {
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_FSIZE: limits.file_bytes,
        resource.RLIMIT_NOFILE: limits.open_files,
        resource.RLIMIT_DATA: limits.memory,
    }
    for which, amount in wanted.items():
        _, hard = resource.getrlimit(which)
        least = amount if hard == resource.RLIM_INFINITY else min(amount, hard)
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(which, (least, least))


def watch(fd: int) -> None:
    """Ends the process when the node's end of the socket is gone, also in the middle of a computation."""
    poll = select.poll()
    poll.register(fd, 0)
    while True:
        for _, events in poll.poll():
            if events & (select.POLLHUP | select.POLLERR | select.POLLNVAL):
                os._exit(0)


class Agent:
    def __init__(self, connection: socket.socket, threads: int) -> None:
        self._connection = connection
        self._threads = threads
        self._model: LoadedModel | None = None

    def serve(self) -> None:
        """Until the node hangs up."""
        while True:
            try:
                header, tensors = self._receive()
            except (EOFError, OSError, ProtocolError):
                return
            reply, outputs = self._answer(header, tensors)
            del tensors
            try:
                self._send(pack(reply, outputs))
            except OSError:
                return

    def _answer(self, header: Header, tensors: dict[str, Array]) -> tuple[Header, dict[str, Array]]:
        try:
            if header.op == "load":
                return self._load(header), {}
            assert self._model is not None
            return Header(op="result"), self._model.run(tensors)
        except InputRejected as e:
            return Header(op="error", kind="input", message=str(e)), {}
        except InferenceFailed as e:
            return Header(op="error", kind="failed", message=str(e)), {}
        except LoaderError as e:
            return Header(op="error", kind="rejected", message=str(e)), {}
        except MemoryError:
            return Header(op="error", kind="memory", message="the agent's memory limit was reached"), {}
        except Exception as e:  # noqa: BLE001 - whatever a framework raises becomes an answer, and the agent lives
            return Header(op="error", kind="failed", message=f"the loader failed with {type(e).__name__}"), {}

    def _load(self, header: Header) -> Header:
        about = model_about.decode(header.about)
        self._model = model = open_loader(header.format).load(Path(header.path), self._threads, about)
        if about.golden is not None:
            check_golden(model, about.golden)
        elif header.check:
            try_out(model)
        elif header.warm:
            warm_up(model)
        return Header(op="loaded", inputs=_items(model.schema.inputs), outputs=_items(model.schema.outputs), memory=most_memory())

    def _receive(self) -> tuple[Header, dict[str, Array]]:
        header_size, payload_size = unpack_prefix(self._exactly(PREFIX.size), MAX_REQUEST)
        header = unpack_header(self._exactly(header_size))
        return header, unpack_tensors(header.tensors, self._exactly(payload_size))

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


def _items(tensors: tuple[TensorSchema, ...]) -> tuple[SchemaItem, ...]:
    return tuple(SchemaItem(t.name, t.dtype, t.shape) for t in tensors)


def most_memory() -> int:
    """Bytes of RAM that this process has held at the most; macOS counts in bytes, others in KiB."""
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def warm_up(model: LoadedModel) -> None:
    """One run on zeros: the first run of a framework is many times slower than the next. Models that do
    not take zeros are none the worse."""
    with contextlib.suppress(LoaderError):
        model.run(zeros(model.schema))


def zeros(schema: ModelSchema) -> dict[str, Array]:
    """Smallest inputs that fit: unknown axes are 1."""
    out: dict[str, Array] = {}
    for t in schema.inputs:
        shape = tuple(n if isinstance(n, int) else 1 for n in t.shape)
        out[t.name] = np.full(shape, "", dtype=object) if t.dtype == "str" else np.zeros(shape, dtype=t.dtype)
    return out


if __name__ == "__main__":
    main()

"""One thread that starts the processes of a node."""

from __future__ import annotations

import queue
import subprocess
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

import trio


class Spawner:
    """One thread that starts all of them.

    Linux sends the parent-death signal when the *thread* that started a process ends, so they must not be
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
        """Ends the thread, and with it, on Linux, processes that are still there."""
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

"""Many lives of one process, each of which is ended by kill -9 at some point; and the programs that live them.

Such a program is loaded once and forks for each seed on stdin (`live`); ``pid N`` begins a life and ``dead`` ends it.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import trio

ROOT = Path(__file__).parents[2]


class Lives:
    def __init__(self, process: trio.Process) -> None:
        self._process = process
        self._text = b""

    async def _line(self) -> str:
        while b"\n" not in self._text:
            self._text += await self._process.stdout.receive_some()  # type: ignore[union-attr]
        line, _, self._text = self._text.partition(b"\n")
        return line.decode()

    async def live(self, seed: int, lines: int) -> list[str]:
        """What was said until the kill, which comes after so many lines and at any point of what follows them, or at the life's end."""
        await self._process.stdin.send_all(b"%d\n" % seed)  # type: ignore[union-attr]
        pid = int((await self._line()).removeprefix("pid "))
        said: list[str] = []
        while len(said) < lines:
            if (line := await self._line()) == "dead":
                return said
            said.append(line)
        with suppress(ProcessLookupError):  # it has ended by itself
            os.kill(pid, signal.SIGKILL)
        while (line := await self._line()) != "dead":
            said.append(line)
        return said


@asynccontextmanager
async def lives_of(program: str, *arguments: str) -> AsyncGenerator[Lives, None]:
    """``program``: a module."""
    command = [sys.executable, "-m", program, *arguments]
    async with trio.open_nursery() as nursery:
        process = await nursery.start(
            lambda **kwargs: trio.run_process(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, check=False, **kwargs)
        )
        yield Lives(process)
        await process.stdin.aclose()


def say(line: str) -> None:
    """In one write, so that a kill leaves no half of it."""
    os.write(1, line.encode() + b"\n")


def live(life: Callable[..., Awaitable[None]], *arguments: object) -> None:
    """The program: ``life(*arguments, seed)`` for each seed."""
    for line in sys.stdin:
        if not (child := os.fork()):
            try:
                say(f"pid {os.getpid()}")
                trio.run(life, *arguments, int(line))
            finally:
                os._exit(0)
        os.waitpid(child, 0)
        say("dead")

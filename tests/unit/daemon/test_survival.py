"""What goes wrong beside a task ends at most that task."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
import trio

from dimnode.daemon import resources
from dimnode.daemon import spawner as spawner_module
from dimnode.daemon.resources import ResourceMonitor, take_snapshot
from dimnode.daemon.spawner import Spawner


async def test_a_start_that_fails_oddly_is_the_callers_and_the_next_one_works(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    spawner = Spawner()
    real = spawner_module._popen

    def odd(*_: object) -> None:
        raise RuntimeError("not an OSError")

    ours, theirs = socket.socketpair()
    with ours, theirs, trio.fail_after(10):
        monkeypatch.setattr(spawner_module, "_popen", odd)
        with pytest.raises(RuntimeError, match="not an OSError"):
            await spawner.start(["true"], cwd=tmp_path, env={}, fd=theirs.fileno())
        monkeypatch.setattr(spawner_module, "_popen", real)
        process = await spawner.start(["true"], cwd=tmp_path, env=dict(os.environ), fd=theirs.fileno())
        assert await trio.to_thread.run_sync(process.wait, 10) == 0
    spawner.close()


async def test_a_disk_that_cannot_be_looked_at_leaves_the_last_view(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    looks, seen_again = 0, trio.Event()

    def look(folder: Path) -> resources.Snapshot:
        nonlocal looks
        looks += 1
        if looks == 2:
            raise OSError("stale handle")
        return take_snapshot(folder)

    monkeypatch.setattr(resources, "take_snapshot", look)
    async with trio.open_nursery() as nursery:
        monitor = ResourceMonitor(tmp_path, interval=0.01, on_change=seen_again.set)
        await nursery.start(monitor.run)
        first = monitor.latest
        with trio.fail_after(10):
            await seen_again.wait()
        assert looks >= 3
        assert monitor.latest is not first
        nursery.cancel_scope.cancel()

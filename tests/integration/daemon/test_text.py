"""Text generation in a daemon with real agents: told while it grows, cancelled, out of time, crashed, refused."""

from __future__ import annotations

import os
import signal
from contextlib import aclosing
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import trio

from dimnode.domain.record import Attempt
from dimnode.domain.task import CabinetQuery, TaskUpdate, TextPiece
from dimnode.domain.tensors import to_numpy
from dimnode.errors import FailedPrecondition
from tests.support.daemon import BALLOT, Bench, finish, order, running_daemon, with_agents
from tests.support.language_models import about_pickle, tiny_folder

PROMPTS = np.array(["Hello", "The licence"], dtype=object)
LONG = {"prompt": np.array(["Hello"], dtype=object), "max_tokens": np.array(8000, np.int32)}


async def add(bench: Bench, folder: Path) -> tuple[Any, str]:
    return await bench.daemon.add_model_file(folder, id="tiny", licence="MIT", batch_axis=None)


async def begun(bench: Bench, task: Any) -> None:
    """Returns when there is some text."""
    async with aclosing(bench.daemon.run_task(task, "c")) as updates:
        async for update in updates:
            if update.piece is not None:
                return
    raise AssertionError("it ended before anything was told")


def joined(updates: list[TaskUpdate], row: int) -> str:
    pieces = [u.piece for u in updates if u.piece is not None and u.piece.row == row]
    text = ""
    for piece in pieces:
        assert piece.offset == len(text)
        text += piece.text
    return text


def body_of(updates: list[TaskUpdate]) -> Attempt:
    entry = updates[-1].entry
    assert entry is not None
    body = entry.body()
    assert isinstance(body, Attempt)
    return body


async def test_text_is_told_while_it_grows_and_what_is_signed_is_the_whole(tmp_path: Path) -> None:
    async with running_daemon(tmp_path / "home") as bench:
        manifest, cid = await add(bench, tiny_folder(tmp_path / "m", stops=False))
        assert (manifest.format, manifest.task) == ("mlx-lm", "text-generation")
        assert [t.name for t in manifest.inputs if not t.optional] == ["prompt"]
        assert manifest.batched_inputs() == {"prompt"}
        task = order(manifest, cid, {"prompt": PROMPTS, "max_tokens": np.array(120, np.int32)})
        updates = [u async for u in bench.daemon.run_task(task, "c")]
        assert [u.stage for u in updates if u.piece is None] == ["accepted", "fetching", "running", "finished"]
        assert updates[-1].stage == "finished"
        text = to_numpy(body_of(updates).outputs["text"]).tolist()
        assert [joined(updates, row) for row in (0, 1)] == text
        assert sum(u.piece is not None for u in updates) > 2  # not all at once
        again = [u async for u in bench.daemon.run_task(task, "c")]  # it is done: there is nothing to tell but its end
        assert [u.stage for u in again] == ["finished"]
        entries = await bench.journal.load("job-1")
        assert [type(e.body()).__name__ for e in entries] == ["Attempt"]


async def test_a_late_caller_gets_what_there_is_and_cancelling_ends_it_at_once(tmp_path: Path) -> None:
    async with running_daemon(tmp_path / "home") as bench:
        manifest, cid = await add(bench, tiny_folder(tmp_path / "m", stops=False))
        task = order(manifest, cid, LONG)
        await begun(bench, task)
        pid = next(a["pid"] for a in bench.daemon.stats()["agents"]["agents"] if a["busy"])
        updates: list[TaskUpdate] = []
        async with aclosing(bench.daemon.run_task(task, "late")) as late:
            async for update in late:
                updates.append(update)
                if update.piece is not None:
                    break
        assert updates[-1].piece is not None
        assert updates[-1].piece.offset == 0
        began = trio.current_time()
        assert await bench.daemon.cancel_task(task.job, task.task, task.attempt, BALLOT)
        done = await finish(bench.daemon, task)
        assert done.status == "cancelled"
        assert trio.current_time() - began < 2
        with trio.fail_after(5):
            while psutil.pid_exists(pid):
                await trio.sleep(0.02)


async def test_the_deadline_ends_it(tmp_path: Path) -> None:
    async with running_daemon(tmp_path / "home") as bench:
        manifest, cid = await add(bench, tiny_folder(tmp_path / "m", stops=False))
        assert await bench.daemon.prewarm(manifest.cid, cid, ())
        updates = [u async for u in bench.daemon.run_task(order(manifest, cid, LONG, timeout=2.0), "c")]
        done = body_of(updates)
        assert (done.status, done.error.code if done.error else "") == ("failed", "DEADLINE_EXCEEDED")
        assert joined(updates, 0)


async def test_a_crash_in_the_middle_fails_the_attempt_and_the_next_one_begins_anew(tmp_path: Path) -> None:
    async with running_daemon(tmp_path / "home") as bench:
        manifest, cid = await add(bench, tiny_folder(tmp_path / "m", stops=False))
        await begun(bench, order(manifest, cid, LONG))
        os.kill(next(a["pid"] for a in bench.daemon.stats()["agents"]["agents"] if a["busy"]), signal.SIGSEGV)
        done = await finish(bench.daemon, order(manifest, cid, LONG))
        assert (done.status, done.retryable) == ("failed", True)
        assert done.error is not None
        assert "SIGSEGV" in done.error.message
        short = {**LONG, "max_tokens": np.array(20, np.int32)}
        updates = [u async for u in bench.daemon.run_task(order(manifest, cid, short, attempt=2), "c")]
        first = next(u.piece for u in updates if u.piece is not None)
        assert isinstance(first, TextPiece)
        assert first.offset == 0
        assert joined(updates, 0) == to_numpy(body_of(updates).outputs["text"]).tolist()[0]


async def test_nothing_of_a_cabinet_is_told_before_its_time(tmp_path: Path) -> None:
    async with running_daemon(tmp_path / "home") as bench:
        manifest, cid = await add(bench, tiny_folder(tmp_path / "m", stops=False))
        (tmp_path / "notes.csv").write_text("prompt\nHello\nThe licence\n")
        await bench.daemon.add_cabinet("notes", tmp_path / "notes.csv", {"outputs": "rows"})
        task = order(manifest, cid, {"max_tokens": np.array(30, np.int32)}, cabinet=CabinetQuery(name="notes"))
        updates = [u async for u in bench.daemon.run_task(task, "c")]
        assert body_of(updates).status == "completed", body_of(updates).error
        assert len(to_numpy(body_of(updates).outputs["text"])) == 2
        assert all(u.piece is None for u in updates)


async def test_hostile_folders_are_not_published(tmp_path: Path) -> None:
    async with running_daemon(tmp_path / "home", settings=with_agents(start_timeout=5.0)) as bench:
        folder = tiny_folder(tmp_path / "m")
        about_pickle(folder)
        with pytest.raises(FailedPrecondition, match=r"pytorch_model\.bin"):
            await add(bench, folder)
        with pytest.raises(FailedPrecondition, match="SecurityError"):
            await add(bench, tiny_folder(tmp_path / "t", template="{{ ''.__class__.__mro__[1].__subclasses__() }}"))
        endless = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
        with trio.fail_after(60), pytest.raises(Exception, match="not loaded within"):
            await add(bench, tiny_folder(tmp_path / "e", template=endless))
        assert not bench.daemon.models() or all(m.id != "tiny" for m in bench.daemon.models())

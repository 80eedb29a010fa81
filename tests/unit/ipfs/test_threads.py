"""Short calls that go to threads together."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest
import trio
import trio.testing

from p2p.ipfs.threads import Together


def together(lanes: int = 1, most: int = 16) -> Together:
    return Together(trio.CapacityLimiter(8), lanes=lanes, most=most)


def count_trips(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many calls went each time."""
    trips: list[int] = []
    real = trio.to_thread.run_sync

    async def count(function: Any, batch: list[Any], **kwargs: Any) -> None:
        trips.append(len(batch))
        await real(function, batch, **kwargs)

    monkeypatch.setattr(trio.to_thread, "run_sync", count)
    return trips


async def test_calls_that_come_while_a_thread_is_busy_go_together(monkeypatch: pytest.MonkeyPatch):
    calls, threads = together(), list[int]()
    gate = threading.Event()

    def note(number: int) -> int:
        gate.wait(5)
        threads.append(number)
        return number * number

    results: dict[int, int] = {}
    trips = count_trips(monkeypatch)

    async def one(number: int) -> None:
        results[number] = await calls.run(lambda: note(number))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(one, 0)
        await trio.testing.wait_all_tasks_blocked(0.05)
        for number in range(1, 40):
            nursery.start_soon(one, number)
        await trio.testing.wait_all_tasks_blocked(0.05)
        gate.set()
    assert results == {n: n * n for n in range(40)}
    assert threads[0] == 0
    assert trips == [1, 16, 16, 7]


async def test_calls_at_the_same_time_are_one_trip_even_if_no_thread_is_busy(monkeypatch: pytest.MonkeyPatch):
    trips = count_trips(monkeypatch)
    calls = together()
    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(calls.run, time.monotonic)
    assert trips == [16, 4]


async def test_each_gets_its_own_error():
    calls = together()
    errors: dict[int, tuple[type[BaseException], int] | None] = {}

    def fail(number: int) -> None:
        if number % 2:
            raise FileNotFoundError(number)
        if number == 4:
            raise ValueError(number)

    async def one(number: int) -> None:
        try:
            await calls.run(lambda: fail(number))
        except (FileNotFoundError, ValueError) as error:
            errors[number] = type(error), error.args[0]
        else:
            errors[number] = None

    async with trio.open_nursery() as nursery:
        for number in range(6):
            nursery.start_soon(one, number)
    lost = {n: (FileNotFoundError, n) for n in (1, 3, 5)}
    assert errors == {0: None, 2: None, 4: (ValueError, 4), **lost}


@pytest.mark.parametrize("lanes", [1, 2, 3])
async def test_so_many_threads_at_once_and_so_many_calls_in_one_go(lanes: int):
    calls = together(lanes, most=4)
    lock = threading.Lock()
    now, most = 0, 0

    def work() -> None:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        time.sleep(0.002)
        with lock:
            now -= 1

    async with trio.open_nursery() as nursery:
        for _ in range(60):
            nursery.start_soon(calls.run, work)
    assert most == lanes


@pytest.mark.parametrize("seed", range(30))
async def test_whoever_is_cancelled_holds_nobody_up(seed: int):
    """At any moment: while it waits, leads, or has just been told to lead."""
    rng_delays = [(seed * 7919 + i * 104729) % 1000 / 1e6 for i in range(40)]
    calls = together(lanes=1 + seed % 2, most=3)
    done = 0

    async def one(delay: float, patience: float | None) -> None:
        nonlocal done
        await trio.sleep(delay)
        with trio.CancelScope(deadline=trio.current_time() + patience if patience is not None else float("inf")):
            await calls.run(lambda: time.sleep(0.0002))
            if patience is None:
                done += 1

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            for i, delay in enumerate(rng_delays):
                nursery.start_soon(one, delay, None if i % 3 == 0 else delay / 2)
        assert done == len(rng_delays[::3])
        assert await calls.run(lambda: "still there") == "still there"


async def test_who_leads_and_is_cancelled_while_all_threads_are_busy_leaves_the_others_to_the_next():
    limiter = trio.CapacityLimiter(1)
    calls = Together(limiter, lanes=1, most=16)
    await limiter.acquire_on_behalf_of("a slow disk")
    results: list[str] = []

    async def one(name: str, patience: float) -> None:
        with trio.move_on_after(patience):
            results.append(await calls.run(lambda: name))

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(one, "leads", 0.05)
            await trio.sleep(0.02)
            nursery.start_soon(one, "waits", 5)
            nursery.start_soon(one, "gives up", 0.1)
            await trio.sleep(0.2)
            limiter.release_on_behalf_of("a slow disk")
    assert results == ["waits"]
    assert limiter.borrowed_tokens == 0


async def test_when_no_thread_can_be_started_all_are_told(monkeypatch: pytest.MonkeyPatch):
    async def none_left(*args: Any, **kwargs: Any) -> None:
        await trio.lowlevel.checkpoint()
        raise RuntimeError("can't start new thread")

    calls = together()
    errors: list[str] = []

    async def one() -> None:
        try:
            await calls.run(lambda: "never")
        except RuntimeError as error:
            errors.append(str(error))

    with trio.fail_after(10):
        with monkeypatch.context() as patch:
            patch.setattr(trio.to_thread, "run_sync", none_left)
            async with trio.open_nursery() as nursery:
                for _ in range(20):
                    nursery.start_soon(one)
        assert errors == ["can't start new thread"] * 20
        assert await calls.run(lambda: "now") == "now"


async def test_an_error_that_ends_programs_reaches_its_caller_only():
    def leave() -> None:
        raise SystemExit(3)

    calls = together()
    ends: list[int] = []

    async def one() -> None:
        try:
            await calls.run(leave)
        except SystemExit as end:
            ends.append(end.code)  # type: ignore[arg-type]

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(one)
            nursery.start_soon(calls.run, lambda: None)
    assert ends == [3]

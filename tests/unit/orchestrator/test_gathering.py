"""Calls that come at the same time go on together; nobody waits for nothing, and nobody is forgotten."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from dimnode.errors import Code, DimError, InvalidArgument, NotFound, ResourceExhausted, Unavailable
from dimnode.orchestrator.gathering import Gathering, GatheringSettings


class Desk:
    """Takes a second for a batch and answers each word with its upper case; words with an ``x`` are refused."""

    def __init__(self, nursery: trio.Nursery | None) -> None:
        self.nursery = nursery
        self.batches: list[list[str]] = []
        self.failure: DimError | None = None

    def start(self, work: Any, *args: Any) -> bool:
        if self.nursery is None:
            return False
        self.nursery.start_soon(work, *args)
        return True

    async def act(self, kind: Hashable, words: Sequence[str]) -> list[str | Exception]:
        self.batches.append([f"{kind}{w}" if kind else w for w in words])
        await trio.sleep(1)
        if self.failure is not None:
            raise self.failure
        return [NotFound(f"no {w}") if "x" in w else w.upper() for w in words]


async def ask(gathering: Gathering[str, str], words: Sequence[str], kind: str = "", size: int = 1) -> dict[str, str | Exception]:
    answers: dict[str, str | Exception] = {}

    async def one(word: str) -> None:
        try:
            answers[word] = await gathering.call(word, kind, size)
        except DimError as e:
            answers[word] = e

    async with trio.open_nursery() as nursery:
        for word in words:
            nursery.start_soon(one, word)
            await trio.testing.wait_all_tasks_blocked()
    return answers


async def test_who_comes_alone_waits_for_nobody_and_what_comes_meanwhile_goes_together(autojump_clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:
        desk = Desk(nursery)
        answers = await ask(Gathering(desk.act, desk.start, GatheringSettings(at_once=2, slow_after=5)), list("abcdef"))
        assert desk.batches == [["a"], ["b"], ["c", "d", "e", "f"]]
        assert answers == {w: w.upper() for w in "abcdef"}
        assert trio.current_time() < 2.5


async def test_nobody_waits_for_a_slow_batch(autojump_clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:
        desk = Desk(nursery)
        answers = await ask(Gathering(desk.act, desk.start, GatheringSettings(slow_after=0.1)), list("abcdef"))
        assert desk.batches == [["a"], ["b", "c", "d", "e", "f"]]
        assert answers == {w: w.upper() for w in "abcdef"}
        assert 1.0 < trio.current_time() < 1.2


async def test_batches_are_bounded_in_number_and_bytes_and_are_of_one_kind(autojump_clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:
        desk = Desk(nursery)
        gathering: Gathering[str, str] = Gathering(desk.act, desk.start, GatheringSettings(slow_after=5, most=3, max_bytes=5))
        await ask(gathering, list("abcdefgh"))
        assert desk.batches == [["a"], ["b", "c", "d"], ["e", "f", "g"], ["h"]]
        desk.batches.clear()
        await ask(gathering, list("abcd"), size=3)  # one alone may have more than there is room for two
        await ask(gathering, list("ab"), size=9)
        assert desk.batches == [["a"], ["b"], ["c"], ["d"], ["a"], ["b"]]
        desk.batches.clear()
        async with trio.open_nursery() as clients:
            for kind in ("1", "2"):
                clients.start_soon(ask, gathering, ["a", "b", "c"], kind)
        assert all(len({w[0] for w in batch}) == 1 for batch in desk.batches)
        assert sorted(w for batch in desk.batches for w in batch) == ["1a", "1b", "1c", "2a", "2b", "2c"]


async def test_a_refusal_is_of_one_and_a_failure_of_all_of_its_batch(autojump_clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:
        desk = Desk(nursery)
        gathering: Gathering[str, str] = Gathering(desk.act, desk.start, GatheringSettings(slow_after=5))
        answers = await ask(gathering, ["a", "b", "x", "c"])
        assert isinstance(answers.pop("x"), NotFound)
        assert answers == {"a": "A", "b": "B", "c": "C"}
        desk.failure = InvalidArgument("no", hint="why")
        answers = await ask(gathering, ["a", "b", "c"])
        errors = [e for e in answers.values() if isinstance(e, InvalidArgument) and e.hint == "why"]
        assert len(set(map(id, errors))) == 3


async def test_a_mistake_fails_its_batch_and_nothing_else(autojump_clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:
        desk = Desk(nursery)

        async def mistake(kind: Hashable, words: Sequence[str]) -> list[str | Exception]:
            return [] if "z" in words else await desk.act(kind, words)

        gathering: Gathering[str, str] = Gathering(mistake, desk.start)
        answers = await ask(gathering, ["z"])
        assert isinstance(answers["z"], DimError)
        assert answers["z"].code is Code.INTERNAL
        assert await ask(gathering, ["a"]) == {"a": "A"}


async def test_who_is_cancelled_while_he_waits_is_left_out(autojump_clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:
        desk = Desk(nursery)
        gathering: Gathering[str, str] = Gathering(desk.act, desk.start, GatheringSettings(slow_after=5))
        nursery.start_soon(ask, gathering, ["a"])
        await trio.testing.wait_all_tasks_blocked()
        with trio.move_on_after(0.5):
            await gathering.call("b", "", 1)
        assert await gathering.call("c", "", 1) == "C"
        assert desk.batches == [["a"], ["c"]]
        assert gathering.pending == 0


async def test_when_the_owner_ends_everybody_hears_so(autojump_clock: MockClock) -> None:
    nobody = Desk(None)
    with pytest.raises(Unavailable):
        await Gathering(nobody.act, nobody.start).call("a", "", 1)
    heard: dict[str, str | Exception] = {}
    async with trio.open_nursery() as clients, trio.open_nursery() as nursery:
        desk = Desk(nursery)
        gathering: Gathering[str, str] = Gathering(desk.act, desk.start, GatheringSettings(slow_after=5))

        async def client() -> None:
            heard.update(await ask(gathering, ["a", "b", "c"]))

        clients.start_soon(client)
        await trio.sleep(0.5)
        desk.nursery = None
        nursery.cancel_scope.cancel()
    assert len(heard) == 3
    assert all(isinstance(e, Unavailable) for e in heard.values())


async def test_no_more_wait_than_may(autojump_clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:
        desk = Desk(nursery)
        gathering: Gathering[str, str] = Gathering(desk.act, desk.start, GatheringSettings(slow_after=5, max_waiting=2))
        answers = await ask(gathering, list("abcd"))
        assert [w for w, a in answers.items() if isinstance(a, ResourceExhausted)] == ["d"]

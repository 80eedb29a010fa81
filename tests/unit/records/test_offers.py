"""Results that nobody fetched are offered to the seats, whatever becomes of them in the meantime."""

from __future__ import annotations

from collections.abc import Collection
from types import SimpleNamespace
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from dimnode.clock import TrioClock
from dimnode.core.offers import OfferSettings
from dimnode.domain import codec
from dimnode.records.messages import ResultsAnswer, ResultsRequest
from dimnode.records.offers import OffersSettings, ResultOffers
from tests.support import entries as e


class Seat:
    """A swarm of one seat, which takes all that it is offered."""

    peer_id = "here"

    def __init__(self) -> None:
        self.offered: list[str] = []

    def seats(self) -> list[Any]:
        return [SimpleNamespace(peer="seat", boot="b")]

    def changed(self) -> int:
        return 0

    async def wait_changed(self, since: int) -> int:
        await trio.sleep_forever()
        return 0

    async def request(self, peer: str, method: str, data: bytes, timeout: float) -> bytes:
        ids = tuple(entry.id for entry in codec.decode(data, ResultsRequest).entries)
        self.offered += ids
        await trio.sleep(0.1)
        return codec.encode(ResultsAnswer(received=ids))


class Kept:
    """Gives one entry to whoever looks first; by the next look somebody fetched it."""

    def __init__(self, *, until_offered: bool) -> None:
        self._entries = [e.claim(1, "here")]
        self._until_offered = until_offered
        self.fetched_ids: set[str] = set()

    def unfetched(self) -> tuple[Any, ...]:
        now = tuple(x for x in self._entries if x.id not in self.fetched_ids)
        if not self._until_offered:
            self._entries.clear()
        return now

    def fetched(self, entry_ids: Collection[str]) -> None:
        self.fetched_ids.update(entry_ids)

    async def wait_unfetched(self, since: int) -> int:
        await trio.sleep_forever()
        return 0


async def played(kept: Kept, seconds: float = 5.0, **timing: Any) -> list[str]:
    seat = Seat()
    settings = OffersSettings(results=OfferSettings(settle=0.0, pause_most=30.0, **timing))
    offers = ResultOffers(seat, seat, TrioClock(), kept, settings)  # type: ignore[arg-type]
    with trio.move_on_after(seconds):
        await offers.run()
    return seat.offered


async def test_what_a_seat_received_is_not_offered_again(autojump_clock: MockClock) -> None:
    kept = Kept(until_offered=True)
    offered = await played(kept)
    assert len(offered) == 1
    assert kept.fetched_ids == set(offered)


@pytest.mark.parametrize("again", range(20))
async def test_a_result_may_be_fetched_between_the_planning_of_a_turn_and_the_turn(again: int) -> None:
    """The loop that plans comes round before the turn has begun, on a slow machine. Which of the two is first is chance."""
    assert len(await played(Kept(until_offered=False), 0.02, turn=1e-6, pause=1e-6)) <= 1

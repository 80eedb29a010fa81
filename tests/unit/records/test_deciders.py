"""With a list of who may decide: what is told without a signature, and what fences by being asked."""

from __future__ import annotations

from typing import Any

import pytest
from trio.testing import MockClock

from dimnode.core.job_record import Record
from dimnode.core.record_gate import EntryRules
from dimnode.domain import codec
from dimnode.domain.record import Ballot
from dimnode.domain.task import TaskReport
from dimnode.records.answers import fence_of
from dimnode.records.messages import ATTEMPTS, AttemptsAnswer, AttemptsRequest, StoreResult
from dimnode.records.no_copies import NoCopies
from dimnode.records.questions import Questions
from dimnode.records.table import RecordTable
from dimnode.state.memory_journal import MemoryJournal
from p2p.api import RemoteFault
from p2p.memory import MemoryHub
from tests.support import entries as e

LIST = EntryRules(e.fake_verify, deciders=frozenset({"p", "r"}))
RECORD = Record(e.JOB, [e.core(), e.claim(3)])


def told(ballot: Ballot | None, *entries: Any) -> StoreResult:
    return StoreResult(job=e.JOB, status="fenced", ballot=ballot, entries=tuple(entries))


@pytest.mark.parametrize(
    ("answer", "with_list", "without"),
    [
        (told(e.ballot(4, "r")), e.ballot(4, "r"), e.ballot(4, "r")),
        (told(e.ballot(4, "q")), None, e.ballot(4, "q")),
        (told(e.ballot(4 + (1 << 20), "r")), None, None),
        (told(None, e.claim(5, "r")), e.ballot(5, "r"), e.ballot(5, "r")),
        (told(e.ballot(9, "q"), e.claim(9, "q"), e.claim(5, "r")), e.ballot(5, "r"), e.ballot(9, "q")),
        (told(None), None, None),
    ],
)
def test_a_fence_is_believed_of_whom_it_may_come_from(answer: StoreResult, with_list: Ballot | None, without: Ballot | None) -> None:
    assert (fence_of(e.JOB, answer, RECORD, LIST) or (None,))[0] == with_list
    assert (fence_of(e.JOB, answer, RECORD, e.RULES) or (None,))[0] == without


class Daemon:
    def __init__(self) -> None:
        self.asked: list[tuple[str, Ballot]] = []

    async def attempts_of(self, job: str, ballot: Ballot) -> TaskReport:
        self.asked.append((job, ballot))
        return TaskReport()


async def test_who_may_not_decide_fences_nobody_by_asking(autojump_clock: MockClock) -> None:
    async with MemoryHub() as hub:
        daemon, node = Daemon(), hub.network("node")
        table = RecordTable(MemoryJournal(), e.FakeSigner("node"), NoCopies())
        Questions(node, table, daemon, lambda: None, rules=LIST)  # type: ignore[arg-type]
        networks = {peer: hub.network(peer) for peer in "pq"}
        hub.connect_all()

        async def ask(peer: str) -> AttemptsAnswer:
            request = AttemptsRequest(jobs=((e.JOB, e.ballot(1000, peer)),))
            return codec.decode(await networks[peer].request("node", ATTEMPTS, codec.encode(request), timeout=1), AttemptsAnswer)

        with pytest.raises(RemoteFault, match="may not take jobs over"):
            await ask("q")
        assert len((await ask("p")).reports) == 1
        assert daemon.asked == [(e.JOB, e.ballot(1000, "p"))]

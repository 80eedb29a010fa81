"""Blocks of the published state: read back as they were written, or refused."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dimnode.core.job_record import Record
from dimnode.domain.record import SignedEntry
from dimnode.ports import NodeView
from dimnode.snapshots import documents, records_file
from dimnode.snapshots.documents import JobSummary, Root
from dimnode.snapshots.members import Roster, checked, later
from dimnode.swarm import heartbeats
from p2p.ipfs import cid as cids
from p2p.ipfs import dagcbor
from p2p.ipfs.api import BlockCorrupt
from tests.support.entries import FakeSigner, claim, core, fake_verify, outcome, status
from tests.support.state_nodes import job
from tests.support.swarm import heartbeat

CID = cids.compute(cids.DAG_CBOR, b"\xa0")
CARD = documents.sign_card(FakeSigner("a"), "dim", "k51", 1.5)


def summary(name: str, *entries: SignedEntry) -> JobSummary:
    return documents.summary(Record(name, entries))


async def pieces(data: bytes, size: int) -> AsyncGenerator[bytes, None]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


async def read(data: bytes, wanted: set[str], size: int = 1000) -> dict[str, list[SignedEntry]]:
    async with aclosing(pieces(data, size)) as given_, aclosing(records_file.records(given_, wanted)) as found:
        return {name: entries async for name, entries in found}


@settings(deadline=None)
@given(st.lists(st.integers(0, 30), unique=True, max_size=8), st.sets(st.integers(0, 30)), st.integers(1, 3000))
async def test_records_come_out_of_a_file_as_they_went_in(numbers: list[int], wanted: set[int], size: int) -> None:
    written = dict(job(n) for n in sorted(numbers))
    data = b"".join(records_file.frames(name, entries) for name, entries in written.items())
    found = await read(data, {job(n)[0] for n in wanted}, size)
    assert found.keys() == {job(n)[0] for n in wanted & set(numbers)}
    for name, entries in found.items():
        assert Record(name, entries) == Record(name, written[name])


@given(st.binary(max_size=300))
async def test_any_file_is_read_or_refused(data: bytes) -> None:
    with suppress(BlockCorrupt):
        await read(data, {"x"})


async def test_a_file_that_is_cut_off_is_noticed() -> None:
    name, entries = job(1)
    with pytest.raises(BlockCorrupt):
        await read(records_file.frames(name, entries)[:-1], {name})
    with pytest.raises(BlockCorrupt):
        await read(b"\xff\xff\xff\xff" + bytes(100), {name})


def test_a_record_that_is_too_large_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    import trio

    monkeypatch.setattr(records_file, "MAX_RECORD", 700)
    small, large = job(1, None), job(2)
    data = records_file.frames(*small) + records_file.frames(*large)
    assert (trio.run(read, data, {small[0], large[0]})).keys() == {small[0]}


def test_leaves_and_roots_are_read_again() -> None:
    items = [summary("job-a", core(), claim(1), outcome(1, "failed"))]
    plain = dagcbor.decode(documents.encode_leaf(items, CID))
    assert documents.decode_leaf(plain, JobSummary) == (items, CID)
    root = Root(swarm="dim", card=CARD, at=2.0, job_count=1)
    back = documents.decode_root(dagcbor.decode(documents.encode_root(root, CID, None)), "dim", CARD)
    assert (back.jobs, back.registry, back.job_count) == (CID.text, "", 1)
    for swarm, card in (("other", CARD), ("dim", documents.sign_card(FakeSigner("b"), "dim", "k51", 1.5))):
        with pytest.raises(BlockCorrupt):
            documents.decode_root(dagcbor.decode(documents.encode_root(root, CID, None)), swarm, card)


@pytest.mark.parametrize(
    "plain", [None, [], {}, {"items": 1, "records": None}, {"items": [1], "records": None}, {"items": [], "records": b"x"}]
)
def test_what_is_no_leaf_is_refused(plain: Any) -> None:
    with pytest.raises(BlockCorrupt):
        documents.decode_leaf(plain, JobSummary)


def test_of_two_states_the_one_that_the_merged_record_would_have_is_shown() -> None:
    base = (core(), claim(1))
    queued, running = summary("job-a", *base), summary("job-a", *base, status(1, "running"))
    failed = summary("job-a", *base, outcome(1, "failed", at=5.0))
    again = summary("job-a", *base, claim(2, "q", at=6.0))
    done = summary("job-a", *base, outcome(1, "completed"))
    deleted = summary("job-a", outcome(1, "deleted", at=0.5))
    for better, worse in ((running, queued), (failed, running), (again, failed), (done, again), (deleted, done)):
        assert better.outdoes(worse)
        assert not worse.outdoes(better)


def view(peer: str = "a", seen: float = 0.0, state: Any = "alive", **changes: Any) -> NodeView:
    return NodeView(heartbeat(peer, **changes), state, seen)


def signed(v: NodeView) -> heartbeats.SignedHeartbeat:
    return heartbeats.sign(v.heartbeat, FakeSigner(v.heartbeat.peer_id))


def test_only_what_matters_changes_the_registry_of_a_snapshot() -> None:
    from dimnode.domain.node import Load

    roster = Roster(refresh=100.0)

    def update(v: NodeView, now: float) -> Any:
        return roster.update([v], {"a": signed(v)}, now)["a"]

    first = update(view(seq=1), 0.0)
    assert update(view(seq=2, load=Load(running=1)), 50.0) is first
    assert update(view(seq=3), 101.0) is not first
    changed = update(view(seq=4, price=2.0), 102.0)
    assert checked(changed, swarm="dim", protocol=1, verify=fake_verify) == view(seq=4, price=2.0, seen=102.0)
    assert update(view(seq=4, price=2.0, state="dead", seen=90.0), 103.0).since == 90.0
    assert update(view(seq=4, price=2.0, state="dead", seen=91.0), 500.0).since == 90.0
    assert roster.update([view(state="removed")], {"a": signed(view())}, 600.0) == {}
    assert roster.update([view()], {}, 600.0) == {}


def test_a_member_that_a_seat_made_up_is_left_out() -> None:
    real = view("a")
    fake = documents.Member(peer="b", state="alive", since=1.0, heartbeat=signed(real))
    forged = documents.Member(peer="a", state="alive", since=1.0, heartbeat=heartbeats.sign(real.heartbeat, FakeSigner("b")))
    for member in (fake, forged):
        assert checked(member, swarm="dim", protocol=1, verify=fake_verify) is None
    good = documents.Member(peer="a", state="alive", since=1.0, heartbeat=signed(real))
    assert checked(good, swarm="other", protocol=1, verify=fake_verify) is None


def test_of_two_views_of_a_node_the_later_counts() -> None:
    old, new = view(seq=1, state="alive"), view(seq=2, state="dead")
    assert later(old, new) is later(new, old) is new
    assert later(view(state="dead"), view(state="alive")).state == "alive"

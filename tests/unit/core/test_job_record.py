"""Merge is a join, compaction keeps it one, and only what is sound gets in."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dimnode.core import job_record
from dimnode.core.job_record import EntryRefused, Record, RecordFull, check_entry, check_room, merge
from dimnode.core.job_view import view
from dimnode.domain import codec
from dimnode.domain.ids import job_id
from dimnode.domain.record import Attempt, Core, Receipt, SignedEntry, Unknown
from tests.support import entries as e

_ATTEMPTS = [e.attempt(n, task, number, s) for n in (1, 2) for task in "tu" for number in (1, 2) for s in ("completed", "failed")]
POOL: list[SignedEntry] = [
    e.core(),
    e.core(submitted=7.0),
    *(e.claim(n, peer) for n in (1, 2, 3) for peer in "pq"),
    e.plan(1, x=1),
    e.plan(2, x=2),
    *(e.assign(n, task) for n in (1, 2) for task in "tu"),
    *_ATTEMPTS,
    *(e.void(n, _ATTEMPTS[0].id) for n in (1, 3)),
    *(e.seal(n, 0, t=_ATTEMPTS[i].id) for n, i in ((1, 0), (2, 2))),
    *(e.checkpoint(n, e.seal(1, 0, t=_ATTEMPTS[0].id).id, n) for n in (1, 2)),
    *(e.outcome(n, s, peer) for n in (1, 2, 3) for s in ("completed", "failed", "expired") for peer in "pq"),
    *(e.outcome(n, s) for n in (1, 2) for s in ("cancelled", "deleted")),
    *(e.status(n, s) for n in (1, 2) for s in ("fetching", "running")),
    e.raw(type="novelty", job=e.JOB, x=1),
]
subsets = st.lists(st.integers(0, len(POOL) - 1), max_size=9)


def record(indexes: list[int]) -> Record:
    return Record(e.JOB, [POOL[i] for i in indexes])


@given(subsets, subsets, subsets)
@settings(max_examples=300, deadline=None)
def test_merge_is_commutative_associative_and_idempotent(a: list[int], b: list[int], c: list[int]) -> None:
    _check_join(record(a), record(b), record(c))


def test_merge_is_a_join_on_many_random_triples() -> None:
    rng = random.Random(4)
    for _ in range(6000):
        _check_join(*(record(rng.sample(range(len(POOL)), rng.randint(0, 8))) for _ in range(3)))


def _check_join(a: Record, b: Record, c: Record) -> None:
    ab = merge(a, b)
    assert ab == merge(b, a)
    assert merge(ab, c) == merge(a, merge(b, c))
    assert merge(a, a) == a
    assert merge(ab, a) == ab
    assert (ab.digest, ab.size) == (merge(b, a).digest, merge(b, a).size)
    assert view(ab) == view(merge(b, a))


def test_any_order_of_arrival_and_any_exchange_gives_one_record() -> None:
    rng = random.Random(5)
    for _ in range(600):
        chosen = rng.sample(POOL, rng.randint(1, 14))
        want = Record(e.JOB, chosen)
        copies = [Record(e.JOB) for _ in range(3)]
        for entry in chosen:
            rng.choice(copies).add(entry)
        for _ in range(4):
            a, b = rng.sample(copies, 2)
            a.merge(b)
        copies[0].merge(copies[1])
        copies[0].merge(copies[2])
        copies[1].merge(copies[0])
        copies[2].merge(copies[0])
        for copy in copies:
            assert copy == want
            assert view(copy) == view(want)


def test_a_digest_tells_sets_apart_and_orders_not() -> None:
    rng = random.Random(6)
    seen: dict[bytes, frozenset[str]] = {}
    for _ in range(3000):
        r = Record(e.JOB, rng.sample(POOL, rng.randint(0, 9)))
        assert Record(e.JOB, r.entries()[::-1]).digest == r.copy().digest == r.digest
        assert seen.setdefault(r.digest, r.ids()) == r.ids()
    assert Record(e.JOB).digest == bytes(8)
    assert len(seen) > 1000


@pytest.mark.parametrize("final", ["completed", "cancelled"])
def test_a_final_outcome_leaves_what_a_listing_shows(final: str) -> None:
    small = [e.core(), e.claim(1), e.status(1, "running"), e.outcome(1, "failed"), e.outcome(2, final), e.raw(type="novelty", job=e.JOB)]
    bulk = [e.plan(1), e.assign(1), e.attempt(1), e.seal(1), e.void(1, "x")]
    assert Record(e.JOB, small + bulk).ids() == Record(e.JOB, bulk + small).ids() == {x.id for x in small}


@pytest.mark.parametrize("final", ["completed", "cancelled", "deleted"])
def test_compaction_changes_no_terminal_fact(final: str) -> None:
    before = Record(e.JOB, [e.core(), e.claim(2), e.assign(2), e.attempt(2), e.status(2, "running", elapsed=3.0)])
    after = before.copy()
    after.add(e.outcome(2, final, at=11.0))
    shown = view(after)
    assert shown.status == final
    assert shown.updated == 11.0
    if final != "deleted":
        assert {k: v for k, v in shown.times.items() if k != final} == dict(view(before).times)
        assert shown.elapsed == 3.0
        assert shown.core is not None


def test_deletion_leaves_only_the_outcome() -> None:
    r = Record(e.JOB, [e.core(), e.claim(1), e.outcome(1, "completed", result=b"data"), e.outcome(3, "deleted"), e.outcome(2, "deleted")])
    assert r.ids() == {e.outcome(2, "deleted").id}
    assert not r.add(e.core())
    assert not r.add(e.outcome(1, "cancelled"))
    assert not r.add(e.outcome(4, "deleted"))
    assert len(r) == 1


@pytest.mark.parametrize("status", ["failed", "expired"])
def test_failed_and_expired_keep_everything(status: str) -> None:
    r = Record(e.JOB, [e.core(), e.claim(1), e.attempt(1), e.outcome(1, status)])
    assert len(r) == 4


def test_merge_tells_what_was_new_and_add_is_cheap_when_known() -> None:
    a, b = Record(e.JOB, [e.core()]), Record(e.JOB, [e.core(), e.claim(1)])
    assert a.merge(b) == (e.claim(1).id,)
    version = a.version
    assert a.merge(b) == ()
    assert not a.add(e.core())
    assert a.version == version
    assert a.get(e.claim(1).id) == e.claim(1)
    assert a.body(e.claim(1).id) == e.claim(1).body()
    assert e.core().id in a
    assert a.entries() == (e.core(), e.claim(1))


def test_records_of_two_jobs_do_not_mix() -> None:
    with pytest.raises(EntryRefused):
        Record("job-b").add(e.core())
    with pytest.raises(ValueError, match="cannot be merged"):
        merge(Record("job-a"), Record("job-b"))


def test_entries_are_decoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[str] = []
    original = SignedEntry.body

    def counting(self: SignedEntry) -> object:
        decoded.append(self.id)
        return original(self)

    monkeypatch.setattr(SignedEntry, "body", counting)
    r = Record(e.JOB, POOL[:9])
    for entry in POOL[:9]:
        r.add(entry)
        view(r)
        merge(r, r.copy())
    assert len(decoded) == 9


# --- bounds


def test_a_record_takes_so_much_and_can_still_be_taken_over_and_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_record, "MAX_RECORD_ENTRIES", 3)
    monkeypatch.setattr(job_record, "ROOM_TO_END", 2)
    check_room(None, [e.core(), e.claim(1), e.assign(1)])
    with pytest.raises(RecordFull):
        check_room(None, [e.core(), e.claim(1), e.assign(1), e.attempt(1)])
    full = Record(e.JOB, [e.core(), e.claim(1), e.assign(1)])
    check_room(full, [e.core(), e.assign(1)])
    check_room(full, [e.claim(2), e.outcome(2, "cancelled")])
    with pytest.raises(RecordFull):
        check_room(full, [e.claim(2), e.attempt(1)])
    with pytest.raises(RecordFull):
        check_room(full, [e.claim(2), e.claim(3), e.claim(4)])


def test_a_record_takes_so_many_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    full = Record(e.JOB, [e.core()])
    monkeypatch.setattr(job_record, "MAX_RECORD_BYTES", full.size + 10)
    with pytest.raises(RecordFull):
        check_room(full, [e.assign(1)])
    check_room(full, [e.core(), e.outcome(1, "completed", result=b"x" * 100)])


# --- check_entry ---------------------------------------------------------------------------------


@pytest.mark.parametrize("entry", POOL)
def test_sound_entries_pass(entry: SignedEntry) -> None:
    assert check_entry(entry, e.fake_verify) == entry.body()


def test_unknown_kinds_pass() -> None:
    assert check_entry(e.raw(type="novelty", job="job-z"), e.fake_verify) == Unknown(kind="novelty", job="job-z")


def _attempt_with_foreign_receipt() -> SignedEntry:
    receipt = Receipt(job=e.JOB, task="t", attempt=1, node="other", model_cid="", inputs={}, outputs={}, started=0, ended=1, cost=1)
    return e.signed(
        Attempt(job=e.JOB, ballot=e.ballot(1), task="t", attempt=1, task_key="k", status="completed", node="x", receipt=receipt)
    )


@pytest.mark.parametrize(
    ("entry", "why"),
    [
        (SignedEntry(b"\xff\x00", "p", b""), "not an entry"),
        (SignedEntry(b"", "p", b""), "not an entry"),
        (e.raw(no="type"), "not an entry"),
        (e.raw(type="claim", job="j"), "not an entry"),
        (e.raw(type="claim", job="j", ballot=[1, "p", 3]), "not an entry"),
        (e.raw(type="novelty"), "no job"),
        (e.signed(e.claim(1, "p").body(), "mallory"), "written by mallory"),  # pyright: ignore[reportArgumentType]
        (e.signed(e.outcome(1, "completed").body(), "mallory"), "written by mallory"),  # pyright: ignore[reportArgumentType]
        (e.signed(e.attempt(1).body(), "p"), "attempt of x"),  # pyright: ignore[reportArgumentType]
        (_attempt_with_foreign_receipt(), "receipt of other"),
        (e.claim(-1), "out of range"),
        (e.claim(1 << 60), "out of range"),
        (SignedEntry(e.claim(1).payload, "p", b"0" * 32), "signature"),
        (SignedEntry(e.core().payload, "mallory", e.core().signature), "signature"),
        (e.core(spec=b"0" * 3000), "larger than"),
    ],
)
def test_unsound_entries_are_refused(entry: SignedEntry, why: str) -> None:
    with pytest.raises(EntryRefused, match=why):
        check_entry(entry, e.fake_verify, max_bytes=2000)


def _core(**changes: Any) -> SignedEntry:
    said: dict[str, Any] = {"spec_cid": "c", "spec": b"spec", "pattern": "chained", "priority": "normal", "principal": "me"}
    said |= {"submitted": 1.0, "timeout": 60.0, "nonce": "key"}
    job = job_id("dim", "me", "key", codec.digest(b"spec"))
    return e.signed(Core(**{"job": job, **said, **changes}))


def test_a_core_is_of_the_job_that_it_says() -> None:
    assert isinstance(check_entry(_core(), e.fake_verify, swarm="dim"), Core)
    assert isinstance(check_entry(_core(priority="high", submitted=2.0), e.fake_verify, swarm="dim"), Core)
    check_entry(_core(job="job-x"), e.fake_verify)
    for other in ({"job": "job-x"}, {"principal": "you"}, {"nonce": "other"}, {"spec": b"another spec"}):
        with pytest.raises(EntryRefused, match="another job's"):
            check_entry(_core(**other), e.fake_verify, swarm="dim")
    with pytest.raises(EntryRefused, match="another job's"):
        check_entry(_core(), e.fake_verify, swarm="other")


@given(st.binary(max_size=200))
@settings(max_examples=300, deadline=None)
def test_random_bytes_are_refused_not_fatal(data: bytes) -> None:
    with pytest.raises(EntryRefused):
        check_entry(SignedEntry(data, "p", e.fake_sign("p", b"dim-entry-v1:" + data)), e.fake_verify)

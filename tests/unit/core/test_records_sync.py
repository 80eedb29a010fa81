"""Anti-entropy's decisions: what is compared when, what is sent, who shall hold what."""

from __future__ import annotations

import random
from collections.abc import Iterable

import pytest

from dimnode.core.job_record import EntryRefused, Record
from dimnode.core.recent_changes import RecentChanges
from dimnode.core.record_gate import EntryRules, NotADecider, RecordGate, begins, decided_under, highest_n, proof_of
from dimnode.core.records_sync import Agenda, Quarrels, Rounds, heirs, missing, portions
from dimnode.core.rendezvous import rendezvous
from dimnode.domain.record import Core, SignedEntry
from tests.support import entries as e

# --- the agenda ----------------------------------------------------------------------------------


def _walk(agenda: Agenda, journal: list[str], changes: RecentChanges, unfinished: list[str]) -> tuple[list[str], list[str]]:
    changed = agenda.changed("p", changes, 0.0)
    first = list(dict.fromkeys([*changed.jobs, *agenda.unfinished(unfinished)]))
    asked = agenda.page(len(first))
    page = sorted(j for j in journal if j > agenda.cursor)[:asked]
    agenda.turned(page, asked)
    agenda.compared("p", changed)
    return first, page


def _changes(jobs: Iterable[str], most: int = 1000, now: float = 0.0) -> RecentChanges:
    made = RecentChanges(most)
    for job in jobs:
        made.note(job, now)
    return made


@pytest.mark.parametrize(("records", "active"), [(0, 0), (1, 1), (16, 16), (500, 3), (500, 500)])
def test_every_record_has_its_turn_and_urgent_ones_soon(records: int, active: int) -> None:
    journal = [f"job-{i:04}" for i in range(records)]
    agenda, changes = Agenda(16), _changes(journal[-3:])
    walked: set[str] = set()
    urgent: set[str] = set()
    for n in range(2 * (records // 4 + 1)):
        first, page = _walk(agenda, journal, changes, journal[:active])
        assert len(first) + len(page) <= 16
        assert len(set(first)) == len(first)
        walked |= set(page)
        if n < active // 4 + 1:
            urgent |= set(first)
    assert walked == set(journal), "the walk never stops"
    assert urgent >= set(journal[:active]) | set(journal[-3:])


def test_each_change_is_compared_once_with_each_peer_the_oldest_first() -> None:
    agenda, changes = Agenda(8), _changes("abcdef")
    first = agenda.changed("p 1", changes, 0.0)
    assert (first.jobs, first.more) == (("a", "b", "c", "d"), True)
    agenda.compared("p 1", first)
    changes.note("a", 0.0)
    second = agenda.changed("p 1", changes, 0.0)
    assert (second.jobs, second.more) == (("e", "f", "a"), False)
    agenda.compared("p 1", second)
    assert agenda.changed("p 1", changes, 0.0).jobs == ()
    assert agenda.changed("q 1", changes, 0.0).jobs == ("b", "c", "d", "e"), "another peer knows nothing of that"
    assert agenda.changed("p 2", changes, 0.0).jobs == ("b", "c", "d", "e"), "nor does one that has started again"


def test_what_was_not_compared_is_compared_again_in_smaller_parts_until_one_that_never_works_is_alone() -> None:
    agenda, changes = Agenda(16, tries=3), _changes("abcdefghijkl")
    compared: list[str] = []
    rounds = 0
    while part := agenda.changed("p", changes, 0.0).jobs:
        rounds += 1
        if "e" in part:
            agenda.failed("p", agenda.changed("p", changes, 0.0))
        else:
            compared += part
            agenda.compared("p", agenda.changed("p", changes, 0.0))
        assert rounds < 30
    assert compared == list("abcdfghijkl"), "in order, and only that one is left to the walk"
    changes.note("m", 0.0)
    for job in "abcdefgh":
        changes.note(job, 0.0)
    assert len(agenda.changed("p", changes, 0.0).jobs) == 8, "and then in large parts again"


def test_changes_are_bounded_and_peers_that_are_gone_forgotten() -> None:
    agenda, changes = Agenda(100), _changes((f"job-{i}" for i in range(50)), most=10)
    part = agenda.changed("p", changes, 0.0)
    assert part.jobs == tuple(f"job-{i}" for i in range(40, 50))
    agenda.compared("p", part)
    agenda.only({"q"})
    assert agenda.changed("p", changes, 0.0).jobs == part.jobs
    changes.forget("job-45")
    assert "job-45" not in agenda.changed("p", changes, 0.0).jobs


def test_what_is_in_motion_is_left_alone_until_it_rests() -> None:
    agenda, changes = Agenda(100, quiet=5.0), _changes("ab", now=100.0)
    assert agenda.changed("p", changes, 101.0).jobs == ()
    changes.note("c", 102.0)
    changes.note("a", 104.0)
    assert agenda.changed("p", changes, 105.0).jobs == ("b",), "the other one has changed again"
    assert agenda.changed("p", changes, 107.0).jobs == ("b", "c")
    agenda.compared("p", agenda.changed("p", changes, 107.0))
    assert agenda.changed("p", changes, 109.0).jobs == ("a",)


# --- quarrels ------------------------------------------------------------------------------------


def test_copies_that_stay_different_are_left_alone_longer_and_longer() -> None:
    quarrels = Quarrels(10.0, 30.0)
    now = 0.0
    for pause in (10.0, 20.0, 30.0, 30.0):
        quarrels.add("p", "job-1", now)
        assert quarrels.holds("p", "job-1", now + pause - 1)
        now += pause + 1
        assert not quarrels.holds("p", "job-1", now)
    assert not quarrels.holds("q", "job-1", 1.0)
    assert not quarrels.holds("p", "job-2", 1.0)
    quarrels.add("p", "job-1", now + 100)
    assert not quarrels.holds("p", "job-1", now + 110)


def test_a_quarrel_with_somebody_who_is_seldom_met_is_left_alone_for_longer_each_time_too() -> None:
    quarrels = Quarrels(5.0, 300.0)
    exchanges = 0
    for now in range(0, 3600, 100):
        if not quarrels.holds("p", "job-1", float(now)):
            exchanges += 1
            quarrels.add("p", "job-1", float(now))
    assert exchanges < 18, "of 36 meetings"


def test_everybody_is_met_once_in_a_round_whoever_comes_and_goes() -> None:
    rounds = Rounds(random.Random(3))
    assert rounds.next(()) is None
    peers = set("abcde")
    orders = {"".join(rounds.next(peers) or "" for _ in peers) for _ in range(20)}
    assert all(set(order) == peers for order in orders)
    assert len(orders) > 10  # in no fixed order
    first = [rounds.next(peers) for _ in range(2)]
    peers = (peers | {"f"}) - {"a"}
    rest = [rounds.next(peers) for _ in range(len(peers - set(first)))]
    assert set(rest) == peers - set(first)


def test_the_oldest_quarrels_are_forgotten() -> None:
    quarrels = Quarrels(60.0, 60.0, most=3)
    for n in range(5):
        quarrels.add("p", f"job-{n}", 100.0)
    assert [quarrels.holds("p", f"job-{n}", 101.0) for n in range(5)] == [False, False, True, True, True]


# --- who and what --------------------------------------------------------------------------------


def test_heirs_are_the_same_for_everybody_and_change_little() -> None:
    members = [f"p{i}" for i in range(9)]
    for n in range(30):
        job = f"job-{n}"
        assert heirs(job, members, 2) == rendezvous(job, members)[:3]
        gone = heirs(job, members, 2)[0]
        left = heirs(job, [m for m in members if m != gone], 2)
        assert left[:2] == heirs(job, members, 2)[1:]
    assert heirs("job", ["only"], 2) == ["only"]


def test_what_is_missing_comes_core_first() -> None:
    mine = (e.claim(1), e.assign(1), e.core())
    assert missing(mine, {e.assign(1).id}) == (e.core(), e.claim(1))
    assert missing(mine, {x.id for x in mine}) == ()


def test_portions_fit_and_lose_nothing() -> None:
    rng = random.Random(5)
    for _ in range(60):
        jobs = [
            (f"job-{i}", [e.raw(type="novelty", job=f"job-{i}", n=n, x=bytes(rng.choice((1, 50, 900)))) for n in range(rng.randint(1, 9))])
            for i in range(rng.randint(1, 12))
        ]
        got: dict[str, list[SignedEntry]] = {}
        for part in portions(jobs, max_bytes=700, max_jobs=3):
            sizes = [len(x.payload) for _, entries in part for x in entries]
            assert sum(sizes) <= 700 or len(sizes) == 1
            assert len(part) <= 3
            assert len({job for job, _ in part}) == len(part)
            for job, entries in part:
                assert entries
                got.setdefault(job, []).extend(entries)
        assert got == dict(jobs)
    assert list(portions([], 700, 3)) == []


# --- the gate ------------------------------------------------------------------------------------

GATE = RecordGate(EntryRules(e.fake_verify))


def test_only_sound_and_new_entries_of_the_job_pass_the_gate() -> None:
    record = Record(e.JOB, [e.core(), e.claim(5)])
    assert GATE.check(e.JOB, e.assign(5), record)
    assert GATE.check(e.JOB, e.core(), None)
    assert not GATE.check(e.JOB, SignedEntry(e.core().payload, e.core().author, b"whatever"), record), "known ones are not looked at"
    for bad in (e.core("job-b"), SignedEntry(e.claim(6).payload, "p", b""), SignedEntry(b"\xff", "p", b"")):
        with pytest.raises(EntryRefused):
            GATE.check(e.JOB, bad, record)


def test_ballots_that_leap_do_not_pass() -> None:
    record = Record(e.JOB, [e.core(), e.claim(5)])
    assert highest_n(record) == 5
    assert highest_n(None) == 0
    assert GATE.check(e.JOB, e.claim(5 + (1 << 20)), record)
    for bad in (e.claim(6 + (1 << 20)), e.outcome(6 + (1 << 20), "cancelled"), e.attempt(1 << 40)):
        with pytest.raises(EntryRefused, match="leaps"):
            GATE.check(e.JOB, bad, record)


def _core_by(peer: str) -> SignedEntry:
    """Another form of the same job: whose timeout it is counts."""
    body = e.core(submitted=3.0).body()
    assert isinstance(body, Core)
    return e.signed(body, peer)


def test_only_those_on_the_list_decide_and_the_others_say_how_their_own_tasks_went() -> None:
    gate = RecordGate(EntryRules(e.fake_verify, deciders=frozenset({"p"})))
    assert (gate.may_decide("p"), gate.may_decide("q"), GATE.may_decide("q")) == (True, False, True)
    record = Record(e.JOB, [e.core(), e.claim(5)])
    for fine in (e.assign(5), e.attempt(5, node="q"), e.raw("q", type="novelty", job=e.JOB), e.outcome(6, "completed")):
        assert gate.check(e.JOB, fine, record)
    for bad in (e.claim(1, "q"), e.assign(1, peer="q"), e.outcome(1, "cancelled", "q"), e.seal(0, peer="q"), e.plan(0, "q"), _core_by("q")):
        assert GATE.check(e.JOB, bad, record), "without a list"
        with pytest.raises(NotADecider):
            gate.check(e.JOB, bad, record)


def test_what_compaction_drops_is_not_even_verified() -> None:
    ended = Record(e.JOB, [e.core(), e.outcome(1, "completed")])
    assert not GATE.check(e.JOB, SignedEntry(e.assign(1).payload, "p", b"forged"), ended)


def test_what_a_sender_decided_itself_is_what_fences_it() -> None:
    others = (e.core(), e.claim(1, "a"), e.assign(1, peer="a"), e.attempt(9, node="p"), e.raw(type="novelty", job=e.JOB))
    assert decided_under(others, "p") is None
    assert decided_under((*others, e.claim(3, "p"), e.assign(2)), "p") == e.ballot(3, "p")


def test_a_record_begins_with_a_core_or_its_deletion() -> None:
    assert begins([e.claim(1), e.core()])
    assert begins([e.outcome(1, "deleted")])
    assert not begins([e.claim(1), e.outcome(1, "completed"), e.attempt(1)])


def test_a_proof_fits_and_names_the_owner() -> None:
    record = Record(e.JOB, [e.core(spec=b"x" * 500), e.claim(2), e.assign(2)])
    assert set(proof_of(record, 5000)) == set(record.entries())
    assert set(proof_of(record, record.size - 1)) == {e.core(spec=b"x" * 500), e.claim(2)}
    assert proof_of(record, 300) == (e.claim(2),)

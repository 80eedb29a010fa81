"""Several owners, executors and copies act on one job in any order, each on what it knows; whatever happens, the copies agree
in the end, and what was promised on the way stays."""

from __future__ import annotations

from functools import reduce
from itertools import count

from hypothesis import given, settings
from hypothesis import strategies as st

from dimnode.core.job_record import FINAL, RANK, Record, id_bits, merge
from dimnode.core.job_view import view
from dimnode.domain.record import Assign, Attempt, Ballot, Claim, OutcomeEntry, PlanEntry, SealEntry, SignedEntry, StatusEntry, Void
from tests.support import entries as e

ACTIONS = (
    "claim", "claim", "plan", "assign", "attempt", "void", "seal", "status", "completed", "failed", "expired", "cancelled", "deleted",
    "novelty", "unasked", "merge", "merge", "send",
)  # fmt: skip
NODES = 4
LATER = {"completed": {"completed", "cancelled", "deleted"}, "cancelled": {"cancelled", "deleted"}, "deleted": {"deleted"}}
"""What a job may be found to be once a client was told this."""
step = st.tuples(st.sampled_from(ACTIONS), st.integers(0, NODES - 1), st.integers(0, NODES - 1), st.integers(0, 3))


class Swarm:
    """Copies of one record. A node decides only what its own copy allows it to."""

    def __init__(self) -> None:
        self.copies = [Record(e.JOB, [e.core()]) for _ in range(NODES)]
        self.clock = count(1)
        self.acknowledged: set[str] = set()
        """Final outcomes that a client was told."""
        self.everything: list[SignedEntry] = [e.core()]

    def act(self, action: str, who: int, other: int, which: int) -> None:
        mine = self.copies[who]
        seen = view(mine)
        if action == "merge":
            mine.merge(self.copies[other])
        elif action == "send":  # a part of a record: any entries, in any order
            for entry in self.copies[other].entries()[which::2]:
                mine.add(entry)
        elif action == "claim":
            self._write(who, Claim(job=e.JOB, ballot=self._ballot(who, seen.epoch + 1), at=self._now()))
        elif action == "novelty":
            self._keep(who, e.raw(f"p{who}", type="novelty", job=e.JOB, at=self._now()))
        elif action == "unasked":
            self._attempt(who, self._ballot(who, 1), f"t{which}", 99)
        elif action == "attempt":
            asked = [a.assign for a in seen.assignments.values() if a.assign.node == f"p{other}"]
            for a in asked[:1]:
                self._attempt(other, a.ballot, a.task, a.attempt, copy=who)
        elif driving := [i for i in range(NODES) if self._drives(i)]:
            self._decide(action, driving[who % len(driving)], other, which)

    def _drives(self, who: int) -> bool:
        seen = view(self.copies[who])
        return seen.owner is not None and seen.owner.peer == f"p{who}" and not seen.terminal

    def _decide(self, action: str, who: int, other: int, which: int) -> None:
        task = f"t{which % 2}"
        seen = view(self.copies[who])
        ballot = seen.owner
        assert ballot is not None
        if action == "plan":
            self._write(who, PlanEntry(job=e.JOB, ballot=ballot, plan={"tasks": which}))
        elif action == "assign":
            number = seen.last_attempt.get(task, 0) + 1
            node = f"p{other}"
            self._write(
                who, Assign(job=e.JOB, ballot=ballot, task=task, attempt=number, node=node, task_key="k", model_cid="m", at=self._now())
            )
        elif action == "void":
            for fact in seen.completed.get(task, ())[:1]:
                self._write(who, Void(job=e.JOB, ballot=ballot, attempt_id=fact.id, reason="gone"))
        elif action == "seal":
            chosen = {t: f.id for t, f in seen.attempts.items()}
            self._write(who, SealEntry(job=e.JOB, ballot=ballot, round=which % 2, attempts=chosen))
        elif action == "status":
            self._write(who, StatusEntry(job=e.JOB, ballot=ballot, status="running", at=self._now(), elapsed=float(which)))
        elif action in RANK:
            entry = self._write(who, OutcomeEntry(job=e.JOB, ballot=ballot, status=action, at=self._now()))  # pyright: ignore
            if action in FINAL:
                assert view(self.copies[who]).outcome_id == entry.id
                self.acknowledged.add(action)

    def _attempt(self, who: int, ballot: Ballot, task: str, number: int, copy: int | None = None) -> None:
        body = Attempt(
            job=e.JOB, ballot=ballot, task=task, attempt=number, task_key="k", status="completed", node=f"p{who}", rows=next(self.clock)
        )
        self._keep(who if copy is None else copy, e.signed(body))

    def _write(self, who: int, body: object) -> SignedEntry:
        entry = e.signed(body)  # pyright: ignore
        self._keep(who, entry)
        return entry

    def _keep(self, who: int, entry: SignedEntry) -> None:
        self.everything.append(entry)
        self.copies[who].add(entry)

    def _ballot(self, who: int, n: int) -> Ballot:
        return Ballot(n, f"p{who}", "b")

    def _now(self) -> float:
        return float(next(self.clock))

    def check(self) -> None:
        for copy in self.copies:
            bits = reduce(lambda a, i: a ^ id_bits(i), copy.ids(), 0)
            assert copy.digest == bits.to_bytes(8, "big")
            assert copy.size == sum(len(x.payload) for x in copy.entries())
            asked = {(a.task, a.attempt, a.node) for _, a in copy.items() if isinstance(a, Assign)}
            counted = [f.attempt for facts in view(copy).completed.values() for f in facts]
            assert all((a.task, a.attempt, a.node) in asked for a in counted)

    def heal(self) -> Record:
        for copy in self.copies:
            for other in self.copies:
                copy.merge(other)
        for copy in reversed(self.copies):
            for other in self.copies:
                copy.merge(other)
        return self.copies[0]


@given(st.lists(step, min_size=15, max_size=45))
@settings(max_examples=250, deadline=None)
def test_copies_agree_after_any_interleaving_and_promises_stay(steps: list[tuple[str, int, int, int]]) -> None:
    swarm = Swarm()
    for action, who, other, which in steps:
        swarm.act(action, who, other, which)
        swarm.check()
    one = swarm.heal()
    for copy in swarm.copies:
        assert copy == one
        assert copy.digest == one.digest
        assert view(copy) == view(one)
    assert one == Record(e.JOB, swarm.everything), "nothing that anybody wrote is lost, but what compaction drops"
    for told in swarm.acknowledged:
        assert view(one).status in LATER[told], "an acknowledged cancel never becomes completed, and a deletion stays"
    outcomes = [b for _, b in one.items() if isinstance(b, OutcomeEntry)]
    assert len(view(one).superseded) == len(outcomes) - (view(one).outcome is not None)


@given(st.lists(step, max_size=30), st.lists(st.integers(0, NODES - 1), min_size=3, max_size=3))
@settings(max_examples=120, deadline=None)
def test_real_records_merge_as_a_join(steps: list[tuple[str, int, int, int]], which: list[int]) -> None:
    swarm = Swarm()
    for args in steps:
        swarm.act(*args)
    a, b, c = (swarm.copies[i] for i in which)
    assert merge(a, b) == merge(b, a)
    assert merge(merge(a, b), c) == merge(a, merge(b, c))
    assert merge(merge(a, b), b) == merge(a, b)
    assert merge(a, b).digest == merge(b, a).digest
    assert view(merge(a, b)) == view(merge(b, a))

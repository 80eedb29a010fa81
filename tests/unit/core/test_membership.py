"""Who is alive, by heartbeats and time; and what hostile or confused heartbeats cannot do."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from dimnode.core.membership import Change, MemberEvent, Membership, MembershipSettings, Refusal
from tests.support.swarm import heartbeat

S = MembershipSettings()


def fresh(**kw: object) -> Membership:
    return Membership(MembershipSettings(**kw), "me")  # pyright: ignore[reportArgumentType]


def changes(events: object) -> list[Change]:
    assert isinstance(events, tuple)
    return [e.change for e in events if isinstance(e, MemberEvent)]


def test_silence_makes_suspect_then_dead_then_removed() -> None:
    m = fresh()
    assert changes(m.observe(heartbeat("a"), 0.0)) == [Change.JOINED]
    assert m.tick(2.9) == ()
    assert changes(m.tick(3.0)) == [Change.SUSPECTED]
    assert m.state("a") == "suspect"
    assert changes(m.tick(5.0)) == [Change.DIED]
    assert changes(m.tick(3604.9)) == []
    assert changes(m.tick(3605.0)) == [Change.REMOVED]
    assert m.state("a") == "removed"
    assert len(m) == 0


def test_a_long_gap_of_the_own_loop_goes_through_all_states() -> None:
    m = fresh()
    m.observe(heartbeat("a"), 0.0)
    assert changes(m.tick(9999.0)) == [Change.SUSPECTED, Change.DIED, Change.REMOVED]


def test_a_newer_heartbeat_brings_back() -> None:
    m = fresh()
    m.observe(heartbeat("a"), 0.0)
    m.tick(4.0)
    assert changes(m.observe(heartbeat("a", seq=2), 4.0)) == [Change.RECOVERED]
    assert changes(m.observe(heartbeat("a", seq=3), 5.0)) == [Change.UPDATED]
    assert m.state("a") == "alive"


def test_senders_interval_stretches_the_patience_within_bounds() -> None:
    m = fresh()
    m.observe(heartbeat("a", interval=10.0), 0.0)
    m.observe(heartbeat("b", interval=1e9), 0.0)
    m.observe(heartbeat("c", interval=0.001), 0.0)
    assert changes(m.tick(3.0)) == [Change.SUSPECTED]
    assert m.state("a") == "alive"
    assert changes(m.tick(30.0)) == [Change.DIED, Change.SUSPECTED][::-1] or m.state("a") == "suspect"
    m.tick(5 * S.interval(S.max_members))
    assert m.state("b") in ("dead", "removed"), "an absurd interval does not make a node immortal"


def test_the_interval_grows_with_the_swarm() -> None:
    m = fresh()
    assert m.interval() == 1.0
    for i in range(49):
        m.observe(heartbeat(f"p{i}"), 0.0)
    assert m.interval() == 10.0


def test_repeats_and_replays_are_stale() -> None:
    m = fresh()
    m.observe(heartbeat("a", seq=5), 0.0)
    assert m.observe(heartbeat("a", seq=5), 1.0) is Refusal.STALE
    assert m.observe(heartbeat("a", seq=4), 1.0) is Refusal.STALE
    assert m.observe(heartbeat("a", seq=9, incarnation=0), 1.0) is Refusal.STALE
    assert changes(m.tick(3.0)) == [Change.SUSPECTED], "replays do not keep it alive"


def test_a_restart_has_a_new_boot_and_a_higher_incarnation() -> None:
    m = fresh()
    m.observe(heartbeat("a", seq=5), 0.0)
    assert m.observe(heartbeat("a", seq=6, boot="boot-2"), 1.0) is Refusal.STALE
    assert changes(m.observe(heartbeat("a", seq=1, boot="boot-2", incarnation=2), 1.0)) == [Change.RESTARTED]
    assert m.observe(heartbeat("a", seq=6), 2.0) is Refusal.STALE


def test_leaps_are_refused() -> None:
    m = fresh()
    m.observe(heartbeat("a"), 0.0)
    assert m.observe(heartbeat("a", seq=(1 << 20) + 2), 1.0) is Refusal.LEAP
    assert m.observe(heartbeat("a", incarnation=(1 << 20) + 2), 1.0) is Refusal.LEAP
    assert m.observe(heartbeat("a", seq=-1), 1.0) is Refusal.LEAP
    assert changes(m.observe(heartbeat("a", seq=2), 1.0)) == [Change.UPDATED]


def test_rapid_heartbeats_are_dropped_and_the_rest_is_heard() -> None:
    m = fresh()
    results = [m.observe(heartbeat("a", seq=i + 1), i * 0.01) for i in range(100)]
    assert results.count(Refusal.RAPID) >= 85
    assert m.state("a") == "alive"
    assert changes(m.observe(heartbeat("a", seq=200), 5.0)) == [Change.UPDATED]


def test_leaving_removes_at_once_and_nothing_older_brings_back() -> None:
    m = fresh()
    m.observe(heartbeat("a", seq=5), 0.0)
    assert changes(m.observe(heartbeat("a", seq=7, leaving=True), 1.0)) == [Change.LEFT]
    assert m.observe(heartbeat("a", seq=6), 1.1) is Refusal.STALE
    assert m.observe(heartbeat("a", seq=7, leaving=True), 1.1) is Refusal.STALE
    assert changes(m.observe(heartbeat("a", boot="b2", incarnation=2), 2.0)) == [Change.JOINED]
    assert m.observe(heartbeat("b", leaving=True), 2.0) == ()


def test_removed_members_are_not_revived_by_old_heartbeats() -> None:
    m = fresh(max_tombstones=1)
    m.observe(heartbeat("a", seq=5), 0.0)
    m.tick(4000.0)
    assert m.observe(heartbeat("a", seq=5), 4001.0) is Refusal.STALE
    assert m.observe(heartbeat("a", incarnation=1 << 30), 4001.0) is Refusal.LEAP
    assert changes(m.observe(heartbeat("a", seq=6), 4001.0)) == [Change.JOINED]


def test_a_disconnect_suspects_early_unless_it_is_heard_in_time() -> None:
    m = fresh()
    m.observe(heartbeat("a", interval=20.0), 0.0)
    m.observe(heartbeat("b", interval=20.0), 0.0)
    for peer in ("a", "b", "stranger"):
        m.disconnected(peer, 1.0)
    m.observe(heartbeat("b", seq=2, interval=20.0), 2.0)
    assert [e.peer for e in m.tick(3.0)] == ["a"]
    assert (m.state("a"), m.state("b")) == ("suspect", "alive")
    m.disconnected("a", 3.0)
    assert m.tick(50.0) == ()
    m.tick(100.0)
    assert m.state("a") == "dead"


def test_the_number_of_members_is_bounded_and_the_dead_make_room() -> None:
    m = fresh(max_members=2)
    m.observe(heartbeat("a"), 0.0)
    m.observe(heartbeat("b"), 0.5)
    assert m.observe(heartbeat("c"), 1.0) is Refusal.FULL
    m.observe(heartbeat("b", seq=2), 4.0)
    m.tick(5.5)
    assert changes(m.observe(heartbeat("c"), 5.5)) == [Change.JOINED]
    assert {x.heartbeat.peer_id for x in m} == {"b", "c"}
    assert m.observe(heartbeat("a"), 5.6) is Refusal.FULL or m.observe(heartbeat("a"), 5.6) is Refusal.STALE


def test_judging_changes_nothing() -> None:
    m = fresh()
    for _ in range(20):
        assert m.judge(heartbeat("a"), 0.0) is None
    assert m.get("a") is None


EIGHTHS = st.integers(0, 16).map(lambda n: n / 8)
"""Seconds whose sums are exact."""
steps = st.lists(
    st.tuples(st.sampled_from("abc"), st.integers(0, 3), st.integers(0, 6), st.booleans(), EIGHTHS, st.booleans()), max_size=40
)


@given(steps)
@settings(max_examples=200, deadline=None)
def test_whatever_arrives_order_only_grows_and_states_agree_with_silence(sequence: list[tuple[str, int, int, bool, float, bool]]) -> None:
    m = fresh(max_members=2, removed=10.0)
    now, last = 0.0, dict[str, tuple[int, int]]()
    for peer, incarnation, seq, leaving, wait, broken in sequence:
        now += wait
        m.tick(now)
        if broken:
            m.disconnected(peer, now)
        taken = m.observe(heartbeat(peer, incarnation=incarnation, seq=seq, boot=f"b{incarnation}", leaving=leaving), now)
        if not isinstance(taken, Refusal) and taken:
            assert (incarnation, seq) > last.get(peer, (-1, -1))
            last[peer] = (incarnation, seq)
        assert len(m) <= 2
        for member in m:
            silent = now - member.seen
            assert member.state == "alive" or silent >= 2.0
            assert member.state != "alive" or silent < 3.0
            assert member.state != "dead" or silent >= 5.0

"""One node's election state machine, step by step."""

from __future__ import annotations

from typing import Any, Literal

from dimnode.core.election import Election
from dimnode.core.election_types import Action, ElectionSettings, Lost, PersistTerm, SendBeat, Start, Won, claim_key, pool_order
from dimnode.domain.node import Beat, Seat

SETTINGS = ElectionSettings()


def node(me: str = "me", start: Start = "alone", n: int = 0, **kw: Any) -> Election:
    return Election(kw.pop("settings", SETTINGS), me, "boot", n=n, now=0.0, start=start, **kw)


def beat(
    peer: str,
    seq: int = 1,
    *,
    n: int = 0,
    boot: str = "b",
    heard: tuple[str, ...] = ("me",),
    claim: Seat | None = None,
    vouch: tuple[Seat, ...] = (),
    stance: Literal["candidate", "waiting"] = "candidate",
    reach: int = 0,
) -> Beat:
    n = max(n, claim.n if claim else 0)
    return Beat(peer=peer, boot=boot, seq=seq, n=n, heard=heard, claim=claim, vouch=vouch, stance=stance, reach=reach)


def seat(peer: str, number: int = 0, n: int = 1, support: int = 1, boot: str = "b") -> Seat:
    return Seat(seat=number, n=n, peer=peer, boot=boot, support=support)


def kinds(actions: list[Action]) -> list[type]:
    return [type(a) for a in actions]


def holder(n: int = 0, **kw: Any) -> Election:
    e = node(n=n, **kw)
    assert PersistTerm(n + 1) in e.tick(0.1)
    assert Won in kinds(e.persisted(n + 1, 0.15))
    return e


def run(e: Election, start: float, seconds: float) -> list[Action]:
    """Ticks every 0.25 s; terms are persisted at once."""
    done: list[Action] = []
    for i in range(1, int(seconds * 4) + 1):
        now = start + i * 0.25
        for action in e.tick(now):
            done.append(action)
            if isinstance(action, PersistTerm):
                done += e.persisted(action.n, now)
    return done


def when_won(e: Election, limit: float = 20.0) -> float:
    for i in range(1, int(limit * 4)):
        if any(isinstance(a, Won) for a in run(e, (i - 1) * 0.25, 0.25)):
            return i * 0.25
    return limit


def test_alone_it_claims_at_once() -> None:
    e = holder(n=41)
    mine = e.mine()
    assert mine is not None
    assert (mine.seat, mine.n, mine.peer, mine.boot) == (0, 42, "me", "boot")
    assert e.seats(0.2) == (mine,)


def test_on_a_lan_it_listens_two_seconds_and_with_peers_to_find_ten() -> None:
    assert 2.0 <= when_won(node(start="lan")) <= 3.0
    assert 10.0 <= when_won(node(start="join")) <= 11.0


def test_after_two_way_contact_it_waits_one_second() -> None:
    e = node(start="join")
    e.members(["a"])
    run(e, 0.0, 1.0)
    e.on_beat(beat("a", heard=()), 1.0)
    e.on_beat(beat("a", 2), 1.0)
    assert not any(isinstance(x, Won) for x in run(e, 1.0, 0.75))
    for i in range(8):
        e.on_beat(beat("a", 3 + i), 2.0 + i * 0.25)
        if any(isinstance(x, Won) for x in run(e, 1.75 + i * 0.25, 0.25)):
            return
    raise AssertionError("no claim after contact")


def test_no_claim_takes_effect_before_its_term_is_on_disk() -> None:
    e = node()
    assert PersistTerm(1) in e.tick(0.1)
    assert e.mine() is None
    assert e.tick(0.3) == []
    assert e.persisted(7, 0.4) == []
    assert e.mine() is None
    assert PersistTerm(2) in e.tick(0.5)
    assert kinds(e.persisted(2, 0.6)) == [Won]


def test_a_failed_disk_means_no_claim_for_a_while() -> None:
    e = node()
    e.tick(0.1)
    e.not_persisted(0.2)
    assert e.tick(1.0) == []
    assert e.persisted(1, 1.1) == []
    e.tick(2.0)
    assert PersistTerm in kinds(e.tick(3.0))


def test_a_seat_taken_while_the_term_was_written_is_left_alone() -> None:
    e = node()
    e.tick(0.1)
    e.on_beat(beat("a", claim=seat("a", 0)), 0.2)
    assert e.persisted(1, 0.3) == []
    assert e.mine() is None


def test_the_lower_claim_resigns_at_once_and_says_so() -> None:
    e = holder()
    e.members(["a"])
    e.on_beat(beat("a", claim=seat("a", support=5)), 0.4)
    actions = e.tick(0.5)
    assert kinds(actions) == [Lost, SendBeat]
    assert isinstance(actions[0], Lost)
    assert actions[0].reason == "displaced"
    assert isinstance(actions[1], SendBeat)
    assert actions[1].beat.claim is None


def test_the_higher_claim_stays_and_support_outlasts_a_flapping_link_but_no_cut() -> None:
    e = holder()
    for i, peer in enumerate("bc"):
        e.on_beat(beat(peer), 0.3 + i / 100)
    e.tick(0.5)
    e.on_beat(beat("a", claim=seat("a", support=2)), 0.6)
    e.tick(0.75)
    mine = e.mine()
    assert mine is not None
    assert mine.support == 3
    run(e, 0.75, 4.5)
    assert e.mine() == mine
    run(e, 5.25, 3.0)
    alone = e.mine()
    assert alone is not None
    assert (alone.support, alone.n) == (1, mine.n)


def test_a_holder_that_came_up_alone_does_not_count_the_incumbents_side_as_its_own() -> None:
    e = holder(n=8)
    incumbent = seat("a", n=2, support=2)
    e.on_beat(beat("a", claim=incumbent), 0.4)
    e.on_beat(beat("c", vouch=(incumbent,)), 0.4)
    assert Lost in kinds(e.tick(0.5))

    defender = holder()
    for i, peer in enumerate("ac"):
        defender.on_beat(beat(peer), 0.3 + i / 100)
    defender.tick(0.5)
    defender.on_beat(beat("z", claim=seat("z", n=1, support=1)), 0.6)
    assert Lost not in kinds(defender.tick(0.75))
    mine = defender.mine()
    assert mine is not None
    assert mine.support == 3


def test_support_decides_then_term_then_peer() -> None:
    order = [seat("a", n=9), seat("b", n=9), seat("a", n=10), seat("a", n=1, support=2)]
    assert sorted([order[2], order[0], order[3], order[1]], key=claim_key) == order


def test_a_vouched_seat_is_not_vacant_but_a_claim_nobody_vouches_for_is() -> None:
    e = node(start="join")
    e.members(["a"])
    for i in range(16):
        e.on_beat(beat("a", i + 1, n=3, claim=seat("a", 0), vouch=(seat("far", 1, 3), seat("off", 2, 2))), i * 0.25)
        assert PersistTerm not in kinds(e.tick(i * 0.25))
    assert [s.peer for s in e.seats(4.0)] == ["a", "far", "off"]
    e.on_beat(beat("a", 99, claim=seat("a", 0), vouch=(seat("far", 1),)), 4.0)
    for i in range(1, 5):
        e.on_beat(beat("a", 99 + i, claim=seat("a", 0), vouch=(seat("far", 1),)), 4.0 + i * 0.25)
        for action in e.tick(4.0 + i * 0.25):
            if isinstance(action, PersistTerm):
                e.persisted(action.n, 4.0 + i * 0.25)
    mine = e.mine()
    assert mine is not None
    assert mine.seat == 2


def test_a_holders_own_word_beats_hearsay() -> None:
    e = node(start="join")
    e.on_beat(beat("a", claim=None), 0.1)
    e.on_beat(beat("b", n=5, vouch=(seat("a", 0, 5),)), 0.1)
    assert e.seats(0.2) == ()


def test_deaf_peers_are_not_live() -> None:
    e = node()
    e.on_beat(beat("a", heard=(), claim=seat("a")), 0.1)
    assert e.live(0.2) == frozenset()
    e.on_beat(beat("a", 2, claim=seat("a")), 0.1)
    assert e.live(0.2) == {"a"}
    assert e.live(2.2) == frozenset()


def test_a_broken_connection_shortens_the_wait() -> None:
    e = node()
    e.members(["a", "b"])
    e.on_beat(beat("a"), 1.0)
    e.on_disconnect("a", 1.0)
    assert e.live(1.7) == {"a"}
    assert e.live(1.8) == frozenset()
    e.on_beat(beat("a", 2), 1.8)
    assert e.live(1.8) == {"a"}
    e.on_disconnect("b", 1.8)
    e.on_disconnect("stranger", 1.8)


def when_it_claims_beside(stance: Literal["candidate", "waiting"], *, here_for: float) -> float:
    """Seat 0 becomes vacant; another candidate comes before me by its hash. How long it takes me to claim."""
    first = next(p for i in range(100) if pool_order(p := f"first{i}") < pool_order("me"))
    e = node()
    e.members([first, "x", "y", "z"])
    for i in range(1, 41):
        now = i * 0.25
        e.on_beat(beat(first, i, stance=stance, reach=3), now)
        for number, p in enumerate(("x", "y", "z")):
            claims = number or now <= here_for
            e.on_beat(beat(p, i, claim=seat(p, number) if claims else None, n=1, reach=3), now)
        if any(isinstance(a, PersistTerm) for a in e.tick(now)):
            return now - here_for
    return 99.0


def test_who_has_been_here_for_a_while_does_not_wait_for_a_candidate_that_claims_nothing_yet() -> None:
    step, soon = SETTINGS.step, SETTINGS.beat + 0.5
    assert when_it_claims_beside("waiting", here_for=4.0) <= soon
    assert when_it_claims_beside("candidate", here_for=4.0) >= step
    assert when_it_claims_beside("waiting", here_for=0.5) >= step  # both have just come


def test_a_node_says_that_it_claims_nothing_yet() -> None:
    e = node(start="lan")
    e.members(["a"])
    stances: list[str] = []
    for i in range(1, 17):
        stances += [a.beat.stance for a in e.tick(i * 0.25) if isinstance(a, SendBeat)]
    assert stances[0] == "waiting"
    assert stances[-1] == "candidate"


def test_the_last_word_for_a_holder_is_urgent() -> None:
    e = node()
    e.on_beat(beat("a", n=1, vouch=(seat("x"),)), 0.1)
    e.tick(0.2)
    assert not e.urgent
    e.on_beat(beat("a", 2, n=1), 0.3)
    assert e.urgent


def test_a_long_pause_drops_the_seat_and_listens() -> None:
    e = holder()
    assert kinds(e.tick(2.05)) == []
    actions = e.tick(5.0)
    assert isinstance(actions[0], Lost)
    assert actions[0].reason == "pause"
    assert not any(isinstance(a, PersistTerm) for a in run(e, 5.0, 1.75))
    assert any(isinstance(a, Won) for a in run(e, 6.75, 2.0))


def test_release_gives_up_tells_all_and_claims_nothing_for_a_minute() -> None:
    e = holder()
    e.on_beat(beat("a"), 0.2)
    actions = e.release(0.3)
    assert kinds(actions) == [Lost, SendBeat]
    assert isinstance(actions[1], SendBeat)
    assert actions[1].to == ("a",)
    assert e.release(0.4) == []
    assert not any(isinstance(a, (PersistTerm, Won)) for a in run(e, 0.4, 59.0))
    assert any(isinstance(a, Won) for a in run(e, 59.4, 5.0))


def test_release_during_a_claim() -> None:
    e = node()
    e.tick(0.1)
    assert e.release(0.2) == []
    assert e.persisted(1, 0.3) == []
    assert e.mine() is None


def test_stale_replayed_and_old_boot_beats_do_nothing() -> None:
    e = node()
    assert e.on_beat(beat("a", 5), 0.1)
    assert not e.on_beat(beat("a", 5), 0.2)
    assert not e.on_beat(beat("a", 4), 0.2)
    assert e.on_beat(beat("a", 1, boot="new"), 0.3)
    assert not e.on_beat(beat("a", 6), 0.4)
    assert e.statistics.stale == 3


def test_impossible_beats_are_refused() -> None:
    e = node(n=10)
    leap = 10 + (1 << 20)
    assert not e.on_beat(beat("a", n=leap + 1), 0.1)
    assert not e.on_beat(Beat(peer="a", boot="b", seq=1, n=-1, heard=()), 0.1)
    assert not e.on_beat(beat("a", claim=seat("b")), 0.1)
    assert not e.on_beat(beat("a", claim=seat("a", boot="other")), 0.1)
    assert not e.on_beat(beat("a", claim=seat("a", -1)), 0.1)
    assert not e.on_beat(beat("a", vouch=(seat("b", n=99),)), 0.1)
    assert e.statistics.refused == 6
    assert e.n == 10
    assert e.on_beat(beat("a", n=leap), 0.1)
    assert e.n == leap


def test_seats_beyond_mine_are_ignored() -> None:
    e = node()
    assert e.on_beat(beat("a", claim=seat("a", 7)), 0.1)
    assert e.seats(0.2) == ()


def test_my_own_id_with_another_boot_is_a_clone() -> None:
    e = node()
    assert not e.on_beat(beat("me", boot="boot"), 0.1)
    assert e.statistics.clones == 0
    assert not e.on_beat(beat("me", boot="other"), 0.1)
    assert e.statistics.clones == 1


def test_claims_of_those_not_on_the_allow_list_are_ignored() -> None:
    e = node(settings=ElectionSettings(allow=frozenset({"me", "a"})))
    e.members(["a", "b"])
    e.on_beat(beat("b", claim=seat("b"), vouch=(seat("c", 1),)), 0.1)
    assert e.seats(0.2) == ()
    assert not node(settings=ElectionSettings(allow=frozenset({"a"}))).eligible


def test_peers_are_bounded_and_forgotten() -> None:
    e = node(settings=ElectionSettings(max_peers=2))
    assert e.on_beat(beat("a"), 0.1)
    assert e.on_beat(beat("b"), 0.1)
    assert not e.on_beat(beat("c"), 0.1)
    for i in range(400):
        e.tick(0.1 + i * 0.25)
    assert e.on_beat(beat("c"), 101.0)


def test_the_address_travels_with_the_claim() -> None:
    e = node()
    e.advertise("h:1", True)
    e.tick(0.1)
    e.persisted(1, 0.2)
    e.advertise("h:2", False)
    mine = e.answer(beat("a"), 0.3).claim
    assert mine is not None
    assert (mine.grpc, mine.local_only) == ("h:2", False)


def test_beats_that_crossed_are_not_repeated() -> None:
    e = holder()
    e.members(["a"])
    assert kinds(e.tick(0.25)) == [SendBeat]
    e.on_beat(beat("a"), 0.3)
    e.answer(beat("a"), 0.5)
    assert e.tick(0.75) == []
    assert kinds(e.tick(1.0)) == [SendBeat]


def test_the_pool_passes_over_the_silent_and_they_are_probed_seldom() -> None:
    peers = sorted((f"p{i}" for i in range(12)), key=pool_order)
    me = peers[7]
    e = node(me, start="join")
    e.members(peers)
    sent: list[str] = []
    for i in range(40):
        now = i * 0.25
        for p in peers[6:10]:
            if p != me:
                e.on_beat(beat(p, i + 1, heard=(me,)), now)
        for action in e.tick(now):
            if isinstance(action, SendBeat):
                sent += action.to
    assert set(peers[6:10]) <= set(e.pool())
    assert sent.count(peers[0]) <= 7


def test_beats_do_not_grow_with_the_observers() -> None:
    e = holder()
    e.members([f"m{i}" for i in range(3)])
    for i in range(500):
        e.on_beat(beat(f"observer-{i}"), 0.2)
    assert e.answer(beat("observer-7"), 0.3).heard == ("observer-7",)
    assert len(e.live(0.3)) == 500


def test_a_large_swarms_observer_hears_seldom_and_still_knows_the_seats() -> None:
    e = node("me", start="join")
    e.members([f"m{i}" for i in range(1000)])
    e.tick(0.0)
    assert "me" not in e.pool()
    e.on_beat(beat("m1", claim=seat("m1")), 0.1)
    now = 0.1
    for _ in range(40):
        now += 0.25
        for action in e.tick(now):
            assert not isinstance(action, SendBeat) or now < 0.6 or action.to == ("m1",)
    assert [s.peer for s in e.seats(9.0)] == ["m1"]

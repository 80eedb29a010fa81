"""Whom to ask, and when to ask somebody else."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2p.ipfs import cid as cids
from p2p.ipfs.settings import ExchangeSettings
from p2p.ipfs.wants import Ask, Delivery, GiveUp, Search, Send, WantBook

SETTINGS = ExchangeSettings(window=2, stall=5, hedge=3, patience=60, distrust=60, probe_peers=2)
C = [cids.compute(cids.RAW, bytes([i])) for i in range(20)]


class Scene:
    def __init__(self, *connected: str, settings: ExchangeSettings = SETTINGS, searches: bool = False) -> None:
        self.connected = list(connected)
        self.now = 0.0
        self.book = WantBook(settings, lambda: self.connected, searches=searches)

    def want(self, cid: int, *providers: str, timeout: float = 30.0, search: bool = True) -> list[str]:
        self.book.want(C[cid], providers, timeout, self.now, search=search)
        return self.out()

    def searched(self, cid: int, *found: str) -> list[str]:
        self.book.searched(C[cid], found, self.now)
        return self.out()

    def out(self) -> list[str]:
        """Actions as "a block 0", "give up 0", "corrupt 0"."""
        lines: list[str] = []
        for action in self.book.actions():
            number = C.index(action.cid)
            if isinstance(action, GiveUp):
                lines.append(f"corrupt {number}" if action.corrupt else f"give up {number}")
            elif isinstance(action, Search):
                lines.append(f"search {number}")
            else:
                lines.append(f"{action.peer} {action.ask.value} {number}")
        return lines

    def deliver(self, peer: str, cid: int) -> Delivery:
        return self.book.delivered(peer, C[cid], self.now)

    def tick(self, seconds: float) -> list[str]:
        self.now += seconds
        self.book.tick(self.now)
        return self.out()


def test_each_block_is_asked_of_one_provider_and_the_load_is_shared():
    scene = Scene("a", "b")
    assert [scene.want(i, "a", "b") for i in range(5)] == [["a block 0"], ["b block 1"], ["a block 2"], ["b block 3"], []]
    assert scene.deliver("b", 1) is Delivery.WANTED
    assert scene.out() == ["b block 4"], "a window has room again"


def test_the_next_provider_is_asked_when_one_has_it_not():
    scene = Scene("a", "b")
    scene.want(0, "a", "b")
    scene.book.dont_have("a", C[0], scene.now)
    assert scene.out() == ["b block 0"]
    scene.book.dont_have("b", C[0], scene.now)
    assert scene.out() == ["a cancel 0", "b cancel 0", "give up 0"], "they would say so when they get it"
    assert len(scene.book) == 0


def test_connected_peers_are_asked_whether_they_have_it_few_at_a_time():
    scene = Scene("a", "b", "c", "d")
    assert scene.want(0, "a") == ["a block 0"]
    scene.book.dont_have("a", C[0], 0)
    assert scene.out() == ["b have 0", "c have 0"]
    scene.book.dont_have("b", C[0], 0)
    assert scene.out() == []
    scene.book.dont_have("c", C[0], 0)
    assert scene.out() == ["d have 0"]
    scene.book.have("d", C[0], 0)
    assert scene.out() == ["d block 0"]


def test_answers_that_were_not_asked_for_change_nothing():
    scene = Scene("a", "b")
    scene.want(0, "a")
    scene.book.have("b", C[0], 0)
    scene.book.dont_have("b", C[0], 0)
    scene.book.have("b", C[1], 0)
    scene.book.dont_have("b", C[1], 0)
    assert scene.out() == []


def test_nobody_to_ask():
    assert Scene().want(0) == ["give up 0"]


def test_a_provider_that_cannot_be_reached():
    scene = Scene("b")
    scene.want(0, "a")
    scene.book.down("a", 0)
    assert scene.out() == ["b have 0"]
    scene.book.down("b", 0)
    assert scene.out() == ["give up 0"]


def test_a_provider_whose_connection_is_lost():
    scene = Scene("a", "b")
    scene.want(0, "a", "b")
    assert scene.tick(0.25) == []
    scene.connected.remove("a")
    assert scene.tick(0.25) == ["b block 0"]


def test_who_lacked_a_block_is_asked_anew_when_its_provider_is_lost_in_the_midst_of_it():
    """Copies are made meanwhile: what the others said before may not be true any more."""
    scene = Scene("a", "b")
    assert scene.want(0, "b", "a") == ["b block 0"]
    scene.book.dont_have("b", C[0], scene.now)
    assert scene.out() == ["a block 0"]
    scene.connected.remove("a")
    scene.book.down("a", scene.now)
    assert scene.out() == ["b have 0"]
    scene.book.have("b", C[0], scene.now)
    assert scene.out() == ["b block 0"]


def test_providers_that_come_and_go_do_not_keep_a_want_for_ever():
    scene = Scene("a", "b")
    seen = scene.want(0, "a")
    for peer, other in ("ab", "ba") * 10:
        scene.book.down(peer, scene.now)
        scene.book.have(other, C[0], scene.now)
        seen += scene.out()
    assert seen.count("a block 0") + seen.count("b block 0") > 2
    assert seen[-1] == "give up 0"


def test_a_second_provider_is_asked_when_the_first_is_slow_and_the_loser_is_told():
    scene = Scene("a", "b")
    scene.want(0, "a", "b")
    scene.tick(2.5)
    scene.book.heard("a", scene.now)
    assert scene.tick(1) == ["b block 0"]
    assert scene.deliver("b", 0) is Delivery.WANTED
    assert scene.out() == ["a cancel 0"]
    assert scene.deliver("a", 0) is Delivery.LATE


def test_a_provider_that_works_through_what_it_was_asked_for_is_not_slow():
    scene = Scene("a", "b")
    for cid, provider in ((0, "a"), (1, "a"), (2, "b"), (3, "b")):
        scene.want(cid, provider)
    scene.want(1, "b")
    assert scene.tick(2.5) == []
    for provider, cid in (("a", 0), ("b", 2)):
        scene.book.heard(provider, scene.now)
        scene.deliver(provider, cid)
    assert scene.tick(2.5) == [], "its other block is on its way"
    assert scene.tick(1) == ["b block 1"]


def test_a_provider_that_withholds_one_block_and_brings_later_ones_is_slow():
    scene = Scene("a", "b")
    scene.want(0, "a", "b")
    for cid in (1, 2, 3):
        scene.now += 1
        scene.want(cid, "a")
        scene.book.heard("a", scene.now)
        scene.deliver("a", cid)
    scene.out()
    assert scene.tick(0.5) == ["b block 0"]


def test_a_silent_provider_is_dropped_and_asked_again_only_when_there_is_nobody_else():
    scene = Scene("a")
    scene.want(0, "a", timeout=13)
    assert scene.tick(5.1) == ["a cancel 0", "a block 0"]
    assert scene.deliver("a", 0) is Delivery.WANTED
    scene.want(1, "a", timeout=13)
    assert [line for _ in range(4) for line in scene.tick(5.1)][-1] == "give up 1"


def test_a_trickle_does_not_hold_a_block_for_ever():
    scene = Scene("a", settings=dataclasses.replace(SETTINGS, patience=20))
    scene.want(0, "a")
    lines: list[str] = []
    for _ in range(12):
        scene.book.heard("a", scene.now)
        lines += scene.tick(2)
    assert "a cancel 0" in lines


def test_progress_keeps_a_slow_transfer_alive():
    scene = Scene("a")
    scene.want(0, "a", timeout=4)
    for _ in range(20):
        scene.book.heard("a", scene.now)
        assert scene.tick(2) == []


def test_a_stalled_probe_is_dropped():
    scene = Scene("a")
    assert scene.want(0) == ["a have 0"]
    assert scene.tick(5.1) == ["a cancel 0", "give up 0"]


def test_a_liar_is_asked_three_times_at_most_and_then_not_for_a_while():
    scene = Scene("a")
    scene.want(0, "a")
    for _ in range(2):
        assert scene.deliver("a", 19) is Delivery.UNSOLICITED
        assert scene.out() == ["a cancel 0", "a block 0"]
    scene.book.refused("a", scene.now)
    assert scene.out() == ["a cancel 0", "corrupt 0"]
    assert not scene.book.trusts("a", scene.now)
    assert scene.want(1, "a") == ["give up 1"]
    scene.tick(61)
    assert scene.want(2, "a") == ["a block 2"]


def test_blocks_asked_of_a_liar_go_to_others():
    scene = Scene("a", "b")
    scene.want(0, "a", "b")
    scene.deliver("a", 19)
    assert scene.out() == ["a cancel 0", "b block 0"]
    assert scene.deliver("b", 0) is Delivery.WANTED


def test_a_block_instead_of_have_is_welcome():
    scene = Scene("a")
    scene.want(0)
    assert scene.deliver("a", 0) is Delivery.WANTED


def test_leaving_cancels_and_what_comes_late_is_no_offence():
    scene = Scene("a")
    scene.want(0, "a")
    scene.book.leave(C[0])
    assert scene.out() == ["a cancel 0"]
    scene.book.leave(C[0])
    assert scene.deliver("a", 0) is Delivery.LATE
    assert scene.deliver("a", 0) is Delivery.UNSOLICITED


def test_a_late_block_that_is_wanted_again_counts():
    scene = Scene("a", "b")
    scene.want(0, "a")
    scene.tick(5.1)
    scene.book.dont_have("a", C[0], scene.now)
    scene.out()
    assert scene.deliver("a", 0) is Delivery.WANTED


def test_a_block_asked_for_again_may_come_twice():
    scene = Scene("a")
    scene.want(0, "a")
    scene.book.leave(C[0])
    scene.want(0, "a")
    assert [scene.deliver("a", 0) for _ in range(3)] == [Delivery.WANTED, Delivery.LATE, Delivery.UNSOLICITED]


def test_wanting_twice_adds_providers():
    scene = Scene("a", "b")
    scene.want(0, "a")
    assert scene.want(0, "b") == []
    scene.book.dont_have("a", C[0], 0)
    assert scene.out() == ["b block 0"]
    assert len(scene.book) == 1


def test_peers_that_left_are_forgotten():
    scene = Scene()
    scene.book.want(C[0], ["a"], 30, 0)
    scene.book.leave(C[0])
    scene.tick(1)
    assert not scene.book._peers


EVENTS = st.one_of(
    st.tuples(st.just("want"), st.integers(0, 5), st.sets(st.sampled_from("abcd"), max_size=3)),
    st.tuples(st.sampled_from(["have", "dont", "deliver", "down"]), st.integers(0, 5), st.sampled_from("abcd")),
    st.tuples(st.just("tick"), st.floats(0.1, 8), st.just("")),
    st.tuples(st.sampled_from(["leave", "toggle", "refuse", "heard"]), st.integers(0, 5), st.sampled_from("abcd")),
)


@given(st.lists(EVENTS, max_size=60))
@settings(max_examples=150, deadline=None)
def test_whatever_happens_windows_hold_and_every_want_ends(events: list[tuple[str, float, object]]):
    scene = Scene("a", "b", "c")
    open_wants: set[int] = set()
    for what, number, who in events:
        peer, cid = str(who), C[int(number)]
        match what:
            case "want":
                scene.book.want(cid, list(who), 20, scene.now)  # type: ignore[call-overload]
                open_wants.add(int(number))
            case "have":
                scene.book.have(peer, cid, scene.now)
            case "dont":
                scene.book.dont_have(peer, cid, scene.now)
            case "deliver":
                if scene.book.delivered(peer, cid, scene.now) is Delivery.WANTED:
                    open_wants.discard(int(number))
            case "down":
                scene.book.down(peer, scene.now)
            case "tick":
                scene.now += number
                scene.book.tick(scene.now)
            case "leave":
                scene.book.leave(cid)
                open_wants.discard(int(number))
            case "toggle":
                scene.connected.remove(peer) if peer in scene.connected else scene.connected.append(peer)
            case "refuse":
                scene.book.refused(peer, scene.now)
            case _:
                scene.book.heard(peer, scene.now)
        open_wants -= {C.index(action.cid) for action in scene.book.actions() if isinstance(action, GiveUp)}
        assert len(scene.book) == len(open_wants)
        assert all(len(state.asked) <= SETTINGS.window for state in scene.book._peers.values())
    for _ in range(40):
        scene.tick(2)
    assert len(scene.book) == 0
    assert not any(state.asked for state in scene.book._peers.values())


def test_actions_say_what_they_mean():
    assert Send("a", C[0], Ask.HAVE) != Send("a", C[0], Ask.BLOCK)


@pytest.mark.parametrize("count", [1, 3])
def test_every_provider_gets_a_share(count: int):
    scene = Scene(*"abc")
    lines = [line for i in range(2 * count) for line in scene.want(i, *"abc"[:count])]
    for peer in "abc"[:count]:
        assert len([line for line in lines if line.startswith(peer)]) == 2


def test_what_nobody_who_is_known_has_is_searched_for_once():
    scene = Scene("a", "b", searches=True)
    assert scene.want(0, "a") == ["a block 0"]
    scene.book.dont_have("a", C[0], 0)
    assert scene.out() == ["b have 0"], "those who are connected come first"
    scene.book.dont_have("b", C[0], 0)
    assert scene.out() == ["search 0"]
    assert scene.tick(1) == []
    assert scene.searched(0, "c") == ["c block 0"]
    scene.book.dont_have("c", C[0], 0)
    assert scene.out() == ["a cancel 0", "b cancel 0", "c cancel 0", "give up 0"]


def test_a_search_that_finds_nobody_or_takes_too_long_ends_in_giving_up():
    scene = Scene(searches=True)
    assert scene.want(0) == ["search 0"]
    assert scene.searched(0) == ["give up 0"]
    assert scene.want(1, timeout=5) == ["search 1"]
    assert scene.tick(5.1) == ["give up 1"]
    assert scene.searched(1, "c") == [], "too late, and no harm"


def test_a_provider_that_is_asked_already_may_answer_before_the_search_does():
    scene = Scene("a", searches=True)
    assert scene.want(0, "a", timeout=60) == ["a block 0"]
    assert scene.tick(5.1) == ["a cancel 0", "search 0", "a block 0"], "it stalled: others are looked for, and it is asked again"
    assert scene.deliver("a", 0) is Delivery.WANTED
    assert scene.searched(0, "c") == []


def test_what_is_private_is_not_searched_for():
    scene = Scene(searches=True)
    assert scene.want(0, search=False) == ["give up 0"]
    scene.connected = ["a"]
    assert scene.want(1, search=False) == ["a have 1"]
    assert scene.want(1) == [], "somebody else wants it for everybody"
    scene.book.dont_have("a", C[1], 0)
    assert scene.out() == ["search 1"]


def test_who_was_found_to_have_a_root_is_asked_for_what_is_below_it():
    scene = Scene(searches=True)
    scene.want(0)
    assert scene.searched(0, "c") == ["c block 0"]
    assert scene.deliver("c", 0) is Delivery.WANTED
    assert scene.want(1) == ["c block 1"]
    assert scene.want(2, "d") == ["d block 2"], "where providers are named, they are asked"
    scene.deliver("c", 1)
    scene.tick(61)
    assert scene.want(3) == ["search 3"], "not for ever"


def test_who_has_parts_only_is_asked_after_who_has_all_and_gets_back_what_it_lost():
    scene = Scene("whole", "part", settings=dataclasses.replace(SETTINGS, window=8))
    for number in range(3):
        scene.want(number, "part")
        scene.book.dont_have("part", C[number], 0)
    scene.out()
    for number in range(3):
        scene.book.leave(C[number])
    scene.out()
    asked = [scene.want(number, "part", "whole") for number in range(4, 9)]
    assert asked == [["whole block 4"], ["whole block 5"], ["whole block 6"], ["part block 7"], ["whole block 8"]]
    for _ in range(2):
        assert scene.deliver("part", 7) is not Delivery.UNSOLICITED
        scene.want(7, "part")
    assert scene.deliver("whole", 4) is Delivery.WANTED
    assert scene.book._peer("part").lacked == 0


def test_who_lacked_a_block_and_got_it_is_asked_again():
    scene = Scene("a", "b")
    assert [scene.want(i, "a", "b") for i in range(3)] == [["a block 0"], ["b block 1"], ["a block 2"]]
    scene.book.dont_have("b", C[1], 0)
    assert scene.out() == [], "the other one is busy"
    scene.book.have("b", C[1], 0)
    assert scene.out() == ["b block 1"]
    assert scene.deliver("b", 1) is Delivery.WANTED


def test_who_says_that_it_has_what_it_does_not_have_is_believed_so_often():
    scene = Scene("a", "b")
    for number in range(3):
        scene.want(number, "a", "b")
    times = 0
    for _ in range(10):
        scene.book.dont_have("b", C[1], 0)
        scene.out()
        scene.book.have("b", C[1], 0)
        times += "b block 1" in scene.out()
    assert times == 3


def test_who_stalled_or_was_never_asked_is_not_asked_for_saying_that_it_has_it():
    scene = Scene("a", "b")
    assert scene.want(0, "a", "b") == ["a block 0"]
    assert "a cancel 0" in scene.tick(6)
    scene.book.have("a", C[0], scene.now)
    scene.book.have("z", C[0], scene.now)
    assert scene.out() == []


def test_a_block_that_comes_after_all_from_who_lacked_it_is_taken_once():
    """Kubo sends what it was asked for as soon as it has it."""
    scene = Scene("a", "b")
    scene.want(0, "a", "b")
    scene.want(1, "a", "b")
    scene.book.dont_have("b", C[1], 0)
    assert scene.deliver("b", 1) is Delivery.WANTED
    assert scene.deliver("b", 1) is Delivery.UNSOLICITED


def test_who_is_gone_is_not_told_that_a_block_is_not_wanted_any_more():
    scene = Scene("a", "b", "c")
    scene.want(0, "a", "b", "c")
    scene.book.dont_have("a", C[0], 0)
    scene.book.dont_have("b", C[0], 0)
    scene.book.down("a", 0)
    scene.out()
    assert scene.deliver("c", 0) is Delivery.WANTED
    assert scene.out() == ["b cancel 0"]

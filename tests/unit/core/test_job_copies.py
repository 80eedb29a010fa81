"""What an owner knows of the copies of one job."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st

from dimnode.core.job_copies import JobCopies


def test_only_the_news_goes_where_everything_before_went() -> None:
    c = JobCopies(1)
    c.grow()
    assert c.lacks("a") == "all"
    c.handed("a")
    assert c.lacks("a") == "nothing"
    c.grow()
    assert (c.lacks("a"), c.lacks("b")) == ("last", "all")
    c.grow()
    assert c.lacks("a") == "all", "it was passed over once"


def test_what_was_lost_on_the_way_is_sent_whole() -> None:
    c = JobCopies(1)
    c.grow()
    c.handed("a")
    c.stored("a", 1)
    c.grow()
    c.handed("a")
    c.lost("a")
    assert c.lacks("a") == "all"
    assert (c.up_to(1), c.up_to(2)) == (1, 0)
    c.stored("a", 2)
    assert c.up_to(2) == 0, "an answer to what was given up proves nothing"


def test_blocks_are_part_of_a_copy() -> None:
    c = JobCopies(1)
    c.grow(["x", "y"])
    c.handed("a")
    assert c.blocks_for("a") == {"x", "y"}
    c.blocks_asked("a", c.blocks_for("a"))
    c.stored("a", 1)
    assert not c.blocks_for("a")
    assert (c.up_to(1), c.up_to(1, ["x"]), c.under_way(1)) == (1, 0, True)
    c.blocks_answered("a", ("x", "y"), ["x"], pause_until=60.0)
    assert (c.up_to(1, ["x"]), c.full("a"), c.fit("a", 59.0), c.fit("a", 60.0)) == (1, False, False, True)
    c.blocks_asked("a", ["y"])
    c.blocks_answered("a", ("y",), ["y"], pause_until=60.0)
    assert c.full("a")


def test_passing_blocks_take_each_others_place_and_lasting_ones_stay() -> None:
    c = JobCopies(1)
    c.grow(["input"])
    c.pass_on(["first"])
    assert c.blocks_for("a") == {"input", "first"}
    c.blocks_asked("a", c.blocks_for("a"))
    c.pass_on(["second"])
    assert (c.blocks_for("a"), c.blocks_for("b")) == ({"second"}, {"input", "second"})
    c.blocks_answered("a", ("input", "first"), ["input"], pause_until=60.0)
    assert c.fit("a", 0.0), "the first one is not wanted any more"
    c.pass_on(["second", "input"])
    c.pass_on([])
    assert c.blocks_for("b") == {"input"}
    c.pass_on(["result"])
    c.grow(["result"])
    c.pass_on([])
    assert c.blocks_for("b") == {"input", "result"}


def test_a_node_that_lost_its_disk_gets_the_whole_record_once() -> None:
    c = JobCopies(1)
    c.grow()
    c.handed("a")
    c.stored("a", 1)
    c.grow()
    c.handed("a")
    c.incomplete("a", pause_until=9.0)
    assert (c.lacks("a"), c.up_to(1), c.fit("a", 0.0)) == ("all", 0, True)
    c.handed("a")
    c.incomplete("a", pause_until=9.0)
    assert not c.fit("a", 0.0), "it says so of a whole record"


@dataclass
class _Node:
    """What a node really has: the writes, in whatever order they came."""

    has: set[int] = field(default_factory=set[int])
    coming: list[tuple[set[int], int]] = field(default_factory=list[tuple[set[int], int]])


_STEPS = st.lists(st.tuples(st.sampled_from(["write", "send", "store", "lose", "wipe"]), st.sampled_from("abc")), max_size=60)


@given(steps=_STEPS)
def test_a_node_that_counts_has_everything(steps: list[tuple[str, str]]) -> None:
    """Against nodes that really store, lose and forget: whoever counts for write n has 1..n."""
    c = JobCopies(2)
    nodes = {p: _Node() for p in "abc"}
    for step, peer in steps:
        node = nodes[peer]
        match step:
            case "write":
                c.grow()
            case "send" if c.length and (lacks := c.lacks(peer)) != "nothing":
                node.coming.append(({c.length} if lacks == "last" else set(range(1, c.length + 1)), c.length))
                c.handed(peer)
            case "store" if node.coming:
                writes, mark = node.coming.pop(0)
                if 1 in writes or 1 in node.has:
                    node.has |= writes
                    c.stored(peer, mark)
                else:
                    node.coming.clear()  # a link gives back what is behind
                    c.incomplete(peer, 0.0)
            case "lose":
                if node.coming:
                    node.has |= node.coming[0][0] if 1 in node.coming[0][0] | node.has else set()
                node.coming.clear()
                c.lost(peer)
            case "wipe":
                node.has.clear()
                node.coming.clear()
                c.lost(peer)
                c.incomplete(peer, 0.0)
            case _:
                pass
        for length in range(1, c.length + 1):
            complete = sum(n.has >= set(range(1, length + 1)) for n in nodes.values())
            assert c.up_to(length) <= complete

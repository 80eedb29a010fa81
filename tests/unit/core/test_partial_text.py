"""Text while it grows: what is told twice, late, in pieces, or begun anew; and that all of it is bounded."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from dimnode.core.partial_text import MAX_ROWS, Board, PartialText, Seen
from dimnode.domain.task import PartialOutput, TextPiece


def piece(offset: int, text: str, row: int = 0) -> TextPiece:
    return TextPiece(row=row, offset=offset, text=text)


def output(attempt: int, offset: int, text: str, task: str = "t", row: int = 0) -> PartialOutput:
    return PartialOutput(task=task, attempt=attempt, row=row, offset=offset, text=text)


def test_pieces_become_a_text_and_what_is_known_or_behind_a_gap_changes_nothing() -> None:
    text = PartialText(100)
    assert text.add(piece(0, "Once"))
    assert not text.add(piece(0, "Onc"))
    assert text.add(piece(2, "ce upon"))
    assert not text.add(piece(20, "lost"))
    assert not text.add(piece(-1, "x"))
    assert not text.add(piece(0, "x", row=MAX_ROWS))
    assert text.add(piece(0, "Two", row=1))
    assert text.after({}) == [piece(0, "Once upon"), piece(0, "Two", row=1)]
    assert text.after({0: 4, 1: 3}) == [piece(4, " upon")]


def test_a_text_ends_where_its_room_ends() -> None:
    text = PartialText(6)
    assert text.add(piece(0, "abcd"))
    assert text.add(piece(4, "efgh"))
    assert not text.add(piece(6, "gh"))
    assert text.after({}) == [piece(0, "abcdef")]


def test_a_later_attempt_begins_anew_and_an_earlier_one_is_over() -> None:
    board, seen = Board(100, 1000), Seen()
    board.add("j", "t", 1, piece(0, "wrong"))
    assert [seen.news(o) for o in board.after("j", seen)] == [output(1, 0, "wrong")]
    board.add("j", "t", 2, piece(0, "ri"))
    assert not board.add("j", "t", 1, piece(5, "er"))
    assert [seen.news(o) for o in board.after("j", seen)] == [output(2, 0, "ri")]
    assert board.after("j", seen) == []
    assert seen.news(output(1, 5, "er")) is None
    assert Seen.from_plain([("t", 2, 0, 2)]).of("t", 2) == {0: 2}
    assert board.after("j", Seen.from_plain([("t", 1, 0, 5)])) == [output(2, 0, "ri")]


def test_the_jobs_written_to_longest_ago_are_dropped_first() -> None:
    board = Board(100, 10)
    board.add("a", "t", 1, piece(0, "aaaa"))
    board.add("b", "t", 1, piece(0, "bbbb"))
    board.add("a", "t", 1, piece(4, "a"))
    board.add("c", "t", 1, piece(0, "ccccc"))
    assert [bool(board.after(j, Seen())) for j in "abc"] == [True, False, True]


def test_a_watcher_far_behind_gets_it_in_portions() -> None:
    board, seen, got = Board(1000, 1000), Seen(), ""
    board.add("j", "t", 1, piece(0, "x" * 250))
    while portion := board.after("j", seen, most=100):
        assert sum(len(o.text) for o in portion) <= 100
        got += "".join(o.text for o in map(seen.news, portion) if o is not None)
    assert got == "x" * 250


@given(
    st.text("ab é", min_size=1, max_size=40),
    st.lists(st.tuples(st.integers(0, 40), st.integers(1, 10)), max_size=30),
)
def test_however_pieces_come_what_is_shown_is_a_beginning_of_the_text(text: str, cuts: list[tuple[int, int]]) -> None:
    board, seen, shown = Board(1000, 1000), Seen(), ""
    for at, size in cuts:
        board.add("j", "t", 1, piece(at, text[at : at + size]))
        again = Seen.from_plain(tuple(x) for x in seen.to_plain())
        assert board.after("j", again) == board.after("j", seen)
        for o in board.after("j", seen):
            new = seen.news(o)
            assert new is None or new.offset == len(shown)
            shown += new.text if new is not None else ""
        assert seen.news(output(1, 0, shown)) is None
    assert text.startswith(shown)

"""What is remembered of hints."""

from __future__ import annotations

from dimnode.core.hint_index import Heard, HintIndex


def heard(owner: str = "p", epoch: int = 1, digest: bytes = b"1", *, terminal: bool = False) -> Heard:
    return Heard(owner, epoch, digest, terminal)


def test_the_highest_epoch_and_then_the_latest_word_counts() -> None:
    index = HintIndex(9, grace=2.0)
    assert index.hear("j", heard())
    assert not index.hear("j", heard())
    assert index.hear("j", heard(digest=b"2"))
    assert index.hear("j", heard("q", epoch=2))
    assert not index.hear("j", heard("p", epoch=1, digest=b"3")), "a former owner"
    assert index.get("j") == heard("q", epoch=2)
    assert index.get("k") is None


def test_only_what_differs_for_long_is_asked_for_and_once() -> None:
    index = HintIndex(9, grace=2.0)
    for job, owner, at in (("a", "p", 10.0), ("b", "q", 11.0), ("c", "p", 11.5)):
        index.hear(job, heard(owner))
        index.differs(job, at)
    index.agrees("c")
    assert index.next_at() == 12.0
    assert index.take_due(11.9, 9) == {}
    assert index.take_due(13.0, 9) == {"p": ["a"], "q": ["b"]}
    assert index.take_due(99.0, 9) == {}
    assert index.next_at() is None


def test_news_start_the_grace_time_anew() -> None:
    index = HintIndex(9, grace=2.0)
    index.hear("a", heard())
    index.hear("b", heard())
    index.differs("a", 10.0)
    index.differs("b", 10.5)
    index.differs("a", 11.5)
    assert index.take_due(12.5, 9) == {"p": ["b"]}
    assert index.take_due(13.5, 9) == {"p": ["a"]}


def test_it_is_bounded() -> None:
    index = HintIndex(3, grace=2.0)
    for n in range(10):
        index.hear(f"j{n}", heard())
        index.differs(f"j{n}", 0.0)
    assert len(index) == 3
    assert index.take_due(9.0, 2) == {"p": ["j7", "j8"]}
    assert index.take_due(9.0, 2) == {"p": ["j9"]}

from __future__ import annotations

from patterns.api import Source
from patterns.sources import feed, visible


def test_later_sources_win_and_strangers_are_left_out() -> None:
    fed = feed(["a", "b", "c"], [(Source("client"), {"a": 1, "z": 9}), (Source("task", "s"), {"a": 2, "b": 3})])
    assert fed == {"a": 2, "b": 3}
    assert list(fed) == ["a", "b"]


def test_a_renamed_tensor_displaces_its_namesake_and_loses_its_old_name() -> None:
    assert visible(["a", "b"], {"a": "b"}) == {"a": "b"}
    assert feed(["a", "b"], [(Source("client", rename={"a": "b"}), {"b": 1, "a": 2})]) == {"b": 2}


def test_a_rename_of_what_is_not_there_does_nothing() -> None:
    assert feed(["x"], [(Source("client", rename={"y": "x"}), {"x": 1})]) == {"x": 1}

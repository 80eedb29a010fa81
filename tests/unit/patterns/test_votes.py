from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from patterns.api import PatternError
from patterns.votes import Ballot, alike, count, tally, vote


def ballot(*classes: object, cast: list[bool] | None = None, dtype: object = None) -> Ballot:
    values = np.array(classes, dtype=dtype or (object if isinstance(classes[0], str) else None))
    return Ballot(values, np.array(cast if cast is not None else [True] * len(classes)))


class TestTheRule:
    def test_first_integer_output_of_one_value_per_row_votes(self) -> None:
        outputs = {"scores": np.eye(3), "label": np.array([2, 0, 1]), "other": np.array([1, 1, 1])}
        assert vote(outputs, 3).classes.tolist() == [2, 0, 1]

    @pytest.mark.parametrize(
        "label", [np.array([True, False]), np.array(["a", "b"]), np.array(["a", "b"], dtype=object), np.array([b"a", b"b"])]
    )
    def test_booleans_and_strings_vote_too(self, label: np.ndarray) -> None:
        expected = [x.decode() if isinstance(x, bytes) else x for x in label.tolist()]
        assert vote({"s": np.eye(2), "label": label}, 2).classes.tolist() == expected

    def test_else_the_argmax_of_the_first_float_output_with_two_classes_or_more(self) -> None:
        outputs = {"one": np.ones((2, 1)), "flat": np.ones(2), "p": np.array([[0.1, 0.9], [0.5, 0.5]]), "q": np.eye(2)}
        assert vote(outputs, 2).classes.tolist() == [1, 0]

    def test_a_named_output_votes_and_may_hold_float_classes(self) -> None:
        outputs = {"label": np.array([1, 1]), "p": np.array([[0.9, 0.1], [0.2, 0.8]]), "f": np.array([0.5, np.nan])}
        assert vote(outputs, 2, "p").classes.tolist() == [0, 1]
        assert vote(outputs, 2, "f").cast.tolist() == [True, False]

    def test_a_row_with_a_nan_casts_no_vote(self) -> None:
        said = vote({"p": np.array([[0.1, 0.9], [np.nan, 0.5]])}, 2)
        assert said.cast.tolist() == [True, False]

    def test_without_a_batch_axis_any_length_will_do(self) -> None:
        assert vote({"label": np.array([3, 4, 5])}, None).classes.tolist() == [3, 4, 5]

    @pytest.mark.parametrize(
        ("outputs", "named"),
        [
            ({"y": np.ones(3)}, None),
            ({"label": np.array([1, 2])}, None),
            ({}, None),
            ({"y": np.ones((3, 1))}, "y"),
            ({"y": np.ones((3, 2), dtype=complex)}, "y"),
            ({"y": np.array([1, 2, 3])}, "z"),
        ],
    )
    def test_what_cannot_vote_is_refused_with_what_there_is(self, outputs: dict[str, np.ndarray], named: str | None) -> None:
        with pytest.raises(PatternError) as caught:
            vote(outputs, 3, named)
        assert caught.value.code == "INVALID_ARGUMENT"
        assert caught.value.hint

    def test_class_numbers_beyond_int64_are_refused(self) -> None:
        with pytest.raises(PatternError, match="2\\^63"):
            vote({"label": np.array([2**63], dtype=np.uint64)}, 1)


class TestAlike:
    def test_numbers_meet_in_the_widest_kind(self) -> None:
        assert [a.dtype.kind for a in alike([np.array([True]), np.array([2])])] == ["i", "i"]
        assert [a.dtype.kind for a in alike([np.array([1]), np.array([0.5])])] == ["f", "f"]
        assert [a.dtype.kind for a in alike([np.array([True]), np.array([False])])] == ["b", "b"]

    def test_strings_and_numbers_do_not_compare(self) -> None:
        with pytest.raises(PatternError, match="strings"):
            alike([np.array(["a"]), np.array([1])])


class TestTally:
    def test_ties_go_to_the_smallest_class_and_are_listed(self) -> None:
        counted = tally([ballot(2, 1), ballot(1, 1), ballot(2, 3), ballot(1, 1)], [1, 1, 1, 1])
        assert counted.winner.tolist() == [1, 1]
        assert counted.ties == {0: [1, 2]}
        assert counted.agreement.tolist() == [0.5, 0.75]

    def test_weights_that_add_up_alike_are_a_tie_whatever_the_rounding(self) -> None:
        counted = tally([ballot(7), ballot(7), ballot(3)], [0.1, 0.2, 0.3])
        assert counted.winner.tolist() == [3]
        assert counted.ties == {0: [3, 7]}

    def test_strings_tie_alphabetically(self) -> None:
        assert tally([ballot("b"), ballot("a")], [1, 1]).winner.tolist() == ["a"]

    def test_who_casts_no_vote_still_weighs_in_the_agreement(self) -> None:
        counted = tally([ballot(1, cast=[True]), ballot(5, cast=[False])], [1, 3])
        assert counted.winner.tolist() == [1]
        assert counted.agreement.tolist() == [0.25]

    def test_a_row_without_any_vote_is_an_error(self) -> None:
        with pytest.raises(PatternError, match="row 1"):
            tally([ballot(1, 2, cast=[True, False])], [1])

    def test_different_lengths_are_an_error(self) -> None:
        with pytest.raises(PatternError, match="1, 2"):
            tally([ballot(1), ballot(1, 2)], [1, 1])

    def test_no_rows_are_an_error(self) -> None:
        with pytest.raises(PatternError, match="no rows"):
            tally([Ballot(np.array([], dtype=np.int64), np.array([], dtype=bool))], [1])

    @given(
        votes=hnp.arrays(np.int64, st.tuples(st.integers(1, 6), st.integers(1, 8)), elements=st.integers(-2, 3)),
        data=st.data(),
    )
    def test_equals_a_count_by_hand_whatever_the_order_of_voters(self, votes: np.ndarray, data: st.DataObject) -> None:
        weights = data.draw(st.lists(st.integers(1, 4), min_size=len(votes), max_size=len(votes)))
        order = data.draw(st.permutations(range(len(votes))))
        counted = tally([ballot(*votes[i].tolist()) for i in order], [float(weights[i]) for i in order])
        for row in range(votes.shape[1]):
            by_hand: Counter[int] = Counter()
            for voter, weight in enumerate(weights):
                by_hand[int(votes[voter, row])] += weight
            most = max(by_hand.values())
            top = sorted(c for c, w in by_hand.items() if w == most)
            assert counted.winner[row] == top[0]
            assert counted.agreement[row] == pytest.approx(most / sum(weights))
            assert counted.ties.get(row, top[:1]) == top


@given(hnp.arrays(np.float64, st.integers(0, 20), elements=st.sampled_from([0.0, 1.5, -2.0, np.nan])))
def test_count_leaves_out_what_is_not_cast(values: np.ndarray) -> None:
    classes, counts = count(values, ~np.isnan(values))
    assert dict(zip(classes.tolist(), counts.tolist(), strict=True)) == dict(Counter(v for v in values.tolist() if v == v))
    assert counts.dtype == np.int64

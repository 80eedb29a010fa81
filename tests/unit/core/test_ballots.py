from __future__ import annotations

import pytest

from dimnode.core.ballots import MAX_LEAP, leaps
from dimnode.domain.record import Ballot


@pytest.mark.parametrize(
    ("n", "highest", "refused"),
    [
        (0, 0, False),
        (1, 0, False),
        (MAX_LEAP, 0, False),
        (MAX_LEAP + 1, 0, True),
        (MAX_LEAP + 1, 1, False),
        (5 + MAX_LEAP, 5, False),
        (6 + MAX_LEAP, 5, True),
        (3, 1 << 40, False),
        (-1, 0, True),
        (MAX_LEAP, -9, False),
        (1 << 64, 1 << 30, True),
    ],
)
def test_a_ballot_may_leap_only_so_far(n: int, highest: int, refused: bool) -> None:
    assert leaps(Ballot(n, "p", "b"), highest) is refused

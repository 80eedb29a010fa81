"""What a ballot may be: of the right to decide over a job, apart from which one is higher."""

from __future__ import annotations

from dimnode.domain.record import Ballot

MAX_LEAP = 1 << 20
"""A ballot above the highest known one by more than this is refused: real ones grow by one with each takeover,
and whoever claims the last number would own the job for ever."""


def leaps(ballot: Ballot, highest: int) -> bool:
    """Whether no honest owner can have this ballot. ``highest``: n of the highest one known for the job, 0 if none is."""
    return not 0 <= ballot.n <= max(0, highest) + MAX_LEAP

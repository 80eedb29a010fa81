"""Terms: the numbers that grow with every change of a seat's holder, and that fence whoever did not notice."""

from __future__ import annotations

MAX_TERM = (1 << 53) - 1
"""Above this, numbers are not exact everywhere."""
MAX_LEAP = 1 << 20
"""Of honest work: a claim a second for twelve days."""


def sane_leap(known: int, offered: int, most: int = MAX_LEAP) -> bool:
    """Whether a term (or the n of a job's ballot) may be believed by one who knows ``known``. A liar, or a broken
    disk, could else use up all numbers at once; nobody could claim after it."""
    return 0 <= offered <= min(known + most, MAX_TERM)

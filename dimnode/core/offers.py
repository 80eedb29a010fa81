"""Whose turn it is to be offered what nobody takes care of: unfinished jobs without a driver, results that nobody fetched.

A pure state machine, one per kind of thing. Each key goes to the seats in its own rendezvous order, one after the other,
again and again: every holder that offers a job offers it to the same seat first, so that as a rule one of them claims it.
The order is a hint; what a seat says, and for jobs its claim, is the authority.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field

from dimnode.core.rendezvous import rendezvous


@dataclass(frozen=True, slots=True)
class OfferSettings:
    """Times in seconds."""

    settle: float = 0.2
    """Something must have been nobody's for this long: what changes its owner just now is not offered."""
    turn: float = 1.0
    """A seat that has not answered after this gives way to the next."""
    pause: float = 1.0
    """After all seats were asked in vain; doubled each time up to ``pause_most``."""
    pause_most: float = 1.0
    most: int = 256
    """Things offered to one seat at once."""
    most_bytes: int = 4 * 1024 * 1024
    """The same, by their size; a larger one is offered alone."""


@dataclass(frozen=True, slots=True)
class Turn:
    """Offer these to this seat now."""

    peer: str
    keys: tuple[str, ...]


@dataclass(slots=True)
class _State:
    due: float
    asked: set[str] = field(default_factory=set[str])
    """Seats that had their turn in this round."""
    rounds: int = 0


class Offering:
    def __init__(self, settings: OfferSettings | None = None) -> None:
        self._settings = settings or OfferSettings()
        self._states: dict[str, _State] = {}

    def __len__(self) -> int:
        return len(self._states)

    def see(self, keys: Iterable[str], now: float) -> None:
        """All that is nobody's at present; what is left out is taken care of."""
        present = dict.fromkeys(keys)
        for gone in self._states.keys() - present.keys():
            del self._states[gone]
        for key in present:
            if key not in self._states:
                self._states[key] = _State(now + self._settings.settle)

    def due(self, seats: Collection[str], now: float, busy: Collection[str] = (), size: Callable[[str], int] = lambda key: 0) -> list[Turn]:
        """What to offer now, to each seat as much as it takes at once and nothing to the ``busy`` ones, which still have a turn
        to answer: what goes to them waits, and its time does not run. ``size``: bytes."""
        turns: dict[str, list[str]] = {}
        room: dict[str, int] = {}
        for key, state in self._states.items():
            if state.due > now or not seats:
                continue
            if state.asked.issuperset(seats):
                state.asked.clear()
            peer = next(p for p in rendezvous(key, seats) if p not in state.asked)
            chosen = turns.setdefault(peer, [])
            if peer in busy or len(chosen) >= self._settings.most:
                continue
            left = room.get(peer, self._settings.most_bytes) - size(key)
            if left >= 0 or not chosen:
                room[peer] = left
                chosen.append(key)
                state.asked.add(peer)
                state.due = now + self._after(state, seats)
        return [Turn(peer, tuple(keys)) for peer, keys in turns.items() if keys]

    def _after(self, state: _State, seats: Collection[str]) -> float:
        if not state.asked.issuperset(seats):
            return self._settings.turn
        state.rounds += 1
        return max(self._settings.turn, min(self._settings.pause_most, self._settings.pause * 2.0 ** min(state.rounds - 1, 32)))

    def declined(self, keys: Iterable[str], seats: Collection[str], now: float) -> None:
        """The seat whose turn it was does not take them, or cannot be reached: the next one is not kept waiting."""
        for key in keys:
            state = self._states.get(key)
            if state is not None and not state.asked.issuperset(seats):
                state.due = min(state.due, now)

    def next_at(self) -> float | None:
        """When the next thing is due; None if there is none. What waits for a busy seat is due already."""
        return min((s.due for s in self._states.values()), default=None)

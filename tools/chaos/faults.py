"""What goes wrong and when: a schedule that follows from a seed alone.

Who is hit is decided when the moment has come (who holds a seat is not known before), from the number that the
schedule drew for it.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from tools.chaos.network import CLIENT, Way, both

Kind = Literal["kill", "stop", "freeze", "cut", "cut-in", "cut-out", "pair", "halves", "disk"]
SECONDS: dict[Kind, tuple[float, float]] = {
    "kill": (2, 6),
    "stop": (2, 6),
    "freeze": (1, 15),
    "cut": (3, 12),
    "cut-in": (3, 12),
    "cut-out": (3, 12),
    "pair": (3, 12),
    "halves": (4, 12),
    "disk": (3, 8),
}
"""How long each lasts."""
BAG: tuple[Kind, ...] = ("kill", "kill", "stop", "freeze", "cut", "cut-in", "cut-out", "pair", "halves", "disk")
"""Drawn from until it is empty, then filled again: every kind comes, kills twice as often."""
FIRST_AFTER = 3.0
QUIET = (2.0, 6.0)
"""Seconds between the end of one fault and the start of the next."""
OVERLAP = 0.25
"""How often a fault begins while the one before it lasts."""


@dataclass(frozen=True, slots=True)
class Fault:
    at: float
    """Seconds after the start of the load."""
    kind: Kind
    seconds: float
    holder: bool
    """Whether a holder of a seat is hit, if one is to be had."""
    who: float
    """0..1: which of those that may be hit."""
    other: float
    """0..1: the second of a pair, or where the halves are cut."""
    client: bool
    """Whether the client is cut off from the victims, too."""

    @property
    def end(self) -> float:
        return self.at + self.seconds


def schedule(seed: int, seconds: float, only: Sequence[Kind] = ()) -> list[Fault]:
    """Faults that begin and end within ``seconds``. The first is the kill of a seat's holder. ``only``: just these kinds, and one
    after the other."""
    chance = random.Random(seed)
    kinds, overlap = (only, 0.0) if only else (BAG, OVERLAP)
    bag: list[Kind] = ["kill" if "kill" in kinds else kinds[0]]
    found: list[Fault] = []
    at = FIRST_AFTER
    while True:
        kind = bag.pop()
        fault = Fault(
            at=round(at, 2),
            kind=kind,
            seconds=round(chance.uniform(*SECONDS[kind]), 2),
            holder=not found or chance.random() < 0.6,
            who=round(chance.random(), 3),
            other=round(chance.random(), 3),
            client=chance.random() < 0.5,
        )
        if fault.end > seconds:
            return found
        found.append(fault)
        if not bag:
            bag = chance.sample(kinds, len(kinds))
        ends = max(f.end for f in found[-2:])  # never more than two at once
        two = len(found) > 1 and found[-2].end > fault.at
        at = fault.at + fault.seconds * chance.random() if chance.random() < overlap and not two else ends + chance.uniform(*QUIET)


def choose(fault: Fault, free: Sequence[int], holders: frozenset[int]) -> int | None:
    """The victim, of those whom nothing ails yet; None if there is nobody."""
    wanted = sorted(holders.intersection(free)) if fault.holder else []
    among = wanted or sorted(free)
    return among[int(fault.who * len(among))] if among else None


def ways(fault: Fault, victim: int, nodes: Sequence[int]) -> tuple[str, set[Way]]:
    """What a cut severs, in words and in ways. Nothing for faults that are no cuts."""
    others = [n for n in nodes if n != victim]
    world = [*others, CLIENT] if fault.client else others
    match fault.kind:
        case "cut":
            return "from all", both([victim], world)
        case "cut-in":
            return "hears nobody", {(n, victim) for n in world}
        case "cut-out":
            return "is heard by nobody", {(victim, n) for n in world}
        case "pair":
            other = others[int(fault.other * len(others))]
            return f"from node{other}", both([victim], [other])
        case "halves":
            side = [victim, *others[: int(fault.other * (len(nodes) // 2))]]
            rest = [n for n in nodes if n not in side]
            return f"{side} from {rest}", both(side, [*rest, CLIENT] if fault.client else rest)
        case _:
            return "", set()

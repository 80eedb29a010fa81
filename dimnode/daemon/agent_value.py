"""What an idle agent is worth, and which goes first. Pure."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

HALF_LIFE = 120.0
"""Seconds of idleness that halve an agent's worth."""
LEAST_SECONDS = 0.2
LEAST_BYTES = 64 << 20
"""Below these differences mean nothing."""


@dataclass(frozen=True, slots=True)
class AgentFacts:
    load_seconds: float
    """What it took to start it and load the model: what is lost with it."""
    calls: int
    idle_since: float
    memory: int
    """Bytes that ending it gives back; 0: not known yet."""


def value(facts: AgentFacts, now: float) -> float:
    """Seconds of loading that keeping it will probably save, per byte. (The rule of GreedyDual-Size-Frequency, Cherkasova 1998,
    with decay in place of its inflation term.)"""
    decay = 0.5 ** (max(0.0, now - facts.idle_since) / HALF_LIFE)
    return (1 + facts.calls) * max(facts.load_seconds, LEAST_SECONDS) * decay / max(facts.memory, LEAST_BYTES)


class Idle(Protocol):
    """An idle agent, as far as its worth goes."""

    model: str
    load_seconds: float
    calls: int
    idle_since: float
    used: int
    """Bytes."""


A = TypeVar("A", bound=Idle)


def in_order_of_worth(idle: Sequence[A], now: float, unwanted: Collection[A]) -> list[A]:
    """What is worth least comes first, after all that is unwanted."""

    def worth(agent: A) -> tuple[bool, float]:
        return agent not in unwanted, value(AgentFacts(agent.load_seconds, agent.calls, agent.idle_since, agent.used), now)

    return sorted(idle, key=worth)


def spare_ones(idle: Sequence[A], busy: Collection[str], keep: Callable[[str], bool]) -> list[A]:
    """All but one, the latest, of each model that is to be kept and that no busy agent holds. ``idle``: longest idle first."""
    held, out = set(busy), list[A]()
    for agent in reversed(idle):
        if keep(agent.model) and agent.model not in held:
            held.add(agent.model)
        else:
            out.append(agent)
    return out[::-1]

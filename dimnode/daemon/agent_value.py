"""What an idle agent is worth. Pure."""

from __future__ import annotations

from dataclasses import dataclass

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

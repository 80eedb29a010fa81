"""How often a model's agents have failed, and what follows from it. Pure; time is passed in.

Only what the model itself brought about counts: a crash, a load that does not end or fails, a run that took out of all proportion until its
caller's time was over. A deadline that a caller set short says nothing, neither do inputs that do not fit or are too many.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

from dimnode.daemon.settings import AgentSettings
from dimnode.errors import FailedPrecondition, ResourceExhausted

OUT_OF_PROPORTION = 3.0
"""A run that took so many times as long as any that ended well is taken for one that would not have ended."""
K = TypeVar("K")
V = TypeVar("V")


@dataclass(slots=True)
class _History:
    failures: int = 0
    not_before: float = 0.0
    refused_until: float = 0.0
    reason: str = ""


@dataclass(frozen=True, slots=True)
class _Rejection:
    until: float
    reason: str


class ModelHealth:
    """After each failure in a row the restart waits twice as long; after ``max_crashes`` the model
    is refused for ``refuse_seconds``, then gets one more try. Agents' deaths count by model CID. What a loader rejects is refused for as long
    at once. That, and loads that an agent survived, count under what the manifest claims: another may say better, and anybody may write one."""

    def __init__(self, settings: AgentSettings, remember: int = 1024) -> None:
        self._settings = settings
        self._remember = remember
        self._models: dict[tuple[str, str], _History] = {}
        """By CID and claims; without claims: deaths."""
        self._longest: dict[str, float] = {}
        """Seconds of the longest run that ended well."""
        self._rejected: dict[tuple[str, str], _Rejection] = {}

    def delay(self, model: str, now: float, claims: str = "") -> float:
        """Seconds to wait before an agent for this model is started. Raises `ResourceExhausted` while it is refused."""
        return max(self._delay(key, now) for key in {(model, ""), (model, claims)})

    def _delay(self, key: tuple[str, str], now: float) -> float:
        history = self._models.get(key)
        if history is None:
            return 0.0
        if now < history.refused_until:
            raise ResourceExhausted(
                f"this model failed, crashed or hung {history.failures} times in a row and is refused for now: {history.reason}",
                hint="Another node may be able to run it; check its memory needs.",
                retry_after=history.refused_until - now,
            )
        return max(0.0, history.not_before - now)

    def crashed(self, model: str, reason: str, now: float) -> None:
        self._count((model, ""), reason, now)

    def not_loaded(self, model: str, claims: str, reason: str, now: float) -> None:
        """Its agent lives and says why."""
        self._count((model, claims), reason, now)

    def _count(self, key: tuple[str, str], reason: str, now: float) -> None:
        self._trim(self._models, key)
        history = self._models.setdefault(key, _History())
        history.failures += 1
        history.reason = reason
        pause = self._settings.backoff_first * 2 ** min(history.failures - 1, 30)
        history.not_before = now + min(pause, self._settings.backoff_most)
        if history.failures >= self._settings.max_crashes:
            history.refused_until = now + self._settings.refuse_seconds

    def ran_out(self, model: str, seconds: float, now: float) -> None:
        """A run did not end within its caller's time, nor had it said anything after so many seconds."""
        if seconds >= max(self._settings.hang_seconds, OUT_OF_PROPORTION * self._longest.get(model, 0.0)):
            self.crashed(model, f"no answer after {seconds:.0f} s", now)

    def worked(self, model: str, seconds: float = 0.0) -> None:
        self._models.pop((model, ""), None)
        self._trim(self._longest, model)
        self._longest[model] = max(seconds, self._longest.get(model, 0.0))

    def rejected(self, model: str, claims: str, reason: str, now: float) -> None:
        self._trim(self._rejected, (model, claims))
        self._rejected[model, claims] = _Rejection(now + self._settings.refuse_seconds, reason)

    def accepted(self, model: str, claims: str) -> None:
        """It was loaded."""
        self._rejected.pop((model, claims), None)
        self._models.pop((model, claims), None)

    def check(self, model: str, claims: str, now: float) -> None:
        """Raises `FailedPrecondition` for a while after a rejection: loading it again would end as before."""
        known = self._rejected.get((model, claims))
        if known is not None and now < known.until:
            raise FailedPrecondition(known.reason)

    def forget(self, model: str) -> None:
        self._longest.pop(model, None)
        for key in [k for k in self._models if k[0] == model]:
            del self._models[key]
        for key in [k for k in self._rejected if k[0] == model]:
            del self._rejected[key]

    def refused(self, now: float) -> int:
        """Models that are refused now."""
        refused = {m for (m, _), h in self._models.items() if now < h.refused_until}
        return len(refused | {m for (m, _), r in self._rejected.items() if now < r.until})

    def _trim(self, table: dict[K, V], key: K) -> None:
        if key not in table and len(table) >= self._remember:
            del table[next(iter(table))]

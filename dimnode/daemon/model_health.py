"""How often a model's agents have crashed, and what follows from it. Pure; time is passed in."""

from __future__ import annotations

from dataclasses import dataclass

from dimnode.daemon.settings import AgentSettings
from dimnode.errors import ResourceExhausted


@dataclass(slots=True)
class _History:
    crashes: int = 0
    not_before: float = 0.0
    refused_until: float = 0.0
    reason: str = ""


class ModelHealth:
    """By model CID. After each crash in a row the restart waits twice as long; after ``max_crashes`` the model
    is refused for ``refuse_seconds``, then gets one more try."""

    def __init__(self, settings: AgentSettings, remember: int = 1024) -> None:
        self._settings = settings
        self._remember = remember
        self._models: dict[str, _History] = {}

    def delay(self, model: str, now: float) -> float:
        """Seconds to wait before an agent for this model is started. Raises `ResourceExhausted` while it is refused."""
        history = self._models.get(model)
        if history is None:
            return 0.0
        if now < history.refused_until:
            raise ResourceExhausted(
                f"this model crashed its agent {history.crashes} times in a row and is refused for now: {history.reason}",
                hint="Another node may be able to run it; check its memory needs.",
                retry_after=history.refused_until - now,
            )
        return max(0.0, history.not_before - now)

    def crashed(self, model: str, reason: str, now: float) -> None:
        if model not in self._models and len(self._models) >= self._remember:
            del self._models[next(iter(self._models))]
        history = self._models.setdefault(model, _History())
        history.crashes += 1
        history.reason = reason
        pause = self._settings.backoff_first * 2 ** min(history.crashes - 1, 30)
        history.not_before = now + min(pause, self._settings.backoff_most)
        if history.crashes >= self._settings.max_crashes:
            history.refused_until = now + self._settings.refuse_seconds

    def worked(self, model: str) -> None:
        self._models.pop(model, None)

    def refused(self, now: float) -> int:
        """Models that are refused now."""
        return sum(now < h.refused_until for h in self._models.values())

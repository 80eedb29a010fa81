"""Which of a job's documents are news to somebody who follows it over several orchestrators. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

TERMINAL = frozenset({"completed", "failed", "cancelled", "expired", "deleted"})
_STEPS = {name: n for n, name in enumerate(("queued", "scheduling", "fetching", "running", "aggregating"))}


class Follower:
    """An orchestrator that has not heard the latest yet may show a job as it was; a document never goes back from what
    was shown before: it must not be lower by (epoch, status, time of change). An end is always shown, once."""

    def __init__(self) -> None:
        self._shown: Mapping[str, Any] | None = None
        self.ended = False

    def news(self, document: Mapping[str, Any]) -> bool:
        """Whether to show it; then it counts as shown."""
        if self.ended:
            return False
        self.ended = document.get("status") in TERMINAL
        if not self.ended and self._shown is not None and (document == self._shown or _position(document) < _position(self._shown)):
            return False
        self._shown = document
        return True


def _position(document: Mapping[str, Any]) -> tuple[int, int, float]:
    """A status that this version does not know counts as the last one before the end."""
    return document.get("epoch") or 0, _STEPS.get(document.get("status") or "", len(_STEPS)), document.get("updated") or 0.0

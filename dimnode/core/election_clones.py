"""Signs of another node with my identity: a copied disk (both run), or one that was rolled back (only my past speaks)."""

from __future__ import annotations

from collections.abc import Iterable

from dimnode.core.election_types import ElectionSettings


class Clones:
    """A rolled-back disk forgets its last boot ids, so the first sign means no more than: drop everything and learn anew.
    The past falls silent within seconds; a twin does not. Then the node of the lower boot id ends, and the other stays,
    unless the twin does not heed."""

    def __init__(self, settings: ElectionSettings, boot: str) -> None:
        self._settings = settings
        self._boot = boot
        self._past: frozenset[str] = frozenset()
        self._other = ""
        self._since = 0.0
        self._at: float | None = None
        self._news = False

    def remember(self, boots: Iterable[str]) -> None:
        """Boot ids of this node's earlier lives: late messages of theirs mean nothing."""
        self._past = frozenset(boots)

    def sign(self, boot: str, now: float) -> bool:
        """Something of mine that I did not say. False if it is no sign."""
        if boot == self._boot or boot in self._past:
            return False
        if not self.quarantined(now):
            self._since, self._news = now, True
        self._other, self._at = boot, now
        return True

    def news(self) -> str | None:
        """The other's boot id, once for each quarantine."""
        news, self._news = self._news, False
        return self._other if news else None

    def quarantined(self, now: float) -> bool:
        return self._at is not None and now < self._at + self._settings.quarantine

    def unbearable(self, now: float) -> str | None:
        """The other's boot id when this node has to end."""
        if self._at is None or not self.quarantined(now):
            return None
        patience = self._settings.clone_patience * (1 if self._boot < self._other else 3)
        return self._other if self._at - self._since >= patience else None

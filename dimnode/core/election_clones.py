"""Signs of another node with my identity: a copied disk (both run), or one that was rolled back (only my past speaks)."""

from __future__ import annotations

from collections.abc import Iterable

from dimnode.core.election_types import ElectionSettings


class Clones:
    """A rolled-back disk forgets its last boot ids, so the first sign means no more than: drop everything and learn anew.
    The past falls silent within seconds; a twin does not. Then the newcomer ends; of two newcomers the one of the lower boot
    id first. The other one stays, unless the twin does not heed."""

    def __init__(self, settings: ElectionSettings, boot: str, now: float) -> None:
        self._settings = settings
        self._boot = boot
        self._began = now
        self._past: frozenset[str] = frozenset()
        self._other = ""
        self._since = 0.0
        self._at: float | None = None
        self._news = False

    def begin(self, past: Iterable[str], now: float) -> None:
        """``past``: boot ids of this node's earlier lives."""
        self._past = frozenset(past)
        self._began = now

    def sign(self, boot: str, now: float, *, old: bool = False) -> bool:
        """Something of mine that I did not say; ``old``: perhaps long ago. False if it is no sign. A disk copied while its node
        runs holds that node's boot id among its past ones, so these are excused for as long as messages may be late."""
        late = old or now < self._began + self._settings.late
        if boot == self._boot or (late and boot in self._past):
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
        newcomer = self._since - self._began < self._settings.newcomer
        times = 3 if not newcomer else 1 if self._boot < self._other else 2
        return self._other if self._at - self._since >= times * self._settings.clone_patience else None

"""The addresses at which one client may find an orchestrator: those it was given, for ever, and those that the swarm
told it, for as long as they are in the list. Pure; time is passed in (monotonic seconds)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from dimnode.core.standing import Standing, StandingSettings

_WILDCARDS = frozenset({"", "0.0.0.0", "::"})  # noqa: S104 - compared, not bound


@dataclass(frozen=True, slots=True)
class Told:
    """One orchestrator in an answer to "who are the orchestrators?"."""

    peer: str
    address: str
    """``host:port``; empty while it does not serve yet."""
    local_only: bool = False
    """Its address is loopback: it means something on its own machine only."""


class Routes:
    """``here``: a told loopback address may be used. That is for a client that itself was given one: it is on such a
    machine (and must check who answers there, since another machine's loopback address was told alike). ``far``: other
    told addresses may be used. That is for a client that speaks TLS or was given such an address: nobody's data goes
    unencrypted over a network because of what somebody else announced.
    """

    def __init__(
        self, given: Sequence[str], *, here: bool, far: bool, most_told: int = 16, settings: StandingSettings | None = None
    ) -> None:
        self.given = tuple(dict.fromkeys(given))
        self._here = here
        self._far = far
        self._most = most_told
        self._told: dict[str, str] = {}
        self.standing: Standing[str] = Standing(settings)

    def learn(self, told: Iterable[Told]) -> None:
        """The whole list, as an orchestrator sees it now: who is not in it any more is forgotten."""
        usable = [t for t in told if self._usable(t)][: self._most]
        found = {t.address: t.peer for t in usable if t.address not in self.given}
        for address in self._told.keys() - found.keys():
            self.standing.forget(address)
        self._told = found

    def _usable(self, told: Told) -> bool:
        host = told.address.rpartition(":")[0].strip("[]")
        if host in _WILDCARDS:  # nobody said where its machine is
            return False
        return self._here if told.local_only else self._far

    def peer_of(self, address: str) -> str | None:
        """Who should answer at a told address; None for one that was given."""
        return self._told.get(address)

    def told(self) -> tuple[str, ...]:
        return tuple(self._told)

    def known(self, address: str) -> bool:
        return address in self._told or address in self.given

    def order(self, now: float) -> tuple[str, ...]:
        """Every address once, the best first."""
        return self.standing.order((*self.given, *self._told), now)

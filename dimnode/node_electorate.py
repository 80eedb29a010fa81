"""What `dimnode electorate` shows and does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dimnode.errors import FailedPrecondition, FieldProblem, InvalidArgument
from dimnode.ports import Elector, Registry
from dimnode.swarm.electorate import Electorates
from dimnode.swarm.majority_elector import MajorityElector
from p2p.identity import is_peer_id


class Electorate:
    def __init__(self, lists: Electorates, elector: Elector, registry: Registry, mode: str) -> None:
        self._lists = lists
        self._elector = elector
        self._registry = registry
        self._mode = mode

    def document(self) -> Mapping[str, Any]:
        """``{"mode", "version", "acts", "majority", "quorum", "operator", "operator_here", "voters": [{"peer_id", "name", "state"}]}``;
        ``majority``: how many voters decide; ``quorum``: so many answer this node now, or None if it does not ask them."""
        lists, elector = self._lists, self._elector
        listed = lists.listed
        return {
            "mode": self._mode,
            "version": listed.version if listed else 0,
            "acts": lists.settled,
            "majority": len(listed.voters) // 2 + 1 if listed else 0,
            "quorum": elector.sees_majority() if isinstance(elector, MajorityElector) else None,
            "operator": lists.operator,
            "operator_here": lists.can_sign,
            "voters": [self._voter(p) for p in (listed.voters if listed else ())],
        }

    async def change(self, peer: str, action: str) -> Mapping[str, Any]:
        """``action``: add or remove. Raises as `Electorates.add` and `Electorates.remove` do, and `InvalidArgument`."""
        if self._mode != "majority":
            raise FailedPrecondition("this node does not elect by majority", hint='Start it with election.mode = "majority".')
        peer = self._peer_of(peer)
        match action:
            case "add":
                await self._lists.add(peer)
            case "remove":
                await self._lists.remove(peer)
            case _:
                raise InvalidArgument("action must be add or remove", fields=(FieldProblem("action", "must be add or remove"),))
        return self.document()

    def _peer_of(self, name: str) -> str:
        """A peer id as it is, a name as the registry knows it."""
        if is_peer_id(name):
            return name
        found = self._registry.find(name)
        if len(found) != 1:
            rule = "must be a peer id or the name of one node"
            raise InvalidArgument(f"{name!r} {rule}", fields=(FieldProblem("peer", rule),), hint="`dimnode nodes` lists the nodes.")
        return found[0].heartbeat.peer_id

    def _voter(self, peer: str) -> Mapping[str, Any]:
        found = self._registry.find(peer)
        return {"peer_id": peer, "name": found[0].heartbeat.name if found else "", "state": found[0].state if found else "unknown"}

"""The registry as it goes into snapshots: only what matters changes it, or every snapshot would be another. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from dimnode.domain import codec
from dimnode.domain.node import Heartbeat, Load
from dimnode.ports import NodeView
from dimnode.snapshots.documents import Member
from dimnode.swarm.heartbeats import HeartbeatRefused, SignedHeartbeat, Verify, authentic, read

_RANK = {"alive": 3, "suspect": 2, "dead": 1, "removed": 0}


class Roster:
    """``refresh``: seconds after which a heartbeat is taken anew although it says nothing new but load and number."""

    def __init__(self, refresh: float = 600.0) -> None:
        self._refresh = refresh
        self._members: dict[str, Member] = {}
        self._said: dict[str, bytes] = {}

    def update(self, views: Sequence[NodeView], signed: Mapping[str, SignedHeartbeat], now: float) -> Mapping[str, Member]:
        """``now``: wall clock."""
        members: dict[str, Member] = {}
        for v in views:
            peer = v.heartbeat.peer_id
            heartbeat = signed.get(peer)
            if heartbeat is None or v.state == "removed":
                continue
            said = _lasting(v.heartbeat)
            known = self._members.get(peer)
            same = known is not None and known.state == v.state and self._said[peer] == said
            if known is not None and same and (v.state != "alive" or now < known.since + self._refresh):
                members[peer] = known
            else:
                since = now if v.state == "alive" else v.last_seen
                members[peer] = Member(peer=peer, state=v.state, since=float(since), heartbeat=heartbeat)
            self._said[peer] = said
        self._members = members
        self._said = {peer: said for peer, said in self._said.items() if peer in members}
        return members


def _lasting(heartbeat: Heartbeat) -> bytes:
    return codec.encode(msgspec.structs.replace(heartbeat, seq=0, interval=1.0, load=Load()))


def checked(member: Member, *, swarm: str, protocol: int, verify: Verify) -> NodeView | None:
    """A member as some seat saw it; None if its heartbeat is not its own."""
    try:
        heartbeat = read(member.heartbeat, swarm=swarm, protocol=protocol)
    except HeartbeatRefused:
        return None
    if heartbeat.peer_id != member.peer or not authentic(member.heartbeat, verify):
        return None
    return NodeView(heartbeat, member.state, member.since)


def later(a: NodeView, b: NodeView) -> NodeView:
    """Of two views of one node that of the newer heartbeat; of one heartbeat the more hopeful."""

    def order(v: NodeView) -> tuple[int, int, int, float]:
        return (v.heartbeat.incarnation, v.heartbeat.seq, _RANK[v.state], v.last_seen)

    return max(a, b, key=order)

"""Which nodes hold the copies of a job's record.

Any node computes the same order for a job, so a new owner finds its copies where the former one put them. A node that
holds a copy keeps it for as long as it may; machines come before nodes: two copies on one machine die together.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import NamedTuple

from dimnode.core.rendezvous import rendezvous


class Candidate(NamedTuple):
    peer: str
    host: str | None
    """Where it is reached; None if that is not known: then it counts as a machine of its own."""
    alive: bool
    leaving: bool


def choose(
    job: str,
    replicas: int,
    candidates: Iterable[Candidate],
    me: str,
    own_hosts: Collection[str] = (),
    allowed: Collection[str] = (),
    held_by: Collection[str] = (),
) -> tuple[str, ...]:
    """At most ``replicas`` peers, fewer if there are not so many. ``allowed`` (empty: everybody) is custody: nobody else gets
    a copy. In this order: holders on machines of their own, other holders, others on machines of their own, others;
    within each by rendezvous."""
    fit = {c.peer: c.host for c in candidates if c.alive and not c.leaving and c.peer != me and (not allowed or c.peer in allowed)}
    ranked = rendezvous(job, fit)
    hosts = set(own_hosts)
    chosen: list[str] = []
    for group in ([p for p in ranked if p in held_by], [p for p in ranked if p not in held_by]):
        shared: list[str] = []
        for peer in group:
            host = fit[peer]
            if host in hosts:
                shared.append(peer)
                continue
            if host is not None:
                hosts.add(host)
            chosen.append(peer)
        chosen += shared
    return tuple(chosen[:replicas])

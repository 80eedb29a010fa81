"""What the three planners share: nodes by name, who holds a cabinet, sources."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from patterns.api import Facts, ModelFacts, PatternError, Source
from patterns.forms import CLIENT_DATA


def model_facts(facts: Facts, name: str, field: str) -> ModelFacts:
    model = facts.models.get(name)
    if model is None:
        raise PatternError("NOT_FOUND", f"{field}: there is no model {name!r} in the swarm", "Publish it with `dimnode model add`.")
    return model


def check_names(given: Iterable[str], known: Sequence[str], field: str, what: str) -> None:
    """Raises `PatternError` naming the field if something given is not known."""
    for name in given:
        if name not in known:
            raise PatternError("INVALID_ARGUMENT", f"{field} names {name!r}, which is no {what}", f"It has {', '.join(known) or 'none'}.")


def peers_of(facts: Facts, name: str) -> tuple[str, ...]:
    """Peer ids that a client may mean by a node's name."""
    return tuple(facts.named.get(name, (name,)))


def allowed(facts: Facts, names: Sequence[str] | None) -> tuple[str, ...]:
    """Qualifying nodes among those named, in the order named; all of them, best first, without names."""
    if names is None:
        return facts.nodes
    fit = set(facts.nodes)
    return tuple(dict.fromkeys(p for name in names for p in peers_of(facts, name) if p in fit))


def require_nodes(nodes: Sequence[str], names: Sequence[str] | None) -> None:
    if not nodes:
        who = "no node" if names is None else f"none of the nodes {', '.join(names)}"
        raise PatternError("UNAVAILABLE", f"{who} can run this now", "`dimnode nodes` lists what each node can do.")


def holders(facts: Facts, cabinet: str, field: str) -> dict[str, int]:
    """Peer id -> rows of a cabinet. Raises `PatternError` if nobody has it."""
    found = dict(facts.cabinet_rows.get(cabinet, {}))
    if not found:
        raise PatternError(
            "NOT_FOUND", f"{field}: no node has a cabinet {cabinet!r}", "Register it on its node with `dimnode cabinet add`."
        )
    return found


def one_holder(facts: Facts, cabinet: str, names: Sequence[str] | None, field: str) -> str:
    """The node whose cabinet a single task or one set of comparable tasks reads. Cabinets of one name on
    two nodes are two data sets, so there is exactly one, however many could be asked."""
    rows = holders(facts, cabinet, field)
    nodes = [p for p in allowed(facts, names) if p in rows]
    if not nodes and names is not None and not any(p in rows for n in names for p in peers_of(facts, n)):
        raise PatternError("NOT_FOUND", f"{field}: node {', '.join(names)} has no cabinet {cabinet!r}")
    require_nodes(nodes, names)
    return max(nodes, key=lambda p: (rows[p] > 0, -nodes.index(p)))


def client_source(facts: Facts, field: str, rows: tuple[int, int] | None = None) -> Source:
    """Raises `PatternError` if it is known that there is no client data."""
    if facts.client_inputs is not None and not facts.client_inputs:
        raise PatternError("INVALID_ARGUMENT", f"{field} is {CLIENT_DATA}, and the job has none", "Give client_data, or --data.")
    return Source(kind="client", rows=rows)


def data_sources(facts: Facts, cabinet: str, needs_client: bool = False) -> tuple[Source, ...]:
    """A cabinet, with whatever else the client gave (first weights, parameters); what the client says
    explicitly counts more than a column of that name."""
    given = bool(facts.client_inputs) if facts.client_inputs is not None else (needs_client or facts.client_rows is not None)
    read = Source(kind="cabinet", ref=cabinet)
    return (read, Source(kind="client")) if given else (read,)


def rotated(nodes: Sequence[str], start: int) -> tuple[str, ...]:
    """The same nodes, another one first: spreads tasks and leaves every node as a fallback."""
    if not nodes:
        return ()
    k = start % len(nodes)
    return (*nodes[k:], *nodes[:k])

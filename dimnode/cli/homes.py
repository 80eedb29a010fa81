"""Making a node's home."""

from __future__ import annotations

from typing import Any

from dimnode.cli.common import usage
from dimnode.home import Home


def prepare_home(home: Home, *, name: str | None, swarm: str | None, key: bool = True, operator: bool = False) -> dict[str, Any]:
    """Makes what is not there; a home that exists keeps its identity, key and settings. ``key=False`` leaves the swarm to
    the start, which knows whom the node joins. A home that makes its swarm has the operator's key; ``operator`` makes one for
    a swarm that has none. Raises `FailedPrecondition` if the home belongs to another swarm."""
    from dimnode.config import load_config
    from dimnode.config.render import render
    from dimnode.errors import FailedPrecondition
    from dimnode.home import new_key
    from dimnode.invite import DEFAULT_SWARM, found
    from p2p.identity import IdentityError, load_or_create

    given = {key: value for key, value in (("node.name", name), ("swarm.name", swarm)) if value}
    with usage():
        load_config(environ={}, flags=given)
    home.create()
    stored = home.swarm_name()
    if swarm and stored and swarm != stored:
        raise FailedPrecondition(f"this home belongs to swarm {stored!r}", hint="Use another --home for another swarm.")
    try:
        identity = load_or_create(home.identity_path)
    except IdentityError as e:
        raise FailedPrecondition(str(e)) from e
    if not home.config_path.exists():
        home.write(home.config_path, render({k: v for k, v in given.items() if k == "node.name"}), mode=0o600)
    known = home.swarm_key()
    if key and (known is None or stored is None):
        if known is None:
            found(home)
        home.set_swarm(stored or swarm or DEFAULT_SWARM, known or new_key())
    if operator:
        if home.operator() is not None and not home.operator_key_path.exists():
            raise FailedPrecondition("this swarm has an operator, whose key is in another home", hint="Change the electorate there.")
        found(home)
    return {"home": str(home.path), "peer_id": identity.peer_id, "swarm": home.swarm_name(), "config": str(home.config_path)}

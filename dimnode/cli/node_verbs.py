"""Verbs about nodes: init, start, invite, status, nodes, stats."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from dimnode.cli import tables
from dimnode.cli.common import Context, usage, verb
from dimnode.home import Home


@click.command()
@click.option("--name", help="How people call this node.")
@click.option("--swarm", help="Name of the swarm that this home starts.")
@verb()
def init(context: Context, name: str | None, swarm: str | None) -> None:
    """Make a home: identity, swarm key, settings. `start` does it too if there is none."""
    document = prepare_home(context.home, name=name, swarm=swarm)
    context.emit(document, lambda d: f"{d['home']}: node {d['peer_id']} in swarm {d['swarm']}")


def prepare_home(home: Home, *, name: str | None, swarm: str | None, key: bool = True) -> dict[str, Any]:
    """Makes what is not there; a home that exists keeps its identity, key and settings. ``key=False`` leaves the swarm to
    the start, which knows whom the node joins. Raises `FailedPrecondition` if the home belongs to another swarm."""
    from dimnode.config import load_config
    from dimnode.config.render import render
    from dimnode.errors import FailedPrecondition
    from dimnode.home import new_key
    from dimnode.invite import DEFAULT_SWARM
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
        home.set_swarm(stored or swarm or DEFAULT_SWARM, known or new_key())
    return {"home": str(home.path), "peer_id": identity.peer_id, "swarm": home.swarm_name(), "config": str(home.config_path)}


@click.command()
@click.option("--config", "config_file", metavar="FILE", help="Settings. Default: bootstrap.toml in the home.")
@click.option("--join", multiple=True, metavar="ADDR_OR_INVITE", help="A member of the swarm; may be repeated.")
@click.option("--name", help="How people call this node.")
@click.option("--set", "sets", multiple=True, metavar="SECTION.KEY=VALUE", help="Any setting; may be repeated.")
@click.option("--profile", help="Named set of defaults: dev or prod.")
@verb()
def start(
    context: Context, config_file: str | None, join: tuple[str, ...], name: str | None, sets: tuple[str, ...], profile: str | None
) -> None:
    """Run a node in the foreground; prints one line when it is ready."""
    from dimnode.cli.start import run_node
    from dimnode.config import load_config

    file = Path(config_file) if config_file else context.home.config_path if context.home.config_path.exists() else None
    with usage():
        config = load_config(file=file, sets=sets, flags={"node.name": name} if name else {}, profile=profile)
    run_node(config, context.home, join, as_json=context.json)


@click.command()
@verb()
def invite(context: Context) -> None:
    """One string that lets another node join: `dimnode start --join INVITE`. It contains the swarm key."""
    context.emit({"invite": context.node().invite()}, lambda d: d["invite"])


@click.command()
@verb()
def status(context: Context) -> None:
    """This node, its role, and who orchestrates."""
    context.emit(context.node().status(), tables.status)


@click.command()
@verb(orchestrator=True)
def nodes(context: Context) -> None:
    """The nodes of the swarm."""
    found = context.orchestrators().nodes() if context.orchestrator else context.node().nodes()
    context.emit(found, tables.nodes)


@click.command()
@click.argument("node", default="")
@verb()
def stats(context: Context, node: str) -> None:
    """Queue, agents, cache, resources and counters of this node, or of NODE."""
    context.emit(context.node().stats(node), tables.tree)

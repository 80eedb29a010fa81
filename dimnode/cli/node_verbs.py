"""Verbs about nodes: init, start, invite, status, nodes, stats."""

from __future__ import annotations

from pathlib import Path

import click

from dimnode.cli import tables
from dimnode.cli.common import Context, usage, verb
from dimnode.cli.homes import prepare_home


@click.command()
@click.option("--name", help="How people call this node.")
@click.option("--swarm", help="Name of the swarm that this home starts.")
@click.option("--operator", is_flag=True, help="Make the operator's key here, for a swarm that was made without one.")
@verb()
def init(context: Context, name: str | None, swarm: str | None, operator: bool) -> None:
    """Make a home: identity, swarm key, settings. `start` does it too if there is none."""
    document = prepare_home(context.home, name=name, swarm=swarm, operator=operator)
    context.emit(document, lambda d: f"{d['home']}: node {d['peer_id']} in swarm {d['swarm']}")


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

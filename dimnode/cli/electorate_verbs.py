"""Verbs about the electorate: who votes in elections by majority."""

from __future__ import annotations

from typing import Any

import click

from dimnode.cli.common import FAILED, Context, verb


@click.group()
def electorate() -> None:
    """Who votes when orchestrators are elected by majority."""


@electorate.command("list")
@verb()
def electorate_list(context: Context) -> None:
    """The voters, as this node knows them."""
    context.emit(context.node().electorate(), _show)


@electorate.command("add")
@click.argument("peer")
@verb(missing=FAILED)
def electorate_add(context: Context, peer: str) -> None:
    """Make PEER (peer id or name) a voter. It has to run; the operator's key has to be in this home."""
    context.emit(context.node().change_electorate(peer, "add"), _show)


@electorate.command("remove")
@click.argument("peer")
@verb(missing=FAILED)
def electorate_remove(context: Context, peer: str) -> None:
    """PEER is a voter no more. The operator's key has to be in this home."""
    context.emit(context.node().change_electorate(peer, "remove"), _show)


def _show(document: dict[str, Any]) -> str:
    if not document["version"]:
        return "no electorate is known here"
    voters = document["voters"]
    acts = "" if document["acts"] else ", not yet known to act"
    lines = [f"version {int(document['version'])}{acts}: {int(document['majority'])} of {len(voters)} voters decide"]
    lines += [f"{v['peer_id']}  {v['name'] or '-'}  {v['state']}" for v in voters]
    if document["quorum"] is False:
        lines.append("fewer than that answer this node now")
    if len(voters) == 2:
        lines.append("an electorate of two stops when either of them does: add a third")
    return "\n".join(lines)

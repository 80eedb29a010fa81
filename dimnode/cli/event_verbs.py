"""The verb `events`: what the swarm publishes for listeners."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import click

from dimnode.cli import tables
from dimnode.cli.common import Context, verb


@click.command()
@click.option("--jobs", is_flag=True, help="Of jobs only.")
@click.option("--nodes", is_flag=True, help="Of nodes only.")
@click.option("--follow", is_flag=True, help="Go on with those that come, until interrupted; --json: one document a line.")
@verb()
def events(context: Context, jobs: bool, nodes: bool, follow: bool) -> None:
    """Job and node events as this node heard them; with --follow as they come. They are hints: some may be missing."""
    kinds = [kind for kind, wanted in (("jobs", jobs), ("nodes", nodes)) if wanted]
    found = context.node().events(kinds, follow=follow)
    if not follow:
        context.emit(list(found), lambda all_: "\n".join(tables.event(e) for e in all_) or "nothing was heard yet")
        return
    with suppress(KeyboardInterrupt):
        for event in found:
            click.echo(_line(event, context.json))


def _line(event: Mapping[str, Any], as_json: bool) -> str:
    return json.dumps(event, ensure_ascii=False) if as_json else tables.event(event)

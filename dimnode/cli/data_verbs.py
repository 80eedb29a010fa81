"""Verbs about models and data cabinets."""

from __future__ import annotations

import json
from pathlib import Path

import click

from dimnode.cli import tables
from dimnode.cli.clients import publish
from dimnode.cli.common import FAILED, Context, UsageProblem, absolute, verb
from dimnode.errors import InvalidArgument


@click.group()
def model() -> None:
    """Models of the swarm."""


@model.command("add")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--id", "model_id", default="", help="Name of the model. Default: the file's name without its ending.")
@click.option("--licence", "--license", default="", help="Licence of the model, in words.")
@click.option("--batch-axis", type=click.IntRange(0, 0), help="0 if axis 0 is the batch although the model does not say so.")
@verb(orchestrator=True, missing=FAILED)
def model_add(context: Context, file: Path, model_id: str, licence: str, batch_axis: int | None) -> None:
    """Check FILE by running it once, store it, and make it a model of the swarm."""
    name = model_id or file.stem
    if context.orchestrator:
        document = publish(context.orchestrators(), file, id=name, licence=licence, batch_axis=batch_axis)
    else:
        document = context.node().add_model_file(absolute(str(file)), id=name, licence=licence, batch_axis=batch_axis)
    context.emit(document, lambda d: f"{d['id']}  {d['cid']}")


@model.command("list")
@verb(orchestrator=True)
def model_list(context: Context) -> None:
    """Models that some node of the swarm has."""
    context.emit(context.orchestrators().models() if context.orchestrator else context.node().models(), tables.models)


@click.group()
def cabinet() -> None:
    """Data cabinets of this node: data that stays here."""


@cabinet.command("add")
@click.argument("name")
@click.argument("path", type=click.Path(exists=True))
@click.option("--policy", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Who may do what: a JSON file.")
@verb(missing=FAILED)
def cabinet_add(context: Context, name: str, path: str, policy: Path | None) -> None:
    """Register the data at PATH as NAME. Nothing is copied or sent."""
    document = context.node().add_cabinet(name, absolute(path), _policy(policy) if policy else "")
    context.emit(document, lambda d: f"{d['name']}: {d['rows']} rows, {len(d['columns'])} columns ({d['format']})")


@cabinet.command("list")
@verb()
def cabinet_list(context: Context) -> None:
    """The cabinets of this node."""
    context.emit(context.node().cabinets(), tables.cabinets)


def _policy(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8")
        json.loads(text)
    except (OSError, ValueError) as e:
        raise UsageProblem(InvalidArgument(f"the policy file {path.name} is not JSON: {e}")) from e
    return text

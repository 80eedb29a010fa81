"""Verbs about models and data cabinets."""

from __future__ import annotations

import json
from pathlib import Path

import click

from dimnode.cli import tables
from dimnode.cli.clients import publish
from dimnode.cli.common import FAILED, Context, UsageProblem, absolute, verb
from dimnode.cli.model_forms import form_id, read_form
from dimnode.errors import InvalidArgument


@click.group()
def model() -> None:
    """Models of the swarm."""


@model.command("add")
@click.argument("file", type=click.Path(exists=True, path_type=Path))
@click.option("--id", "model_id", default="", help="Name of the model. Default: the form's, else the file's name without its ending.")
@click.option("--licence", "--license", default="", help="Licence of the model, in words.")
@click.option("--batch-axis", type=click.IntRange(0, 0), help="0 if axis 0 is the batch although the model does not say so.")
@click.option(
    "--form", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="What the file does not tell, JSON: docs/models.md."
)
@click.option(
    "--golden", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="An .npz file: inputs as in.NAME, outputs as out.NAME."
)
@click.option("--no-trial", is_flag=True, help="Load it, but do not run it: for models that take very long.")
@click.option("--sign", is_flag=True, help="Sign the manifest with this node's key.")
@verb(orchestrator=True, missing=FAILED)
def model_add(
    context: Context,
    file: Path,
    model_id: str,
    licence: str,
    batch_axis: int | None,
    form: Path | None,
    golden: Path | None,
    no_trial: bool,
    sign: bool,
) -> None:
    """Check FILE (or folder) by running it once, store it, and make it a model of the swarm."""
    text = read_form(form, golden, not no_trial)
    if context.orchestrator and (sign or file.is_dir()):
        raise UsageProblem(InvalidArgument("folders and --sign need a node of one's own: leave --orchestrator out"))
    name = model_id or form_id(text) or file.stem
    if context.orchestrator:
        document = publish(context.orchestrators(), file, id=name, licence=licence, batch_axis=batch_axis, form=text)
    else:
        document = context.node().add_model_file(absolute(str(file)), id=name, licence=licence, batch_axis=batch_axis, form=text, sign=sign)
    context.emit(document, lambda d: f"{d['id']}  {d['cid']}")


@model.command("describe")
@click.argument("name")
@verb()
def model_describe(context: Context, name: str) -> None:
    """The whole manifest of model NAME (an id or a CID)."""
    context.emit(context.node().describe_model(name), tables.manifest)


@model.command("check")
@click.argument("name")
@verb()
def model_check(context: Context, name: str) -> None:
    """Run model NAME once on this node, against its golden pair if it has one."""
    context.emit(context.node().check_model(name), tables.model_check)


@model.command("remove")
@click.argument("name")
@verb()
def model_remove(context: Context, name: str) -> None:
    """Let this node keep and offer model NAME (an id or a CID) no longer."""
    context.emit(context.node().remove_model(name), lambda d: "\n".join(f"removed {m['id']}  {m['cid']}" for m in d["removed"]))


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

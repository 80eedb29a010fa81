"""Verbs about jobs: submit, jobs, watch, result, cancel, describe, verify."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dimnode.cli import files, tables
from dimnode.cli.common import FAILED, Context, note, usage, verb
from dimnode.cli.texts import Texts

if TYPE_CHECKING:
    from dimnode.client import Client

JSON_FILE = click.Path(dir_okay=False, allow_dash=True)
GOOD = "completed"
RESULT_WITHIN = 30.0
"""Seconds from a job's end to its result, wherever it is asked for."""


@click.command()
@click.argument("spec", type=JSON_FILE)
@click.option("--data", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Inputs: .npz, or .json of named tensors.")
@click.option("--wait", is_flag=True, help="Follow the job (on stderr) and print its result.")
@click.option("--dry-run", is_flag=True, help="Explain where it would run; nothing is accepted.")
@verb(orchestrator=True, missing=FAILED)
def submit(context: Context, spec: str, data: Path | None, wait: bool, dry_run: bool) -> None:
    """Submit the job form in SPEC (a JSON file, or - for stdin)."""
    with usage():
        form = files.read_form(spec, data)
    client = context.orchestrators()
    if dry_run:
        context.emit(client.dry_run(form), tables.tree)
        return
    accepted = client.submit(form)
    if not wait:
        context.emit(accepted, lambda d: d["job_id"])
        return
    note(f"{accepted['job_id']} accepted")
    job = _follow(client, accepted["job_id"])
    _finish(context, client, job)


def _follow(client: Client, job_id: str) -> dict[str, Any]:
    """Progress, and text as it is written, on stderr; the last document."""
    job: dict[str, Any] = {"job_id": job_id, "status": "unknown"}
    texts = Texts()
    for event in client.follow(job_id):
        if "partial" in event:
            texts.show(event["partial"])
        else:
            job = event
            texts.end()
            note(tables.progress(job))
    return job


def _finish(context: Context, client: Client, job: dict[str, Any]) -> None:
    """Print the result of a job that ended; exit 1 unless it completed."""
    if job["status"] == GOOD:
        # Another orchestrator than the one that was watched may have to hear of the end first.
        result = client.wait(job["job_id"], RESULT_WITHIN, fetch=False)
        context.emit(files.with_tensors(result), tables.result)
        return
    context.emit(job, tables.job)
    sys.exit(FAILED)


@click.command()
@click.option("--active", is_flag=True, help="Unfinished ones only.")
@click.option("--limit", type=click.IntRange(1, 100_000), default=1000, show_default=True)
@verb(orchestrator=True)
def jobs(context: Context, active: bool, limit: int) -> None:
    """Jobs, newest first."""
    keys = ("job_id", "pattern", "status", "owner", "submitted", "updated")
    found = context.orchestrators().list(active=active, limit=limit)
    context.emit([{k: j.get(k) for k in keys} for j in found], tables.jobs)


@click.command()
@click.argument("job")
@verb(orchestrator=True)
def watch(context: Context, job: str) -> None:
    """Follow a job until it ends: progress, and text as it is written, on stderr, the job as it ended on stdout."""
    ended = _follow(context.orchestrators(), job)
    context.emit(ended, tables.job)
    sys.exit(0 if ended["status"] == GOOD else FAILED)


@click.command()
@click.argument("job")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="Write the tensors to FILE: .npz or .json.")
@verb(orchestrator=True)
def result(context: Context, job: str, out: Path | None) -> None:
    """The result of a completed job."""
    with usage():
        files.check_out(out)
    client = context.orchestrators()
    document = client.result(job, fetch=out is not None)
    if out is None:
        context.emit(files.with_tensors(document), tables.result)
        return
    written = files.write_outputs(document, out)
    rest = {
        **files.with_tensors(document),
        "outputs": {name: {"dtype": a.dtype.name, "shape": list(a.shape)} for name, a in written.items()},
    }
    context.emit({**rest, "file": str(out)}, lambda d: f"{d['file']}: {', '.join(written) or 'no outputs'}")


@click.command()
@click.argument("job")
@verb(orchestrator=True)
def cancel(context: Context, job: str) -> None:
    """Cancel a job."""
    document = context.orchestrators().cancel(job)
    context.emit(document, lambda d: f"{d['job_id']} {d['status']}")


@click.command()
@click.argument("job")
@verb(orchestrator=True)
def describe(context: Context, job: str) -> None:
    """All there is to know of a job: its states and their times, tasks, attempts, errors."""
    context.emit(context.orchestrators().get(job), tables.job)


@click.command()
@click.argument("result_or_job")
@verb(orchestrator=True)
def verify(context: Context, result_or_job: str) -> None:
    """Check every receipt of a result (a JSON file) or a job, with nothing but the signers' public keys."""
    from dimnode.cli.receipts import check_receipts

    with usage():
        document = (
            files.read_json(result_or_job) if Path(result_or_job).is_file() else context.orchestrators().result(result_or_job, fetch=False)
        )
    report = check_receipts(document)
    context.emit(report, tables.receipts)
    sys.exit(0 if report["ok"] else FAILED)

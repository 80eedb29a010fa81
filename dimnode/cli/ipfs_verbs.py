"""Verbs about the node's content store: ipfs add, get, pin, unpin, pins, gc, export, import, stat, resolve."""

from __future__ import annotations

from pathlib import Path

import click

from dimnode.cli import tables
from dimnode.cli.common import FAILED, Context, absolute, verb

FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.group()
def ipfs() -> None:
    """Content of this node: files and blocks by CID, the CIDs being those of Kubo."""


@ipfs.command()
@click.argument("file", type=FILE)
@click.option("--pin/--no-pin", default=True, help="Keep it. Without a pin it may go when space is needed.")
@click.option("--reason", default="", help="Why it is pinned, in words.")
@verb(missing=FAILED)
def add(context: Context, file: Path, pin: bool, reason: str) -> None:
    """Store FILE as `ipfs add --cid-version=1 --raw-leaves` does, and print its CID."""
    context.emit(context.node().add_content(absolute(str(file)), pin=pin, reason=reason), lambda d: d["cid"])


@ipfs.command()
@click.argument("cid")
@click.option("--out", metavar="FILE", help="Where to; default: a file named like the CID, here.")
@verb(missing=FAILED)
def get(context: Context, cid: str, out: str | None) -> None:
    """Write the file CID, fetched from other nodes if it is not here; of DAG-CBOR (a job's form, result, receipt) its DAG-JSON."""
    document = {**context.node().get_content(cid, absolute(out or cid)), "file": out or cid}
    context.emit(document, lambda d: f"{d['file']}: {d['size']} bytes")


@ipfs.command()
@click.argument("cid")
@click.option("--direct", is_flag=True, help="Only the root block, not what it links to.")
@click.option("--reason", default="", help="Why, in words.")
@verb(missing=FAILED)
def pin(context: Context, cid: str, direct: bool, reason: str) -> None:
    """Keep CID, fetched from other nodes if it is not here."""
    context.emit(context.node().pin_content(cid, direct=direct, reason=reason), lambda d: f"{d['cid']}  {d['kind']}")


@ipfs.command()
@click.argument("cid")
@verb(missing=FAILED)
def unpin(context: Context, cid: str) -> None:
    """Do not keep CID for this pin any longer. What a job or a model needs stays in any case."""
    context.emit(context.node().unpin_content(cid), lambda d: f"{d['cid']}  was pinned: {d['reason']}")


@ipfs.command()
@verb()
def pins(context: Context) -> None:
    """What is pinned, and why."""
    context.emit(context.node().pins()["pins"], tables.pins)


@ipfs.command()
@verb()
def gc(context: Context) -> None:
    """Remove all blocks that no pin, job or model needs and that are older than ipfs.grace."""
    context.emit(
        context.node().collect_garbage(),
        lambda d: f"removed {d['blocks']} blocks, {d['bytes']} bytes; {d['needed']} are needed, {d['recent']} are recent",
    )


@ipfs.command("export")
@click.argument("cids", nargs=-1, required=True, metavar="CID...")
@click.option("--out", required=True, metavar="FILE.car", help="The archive to write.")
@verb(missing=FAILED)
def export(context: Context, cids: tuple[str, ...], out: str) -> None:
    """Write a CAR archive (version 1) of everything below the CIDs."""
    document = {**context.node().export_archive(cids, absolute(out)), "file": out}
    context.emit(document, lambda d: f"{d['file']}: {d['size']} bytes")


@ipfs.command("import")
@click.argument("file", type=FILE)
@click.option("--pin/--no-pin", default=True, help="Keep the archive's roots.")
@click.option("--reason", default="", help="Why they are pinned, in words.")
@verb(missing=FAILED)
def import_(context: Context, file: Path, pin: bool, reason: str) -> None:
    """Take in a CAR archive; every block is checked."""
    document = context.node().import_archive(absolute(str(file)), pin=pin, reason=reason)
    context.emit(document, lambda d: "\n".join([*d["roots"], f"{d['blocks']} blocks, {d['bytes']} bytes"]))


@ipfs.command()
@verb()
def stat(context: Context) -> None:
    """Size, bound, pins and traffic of the store."""
    context.emit(context.node().store_statistics(), tables.tree)


@ipfs.command()
@click.argument("path", metavar="registry|jobs|jobs/ID")
@click.option("--after", default="", metavar="ID", help="Of jobs: only those with ids above this one.")
@click.option("--limit", default=1000, type=click.IntRange(1, 10_000), help="Jobs at the most.")
@verb()
def resolve(context: Context, path: str, after: str, limit: int) -> None:
    """The swarm's state as the seats have published it under their IPNS names, merged."""
    context.emit(context.node().resolve(path, after=after, limit=limit), tables.resolved)

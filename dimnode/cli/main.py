"""The command line: argv to calls. Every verb lives in a module of its kind; heavy imports wait inside them."""

from __future__ import annotations

import click

from dimnode import __version__
from dimnode.cli import data_verbs, electorate_verbs, event_verbs, ipfs_verbs, job_verbs, node_verbs
from dimnode.cli.demo_verb import demo
from dimnode.cli.doctor import doctor


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="dimnode")
def cli() -> None:
    """DIM, the Decentralized Inference Machine: AI jobs across machines that belong to different people."""


for command in (
    node_verbs.init,
    node_verbs.start,
    node_verbs.invite,
    node_verbs.status,
    node_verbs.nodes,
    node_verbs.stats,
    event_verbs.events,
    electorate_verbs.electorate,
    data_verbs.model,
    data_verbs.cabinet,
    ipfs_verbs.ipfs,
    job_verbs.submit,
    job_verbs.jobs,
    job_verbs.watch,
    job_verbs.result,
    job_verbs.cancel,
    job_verbs.describe,
    job_verbs.verify,
    doctor,
    demo,
):
    cli.add_command(command)


def main() -> None:
    cli(prog_name="dimnode")

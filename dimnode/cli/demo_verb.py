"""``dimnode demo``."""

from __future__ import annotations

import sys
from pathlib import Path

import click


@click.command()
@click.option(
    "--dir", "folder", type=click.Path(file_okay=False, path_type=Path), help="Where the nodes' homes go. Default: a temporary folder."
)
@click.option("--keep", is_flag=True, help="Leave the nodes running until Ctrl-C, to explore.")
@click.option("--json", "as_json", is_flag=True, help="Print the results as one JSON document.")
def demo(folder: Path | None, keep: bool, as_json: bool) -> None:
    """A swarm of three on this machine: all three patterns on real models and data, checked against direct runs."""
    from dimnode.demo.driver import run_demo

    sys.exit(run_demo(folder, keep=keep, as_json=as_json))

"""Running a node in the foreground: logs, the ready line, exit."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from dimnode.cli.common import usage
from dimnode.cli.homes import prepare_home

if TYPE_CHECKING:
    from dimnode.config import Config
    from dimnode.home import Home


def run_node(config: Config, home: Home, join: Sequence[str], *, as_json: bool) -> None:
    """Returns when the node stopped cleanly. Raises `DimError` for what cannot be started."""
    from dimnode.config import require_served
    from dimnode.invite import check_join

    require_served(config)
    set_up_logging(config.logging.level, config.logging.format)
    with usage():
        check_join(join)
    prepare_home(home, name=None, swarm=None, key=False)
    import trio

    from dimnode import node

    def announce(line: str) -> None:
        home.mark_started()
        click.echo(json.dumps({"ready": line}) if as_json else line)
        sys.stdout.flush()

    trio.run(_run, node.run, config, home, tuple(join), announce)


async def _run(run: object, config: Config, home: Home, join: Sequence[str], announce: object) -> None:
    """A nursery wraps errors in groups; a single `DimError` is for people and comes out bare."""
    from dimnode.errors import DimError

    try:
        await run(config, home, join=join, announce=announce)  # type: ignore[operator]
    except BaseExceptionGroup as group:
        leaf: BaseException = group
        while isinstance(leaf, BaseExceptionGroup) and len(leaf.exceptions) == 1:
            leaf = leaf.exceptions[0]
        if isinstance(leaf, DimError):
            raise leaf from None
        raise


def set_up_logging(level: str, form: str) -> None:
    """structlog and the standard library to stderr, one line an event."""
    import structlog

    number = logging.getLevelNamesMapping()[level.upper()]
    as_console = form == "console" or (form == "auto" and sys.stderr.isatty())
    renderer = structlog.dev.ConsoleRenderer() if as_console else structlog.processors.JSONRenderer()
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    structlog.configure(
        processors=[*shared, structlog.processors.format_exc_info, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(structlog.stdlib.ProcessorFormatter(foreign_pre_chain=shared, processor=renderer))
    # Libraries log what they survived; only their warnings concern an operator.
    logging.basicConfig(handlers=[handler], level=max(number, logging.WARNING), force=True)

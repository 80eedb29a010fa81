"""Running a node in the foreground: logs, the ready line, exit."""

from __future__ import annotations

import gc
import json
import logging
import sys
from collections.abc import Callable, Sequence
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

    def announce(line: str) -> None:
        home.mark_started()
        click.echo(json.dumps({"ready": line}) if as_json else line)
        sys.stdout.flush()

    tune()
    trio.run(_run, config, home, tuple(join), announce)


def tune() -> None:
    """The interpreter, for a process that keeps tens of thousands of records in memory and writes to the disk in threads.

    Python looks through all long-lived objects whenever they grew by a quarter, and through the young ones after 700
    allocations, of which a job makes hundreds: less often is enough. And a thread that comes back from SQLite, which it
    does at every statement, waits for up to the switch interval until a busy event loop lets it go on: 5 ms by default.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)
    sys.setswitchinterval(0.001)


async def _run(config: Config, home: Home, join: Sequence[str], announce: Callable[[str], None]) -> None:
    """A nursery wraps errors in groups; one error comes out bare."""
    from dimnode import node
    from p2p.groups import collapse

    with collapse():
        await node.run(config, home, join=join, announce=announce)


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

"""What every verb shares: ``--home``, ``--json``, ``--orchestrator``, output, and exit codes.

Exit 0: done. 1: the thing failed. 2: wrong usage. 3: no such node, job or orchestrator can be reached.
Data goes to stdout, everything else to stderr.
"""

from __future__ import annotations

import functools
import json
import os
import sys
from collections.abc import Callable, Generator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import click

from dimnode.cli.clients import node_client, orchestrator_client
from dimnode.errors import Code, DimError, InvalidArgument
from dimnode.home import Home, home_path

if TYPE_CHECKING:
    from dimnode.client import Client
    from dimnode.rpc.clients import NodeClient

F = TypeVar("F", bound=Callable[..., Any])
FAILED, USAGE, UNREACHABLE = 1, 2, 3
_UNREACHABLE_CODES = (Code.UNAVAILABLE, Code.NOT_FOUND)


class UsageProblem(Exception):
    """Wrong usage found by us rather than by click."""

    def __init__(self, error: DimError) -> None:
        super().__init__(error.message)
        self.error = error


@dataclass(frozen=True, slots=True)
class Context:
    """One call of one verb."""

    home: Home
    json: bool
    orchestrator: tuple[str, ...] = ()
    """Addresses of orchestrators to ask instead of this home's node."""
    closing: ExitStack = field(default_factory=ExitStack)

    def node(self) -> NodeClient:
        """This home's node, for as long as the verb runs. Raises `Unavailable` if it does not run."""
        client = node_client(self.home.control().node)
        self.closing.callback(client.close)
        return client

    def orchestrators(self) -> Client:
        """The orchestrator API: of ``--orchestrator``, else whichever this home's node reaches; for as long as the verb runs."""
        client = orchestrator_client(self.orchestrator or (self.home.control().orchestrator,))
        self.closing.callback(client.close)
        return client

    def emit(self, document: Any, show: Callable[[Any], Any]) -> None:
        """The document as JSON, or what ``show`` makes of it for people: text or something rich prints."""
        if self.json:
            click.echo(json.dumps(document, ensure_ascii=False, default=plain))
            return
        shown = show(document)
        if isinstance(shown, str):
            click.echo(shown)
        else:
            from dimnode.cli.tables import console

            console().print(shown)


def plain(value: Any) -> Any:
    """JSON for what results hold: tensors in their outside form, bytes in hexadecimal."""
    from dimnode.domain.tensors import TensorValue, to_json

    if isinstance(value, TensorValue):
        return to_json(value)
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, Mapping):
        return dict(value)  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} has no JSON form")


def note(text: str) -> None:
    """Progress and remarks: stderr."""
    click.echo(text, err=True)


@contextmanager
def usage() -> Generator[None, None, None]:
    """Bad arguments found inside are wrong usage (exit 2), not a failure."""
    try:
        yield
    except InvalidArgument as e:
        raise UsageProblem(e) from e


def verb(*, orchestrator: bool = False, missing: int = UNREACHABLE) -> Callable[[F], F]:
    """Gives a command its shared options, a `Context` as first argument, and exit codes.

    ``missing``: the exit code of `NotFound`; a verb that names no node or job fails (1) instead.
    """

    def wrap(function: F) -> F:
        @functools.wraps(function)
        def call(*args: Any, home: str | None, as_json: bool, orchestrator_address: tuple[str, ...] = (), **kwargs: Any) -> None:
            try:
                context = Context(Home(home_path(home, os.environ)), as_json, _addresses(orchestrator_address))
                with context.closing:
                    function(context, *args, **kwargs)
            except UsageProblem as e:
                _refuse(e.error, USAGE, as_json)
            except DimError as e:
                _refuse(e, missing if e.code is Code.NOT_FOUND else UNREACHABLE if e.code in _UNREACHABLE_CODES else FAILED, as_json)
            except BrokenPipeError:
                sys.stderr.close()
                sys.exit(FAILED)

        out: Any = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")(call)
        out = click.option("--home", metavar="DIR", help="The node's home. Default: $DIM_HOME, else the user's data folder.")(out)
        if orchestrator:
            out = click.option(
                "--orchestrator",
                "orchestrator_address",
                metavar="HOST:PORT[,...]",
                multiple=True,
                help="Ask these orchestrators, without a node of one's own; may be repeated.",
            )(out)
        return out

    return wrap


def _addresses(given: tuple[str, ...]) -> tuple[str, ...]:
    """``--orchestrator``, repeated or with commas."""
    found = tuple(part.strip() for text in given for part in text.split(","))
    for address in found:
        if not address.startswith("unix:") and not address.rpartition(":")[2].isdecimal():
            raise UsageProblem(InvalidArgument(f"--orchestrator {address!r} is not HOST:PORT"))
    return found


def _refuse(error: DimError, exit_code: int, as_json: bool) -> NoReturn:
    note(f"Error: {error.message}")
    if error.hint:
        note(error.hint)
    if as_json:
        document: dict[str, Any] = {"code": str(error.code), "message": error.message, "hint": error.hint}
        if error.fields:
            document["fields"] = [{"field": f.field, "rule": f.rule} for f in error.fields]
        click.echo(json.dumps({"error": document}, ensure_ascii=False))
    sys.exit(exit_code)


def absolute(path: str) -> str:
    return str(Path(path).expanduser().resolve())

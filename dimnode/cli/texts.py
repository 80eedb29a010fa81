"""Text of language models on the terminal, as it comes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click


class Texts:
    """Pieces of several texts come one after the other: each that is begun, gone on with, or begun anew says whose it is."""

    def __init__(self) -> None:
        self._last: tuple[str, int, int] | None = None
        self._open = False
        """The line on the terminal has an end to come."""

    def show(self, piece: Mapping[str, Any]) -> None:
        which = (piece["task"], piece["attempt"], piece["row"])
        if which != self._last:
            self.end()
            again = self._last is not None and self._last[0] == which[0] and self._last[1] < which[1]
            click.echo(f"[{_plain(which[0])}, text {which[2] + 1}" + (f", begun anew: attempt {which[1]}]" if again else "]"), err=True)
            self._last = which
        text = _plain(piece["text"])
        click.echo(text, err=True, nl=False)
        self._open = not text.endswith("\n")

    def end(self) -> None:
        """Whatever is shown next begins a line."""
        if self._open:
            click.echo("", err=True)
            self._open = False


def _plain(text: str) -> str:
    """Without what terminals obey: a model's text is a stranger's."""
    return "".join(c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in text)

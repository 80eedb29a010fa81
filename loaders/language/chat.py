"""Chat templates: Jinja that a model's file brings, rendered in Jinja's sandbox, with bounds of its own.

The sandbox keeps a template from everything but its own values. What it could still do is use up time and memory: what it writes
is bounded here, powers and large repetitions are refused, and the rest is ended by the agent's deadline and memory limit.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from loaders.api import InputRejected
from loaders.language.parts import refuse

MAX_CHARACTERS = 1 << 20
"""Of a rendered chat."""
MAX_REPEATED = 1 << 16
"""Of one repetition (``"-" * 80``)."""
_ERRORS = (TemplateError, TypeError, ValueError, KeyError, IndexError, AttributeError, ZeroDivisionError, OverflowError, RecursionError)


class _Refused(Exception):
    """By the template itself (``raise_exception``), or by the bounds."""


class _Environment(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset(("*", "**", "%"))

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "**":
            raise _Refused("powers are not allowed in it")
        sized = [x for x in (left, right) if isinstance(x, str | list | tuple)]
        numbers = [x for x in (left, right) if isinstance(x, int)]
        if operator == "%" and isinstance(left, str):
            raise _Refused("formatting by % is not allowed in it")
        if operator == "*" and sized and numbers and len(sized[0]) * numbers[0] > MAX_REPEATED:
            raise _Refused("it repeats something too often")
        return super().call_binop(context, operator, left, right)


class Chat:
    """Raises `ModelRejected` for a template that is broken, or cannot write down a plain question."""

    def __init__(self, template: str, special: Mapping[str, str]) -> None:
        environment = _Environment(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _raise  # pyright: ignore[reportArgumentType]
        self._special = dict(special)
        try:
            self._template = environment.from_string(template)
            self._render("Hello")
        except _Refused as e:
            raise refuse(f"its chat template failed: {e}") from e
        except _ERRORS as e:
            raise refuse(f"its chat template failed ({type(e).__name__})") from e

    def write(self, prompt: str) -> str:
        """One question, up to where the answer begins. Raises `InputRejected`."""
        try:
            return self._render(prompt)
        except _Refused as e:
            raise InputRejected(f"the model's chat template refused the prompt: {e}") from e
        except _ERRORS as e:
            raise InputRejected(f"the model's chat template failed on the prompt ({type(e).__name__})") from e

    def _render(self, prompt: str) -> str:
        pieces: list[str] = []
        left = MAX_CHARACTERS
        messages = [{"role": "user", "content": prompt}]
        for piece in self._template.generate(messages=messages, add_generation_prompt=True, **self._special):
            left -= len(piece)
            if left < 0:
                raise _Refused("it writes too much")
            pieces.append(piece)
        return "".join(pieces)


def _to_json(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _raise(message: Any) -> None:
    raise _Refused(str(message)[:200])

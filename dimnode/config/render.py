"""The documented example, ``bootstrap.toml``, from the settings themselves."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dimnode.config.load import Config
from dimnode.config.profiles import PROFILES
from dimnode.config.values import Section

WIDTH = 110
HEAD = """\
DIM: every setting with its default.

A node reads bootstrap.toml in its home, or the file given by --config. Each setting can also be given by
the environment as DIM_SECTION__KEY and to start as --set section.key=value (a TOML value; what does not
parse is a string). A flag wins over the environment, the environment over the file, the file over the
default. Times are seconds, sizes are bytes; an empty string or list means "not set".

A port of 0 means any free port. A default port that is taken falls back to a free one with a warning; a
port that is set here, in the environment or by a flag and is taken is an error.

Settings marked "planned" are read and checked by this version and belong to parts that it does not serve.
"""


def render(values: Mapping[str, Any] | None = None) -> str:
    """The example file. With ``values`` (by ``section.key``) a file for a home: these are set and
    everything else is commented out, so that it stays a default."""
    out = [_comment(HEAD), *_profiles()]
    for name, info in Config.model_fields.items():
        kind = info.annotation
        assert isinstance(kind, type)
        assert issubclass(kind, Section)
        out += ["", _comment(kind.__doc__ or ""), f"[{name}]"]
        for key, field in kind.model_fields.items():
            out.append(_comment(field.description or ""))
            line = f"{key} = {toml_value(field.default)}"
            if values is None:
                out.append(line)
            elif f"{name}.{key}" in values:
                out.append(f"{key} = {toml_value(values[f'{name}.{key}'])}")
            else:
                out.append(f"#{line}")
    return "\n".join(out) + "\n"


def example_path() -> Path:
    """The copy that ships inside the package."""
    return Path(__file__).parent.parent / "bootstrap.toml"


def toml_value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (tuple, list)):
        return "[" + ", ".join(toml_value(v) for v in value) + "]"  # pyright: ignore[reportUnknownVariableType]
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() else repr(value)
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    return str(value)


def _comment(text: str) -> str:
    lines: list[str] = []
    for paragraph in text.strip().split("\n"):
        lines += textwrap.wrap(paragraph, WIDTH) or [""]
    return "\n".join(f"# {line}".rstrip() for line in lines)


def _profiles() -> list[str]:
    out = ["#", "# Profiles change some defaults:"]
    for name, values in PROFILES.items():
        listed = ", ".join(f"{key} = {toml_value(value)}" for key, value in values.items())
        out.append(_comment(f"  --profile {name}: {listed}"))
    return out

"""From flags, environment and file to one `Config`: the only reader of TOML and environment."""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_origin

from pydantic import PrivateAttr, ValidationError

from dimnode.config.profiles import PROFILES
from dimnode.config.sections import (
    AuthSection,
    CostSection,
    DaemonSection,
    DhtSection,
    ElectionSection,
    EventsSection,
    GatewaySection,
    IpfsSection,
    JobsSection,
    LimitsSection,
    LoggingSection,
    MetricsSection,
    NodeSection,
    OrchestratorSection,
    P2pSection,
    SwarmSection,
    TlsSection,
)
from dimnode.config.values import Section
from dimnode.errors import FieldProblem, InvalidArgument

PREFIX = "DIM_"
DEFAULT = "default"


class Config(Section):
    """All settings of a node, checked, frozen. ``bootstrap.toml`` documents each of them."""

    node: NodeSection = NodeSection()
    swarm: SwarmSection = SwarmSection()
    p2p: P2pSection = P2pSection()
    election: ElectionSection = ElectionSection()
    orchestrator: OrchestratorSection = OrchestratorSection()
    daemon: DaemonSection = DaemonSection()
    gateway: GatewaySection = GatewaySection()
    ipfs: IpfsSection = IpfsSection()
    dht: DhtSection = DhtSection()
    jobs: JobsSection = JobsSection()
    events: EventsSection = EventsSection()
    cost: CostSection = CostSection()
    limits: LimitsSection = LimitsSection()
    tls: TlsSection = TlsSection()
    auth: AuthSection = AuthSection()
    logging: LoggingSection = LoggingSection()
    metrics: MetricsSection = MetricsSection()

    _sources: dict[str, str] = PrivateAttr(default_factory=dict[str, str])

    def source(self, key: str) -> str:
        """Where the value of ``section.key`` comes from, in words; ``default`` if nobody set it."""
        if key not in keys():
            raise KeyError(key)
        return self._sources.get(key, DEFAULT)

    def is_default(self, key: str) -> bool:
        """Whether the operator left ``section.key`` alone (a profile is a set of defaults)."""
        return self.source(key).startswith((DEFAULT, "profile "))


def keys() -> dict[str, Any]:
    """``section.key`` -> annotation, of every setting, in the order of the documented example."""
    out: dict[str, Any] = {}
    for section, info in Config.model_fields.items():
        kind = info.annotation
        assert isinstance(kind, type)
        assert issubclass(kind, Section)
        out.update({f"{section}.{key}": field.annotation for key, field in kind.model_fields.items()})
    return out


def load_config(
    *,
    file: Path | None = None,
    environ: Mapping[str, str] | None = None,
    sets: Sequence[str] = (),
    flags: Mapping[str, Any] | None = None,
    profile: str | None = None,
) -> Config:
    """Flag wins over environment, environment over file, file over profile and default.

    ``sets``: ``section.key=value`` texts. ``flags``: values of flags of their own (``--name``), by
    setting. ``environ``: None reads this process's. Raises `InvalidArgument` naming setting and source.
    """
    merged: dict[str, tuple[Any, str]] = {}
    if profile is not None:
        merged.update(_from_profile(profile))
    if file is not None:
        merged.update(_from_file(file))
    merged.update(_from_environment(os.environ if environ is None else environ))
    for text in sets:
        merged.update(_from_set(text))
    merged.update({key: (value, f"the flag for {key}") for key, value in (flags or {}).items()})
    return _build(merged)


def environment() -> dict[str, str]:
    """The variables of this process that are DIM's."""
    return {k: v for k, v in os.environ.items() if k.startswith(PREFIX)}


def _build(merged: Mapping[str, tuple[Any, str]]) -> Config:
    tree: dict[str, dict[str, Any]] = {}
    for key, (value, _) in merged.items():
        section, _, name = key.partition(".")
        tree.setdefault(section, {})[name] = value
    try:
        config = Config.model_validate(tree)
    except ValidationError as e:
        raise _invalid(e, merged) from None
    config._sources.update({key: source for key, (_, source) in merged.items()})
    return config


def _invalid(error: ValidationError, merged: Mapping[str, tuple[Any, str]]) -> InvalidArgument:
    problems: list[FieldProblem] = []
    for item in error.errors(include_url=False, include_input=False):
        key = ".".join(str(part) for part in item["loc"][:2])
        rule = item["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
        rule = rule if rule.startswith(("must", "has ")) or len(item["loc"]) < 2 else f"must be {rule}"
        source = merged[key][1] if key in merged else _section_sources(key, merged)
        problems.append(FieldProblem(key, f"{rule} (set by {source})"))
    return InvalidArgument(
        "; ".join(f"{p.field}: {p.rule}" for p in problems),
        fields=tuple(problems),
        hint="bootstrap.toml lists every setting with its default.",
    )


def _section_sources(section: str, merged: Mapping[str, tuple[Any, str]]) -> str:
    found = {source for key, (_, source) in merged.items() if key.startswith(f"{section}.")}
    return ", ".join(sorted(found)) or DEFAULT


def _from_profile(name: str) -> dict[str, tuple[Any, str]]:
    if name not in PROFILES:
        raise InvalidArgument(f"there is no profile {name!r}", hint=f"Profiles: {', '.join(PROFILES)}.")
    return {key: (value, f"profile {name}") for key, value in PROFILES[name].items()}


def _from_file(path: Path) -> dict[str, tuple[Any, str]]:
    source = f"the file {path.name}"
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InvalidArgument(f"{source} does not exist", hint="Give an existing file to --config.") from None
    except (OSError, UnicodeDecodeError) as e:
        raise InvalidArgument(f"{source} cannot be read: {type(e).__name__}") from e
    except tomllib.TOMLDecodeError as e:
        raise InvalidArgument(f"{source} is not TOML: {e}", hint="See bootstrap.toml for a complete example.") from e
    out: dict[str, tuple[Any, str]] = {}
    for section, table in document.items():
        if section not in Config.model_fields:
            raise _unknown(section, source, list(Config.model_fields), "section")
        if not isinstance(table, dict):
            raise InvalidArgument(f"{section} in {source} must be a section: [{section}]")
        for name, value in table.items():  # pyright: ignore[reportUnknownVariableType]
            out[_known(f"{section}.{name}", source)] = (value, source)
    return out


def _from_environment(environ: Mapping[str, str]) -> dict[str, tuple[Any, str]]:
    """Only names with two underscores are settings; ``DIM_HOME`` is not."""
    out: dict[str, tuple[Any, str]] = {}
    for variable, text in environ.items():
        if not variable.startswith(PREFIX) or "__" not in variable:
            continue
        section, _, name = variable.removeprefix(PREFIX).lower().partition("__")
        source = f"the environment variable {variable}"
        key = _known(f"{section}.{name}", source)
        out[key] = (parse_value(key, text), source)
    return out


def _from_set(text: str) -> dict[str, tuple[Any, str]]:
    key, equals, value = text.partition("=")
    if not equals:
        raise InvalidArgument(f"--set {text}: must be section.key=value")
    key = _known(key.strip(), "--set")
    return {key: (parse_value(key, value.strip()), f"--set {key}")}


def parse_value(key: str, text: str) -> Any:
    """A TOML value; what does not parse is a string. A text setting takes any text, and a list setting
    a bare text as its one item."""
    try:
        value = tomllib.loads(f"x = {text}")["x"]
    except (tomllib.TOMLDecodeError, KeyError):
        value = text
    annotation = keys()[key]
    if get_origin(annotation) is tuple or annotation is tuple:
        return value if isinstance(value, list) else [text] if text else []
    if annotation is str and not isinstance(value, str):
        return text
    return value


def _known(key: str, source: str) -> str:
    known = keys()
    if key in known:
        return key
    section = key.partition(".")[0]
    if section not in Config.model_fields:
        raise _unknown(key, source, list(known), "setting")
    raise _unknown(key, source, [k for k in known if k.startswith(f"{section}.")], "setting")


def _unknown(key: str, source: str, known: list[str], what: str) -> InvalidArgument:
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    hint = f"Did you mean {near[0]}?" if near else "bootstrap.toml lists every setting."
    return InvalidArgument(
        f"{key} (set by {source}) is not a known {what}", hint=hint, fields=(FieldProblem(key, f"is not a known {what}"),)
    )

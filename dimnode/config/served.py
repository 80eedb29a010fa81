"""What this version cannot honour: `start` refuses it instead of ignoring it."""

from __future__ import annotations

from dimnode.config.load import Config
from dimnode.config.values import is_loopback, split_host_port
from dimnode.errors import FailedPrecondition, FieldProblem


def unserved(config: Config) -> tuple[FieldProblem, ...]:
    """Settings whose value asks for a part that this version does not have."""
    problems: list[FieldProblem] = []
    for key, value in (("auth.mode", config.auth.mode),):
        if value in ("token",):
            problems.append(FieldProblem(key, f'"{value}" is not served by this version'))
    no_tls = "TLS of the client API is not served by this version; leave it empty"
    problems += [FieldProblem(f"tls.{key}", no_tls) for key in ("cert", "key", "client_ca") if getattr(config.tls, key)]
    host, _ = split_host_port(config.orchestrator.listen)
    if config.auth.mode == "local" and not is_loopback(host):
        problems.append(FieldProblem("orchestrator.listen", 'must be a loopback address unless auth.mode is "open"'))
    return tuple(problems)


def require_served(config: Config) -> None:
    """Raises `FailedPrecondition` naming every setting that cannot be honoured."""
    problems = unserved(config)
    if problems:
        raise FailedPrecondition(
            "; ".join(f"{p.field}: {p.rule} (set by {config.source(p.field)})" for p in problems),
            hint="bootstrap.toml says which settings are planned.",
            fields=problems,
        )

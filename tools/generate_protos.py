"""Makes dimnode/rpc/v1 from proto/; with --check tells whether the committed code is what the contracts say."""

from __future__ import annotations

import argparse
import sys
import tempfile
from importlib.resources import files
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent.parent
PROTOS = ROOT / "proto"
FOLDER = Path("dimnode/rpc/v1")


def generate(out: Path) -> None:
    """Raises `SystemExit` with protoc's code if a contract is wrong."""
    names = sorted(str(p.relative_to(PROTOS)) for p in PROTOS.rglob("*.proto"))
    code = protoc.main(
        [
            "protoc",
            f"-I{PROTOS}",
            f"-I{files('grpc_tools') / '_proto'}",
            f"--python_out={out}",
            f"--pyi_out={out}",
            f"--grpc_python_out={out}",
            *names,
        ]
    )
    if code:
        raise SystemExit(code)


def differences(fresh: Path, committed: Path) -> list[str]:
    """Names of files that are missing, left over or unlike, byte for byte."""
    made = {p.name: p.read_bytes() for p in fresh.glob("*_pb2*")}
    kept = {p.name: p.read_bytes() for p in committed.glob("*_pb2*") if p.suffix in (".py", ".pyi")}
    return sorted(name for name in made.keys() | kept.keys() if made.get(name) != kept.get(name))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if the committed code is stale")
    check: bool = parser.parse_args().check
    if not check:
        generate(ROOT)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        generate(Path(folder))
        stale = differences(Path(folder) / FOLDER, ROOT / FOLDER)
    if stale:
        print("stale, run tools/generate_protos.py:", ", ".join(stale), file=sys.stderr)
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())

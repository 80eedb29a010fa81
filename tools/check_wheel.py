"""A wheel installs dimnode, p2p, patterns and loaders, and nothing else at the top level."""

from __future__ import annotations

import sys
import zipfile

EXPECTED = {"dimnode", "p2p", "patterns", "loaders", "dagcbor"}
NEEDED = ("dimnode/bootstrap.toml", "dimnode/rpc/v1/orchestrator_pb2.py")


def main(path: str) -> int:
    with zipfile.ZipFile(path) as wheel:
        names = wheel.namelist()
    tops = {name.partition("/")[0] for name in names if ".dist-info/" not in name}
    lacking = [name for name in NEEDED if name not in names]
    licences = [name for name in names if name.endswith("licenses/LICENSE")]
    if tops != EXPECTED or lacking or not licences:
        print(f"wheel: top level {sorted(tops)}, lacking {lacking}, licence files {licences}", file=sys.stderr)
        return 1
    print(f"wheel: {len(names)} files, top level {', '.join(sorted(tops))}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))

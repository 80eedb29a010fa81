"""Write, or with --check verify, bootstrap.toml (and the copy inside the package) from the settings."""

from __future__ import annotations

import sys
from pathlib import Path

from dimnode.config.render import example_path, render

ROOT = Path(__file__).parents[1]


def main() -> int:
    text = render()
    stale = [p for p in (ROOT / "bootstrap.toml", example_path()) if not p.exists() or p.read_text(encoding="utf-8") != text]
    if "--check" in sys.argv[1:]:
        print("bootstrap.toml: " + ("stale; run python tools/generate_bootstrap.py" if stale else "up to date"))
        return 1 if stale else 0
    for path in stale:
        path.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""``python -m dimnode``."""

from __future__ import annotations

from dimnode.cli.main import main

if __name__ == "__main__":
    main()

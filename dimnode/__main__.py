"""``python -m dimnode``."""

from __future__ import annotations

import signal

from dimnode.cli import main as command_line


def main() -> None:
    try:
        command_line.main()
    finally:
        # The exit code is decided. A signal while the interpreter ends must not turn it into another one.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)


if __name__ == "__main__":
    main()

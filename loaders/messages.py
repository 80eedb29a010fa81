"""What a framework said, made fit for people who are not on this machine."""

from __future__ import annotations

import re

_PATH = re.compile(r"(?:[A-Za-z]:)?(?:[/\\][^\s/\\:'\"]+)+")
MAX_MESSAGE = 300


def clean_message(error: BaseException) -> str:
    """First line of the error's message, without paths, bounded."""
    lines = str(error).strip().splitlines()
    text = _PATH.sub("…", lines[0]) if lines else type(error).__name__
    return text[:MAX_MESSAGE]

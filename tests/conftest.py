"""Marks every test with the name of its folder, and sees that virtual time is virtual."""

from __future__ import annotations

from inspect import signature
from pathlib import Path

import pytest

KINDS = ("unit", "simulation", "integration", "e2e", "performance", "security")
_HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        _names_its_clock(item)
        kind = item.path.relative_to(_HERE).parts[0]
        if kind in KINDS:
            item.add_marker(getattr(pytest.mark, kind))


def _names_its_clock(item: pytest.Item) -> None:
    """A clock that only a fixture asks for is not used: the test would run in real time, and depend on what else the machine does."""
    if (
        isinstance(item, pytest.Function)
        and "autojump_clock" in item.fixturenames
        and "autojump_clock" not in signature(item.function).parameters
    ):
        raise pytest.UsageError(f"{item.nodeid} must itself take autojump_clock, which one of its fixtures takes")

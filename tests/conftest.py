"""Marks every test with the name of its folder."""

from __future__ import annotations

from pathlib import Path

import pytest

KINDS = ("unit", "simulation", "integration", "e2e", "performance", "security")
_HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        kind = item.path.relative_to(_HERE).parts[0]
        if kind in KINDS:
            item.add_marker(getattr(pytest.mark, kind))

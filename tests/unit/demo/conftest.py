from __future__ import annotations

from pathlib import Path

import pytest

from dimnode.demo.assets import DemoAssets, prepare


@pytest.fixture(scope="session")
def assets(tmp_path_factory: pytest.TempPathFactory) -> DemoAssets:
    """The demo's data for three nodes, made as the demo makes it: by a process of its own."""
    return prepare(tmp_path_factory.mktemp("demo"), 3)


@pytest.fixture(scope="session")
def demo_folder(assets: DemoAssets) -> Path:
    return assets.cabinets[0].path.parent

"""The real network keeps the contract, on loopback."""

from __future__ import annotations

from collections.abc import AsyncGenerator

import pytest

from tests.support.network_contract import NetworkContract, Pair
from tests.support.networks import two


class TestContract(NetworkContract):
    @pytest.fixture
    async def pair(self) -> AsyncGenerator[Pair, None]:
        async with two() as networks:
            yield networks

"""Text through the client API: pieces in order, none twice, over a second orchestrator when the first goes away."""

from __future__ import annotations

from typing import Any

from dimnode.client import Client
from tests.integration.rpc.test_client import QUICK, in_thread, running
from tests.support.rpc_fakes import FakeApi, FakeSwarm


async def test_text_goes_on_over_a_stream_that_broke_and_a_new_attempt_begins_anew() -> None:
    api = FakeApi()
    seen: list[dict[str, Any]] = []
    async with running(api, FakeSwarm()) as (_, address):

        def use() -> None:
            with Client(address, QUICK) as dim:
                seen.extend(dim.follow("j"))

        await in_thread(use)
    assert api.followed == 2
    pieces = [e["partial"] for e in seen if "partial" in e]
    assert [(p["attempt"], p["row"], p["offset"], p["text"]) for p in pieces] == [
        (1, 0, 0, "Once"), (1, 0, 4, " upon"), (1, 0, 9, " a"), (1, 1, 0, "Two"), (2, 0, 0, "On"), (2, 0, 2, "ce"),
    ]  # fmt: skip
    assert seen[-1]["status"] == "completed"


async def test_watch_tells_documents_only() -> None:
    api = FakeApi()
    async with running(api, FakeSwarm()) as (_, address):

        def use() -> list[dict[str, Any]]:
            with Client(address, QUICK) as dim:
                return list(dim.watch("j"))

        assert all("partial" not in d for d in await in_thread(use))
    assert api.followed == 0

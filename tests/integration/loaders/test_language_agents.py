"""Language models of GGUF's packings in real agents, which import nothing once they are confined."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dimnode.daemon.agents import ModelFile
from dimnode.daemon.model_formats import recognise
from tests.integration.daemon.test_agents import running_pool
from tests.support.gguf_files import network, write

ASKED = {"prompt": np.array(["Hello"], dtype=object), "max_tokens": np.array(3, np.int32)}


@pytest.mark.timeout(180)
async def test_packings_that_become_floats_are_read_in_an_agent(tmp_path: Path) -> None:
    mixed = network("Q4_K") | {n: network("Q6_K")[n] for n in ("token_embd.weight", "blk.0.ffn_down.weight")}
    path = write(tmp_path / "m.gguf", mixed)
    assert recognise(path) == "mlx-lm"
    async with running_pool(tmp_path) as pool:
        found = await pool.run(ModelFile("m", "mlx-lm", path, path.stat().st_size), ASKED)
        assert found["tokens"].shape[0] == 1
        assert pool.confinement.files

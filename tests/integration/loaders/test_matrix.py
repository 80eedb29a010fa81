"""Every loader with real models, in real agents: the reference answers, and the documents' table of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from loaders.registry import available_loaders
from tools.loader_matrix import DOCUMENTS, render, run_all, table_in


@pytest.mark.timeout(300)
async def test_every_loader_gives_the_reference_answers_and_the_table_says_so(tmp_path: Path) -> None:
    results = await run_all(tmp_path)
    assert {f"{c.format}/{c.model}": wrong for c, wrong in results.items() if wrong} == {}
    assert {c.format for c in results} == set(available_loaders()) - {"builtin"}
    tables = [t for t in map(table_in, DOCUMENTS) if t is not None]
    assert tables, "no document has the table"
    assert all(t == render(results) for t in tables), "run `python -m tools.loader_matrix --write`"

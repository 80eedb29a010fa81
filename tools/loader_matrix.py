"""The table of what every loader runs, in documents between two marks, from a real run of each case in an agent.

    python -m tools.loader_matrix           run, print the table
    python -m tools.loader_matrix --write   ... and put it into docs/models.md and README.md, where they have the marks

A row says that the model gave the reference answers within the tolerance here, or that it did not. Cases are in
`tests.support.loader_cases`; an integration test runs them and fails if the documents say something else.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import trio

from dimnode.daemon import model_about, model_formats
from dimnode.daemon.agents import AgentPool, ModelFile
from dimnode.daemon.settings import AgentSettings
from dimnode.errors import DimError
from loaders.registry import ENTRIES
from tests.support.loader_cases import Case, cases

ROOT = Path(__file__).parents[1]
DOCUMENTS = (ROOT / "docs" / "models.md", ROOT / "README.md")
BEGIN, END = "<!-- loader matrix: made by tools/loader_matrix.py -->", "<!-- end of the loader matrix -->"


async def run_case(pool: AgentPool, case: Case, folder: Path) -> str:
    """Empty if the model was recognised, loaded and gave its golden answers in an agent; else why not."""
    try:
        path = await trio.to_thread.run_sync(case.file, folder)
        kind = await trio.to_thread.run_sync(model_formats.recognise, path)
        if kind != case.format:
            return f"taken for {kind}"
        about = model_about.encode(*case.tensors, architecture=case.architecture, golden=await trio.to_thread.run_sync(case.golden))
        await pool.inspect(ModelFile(f"{case.format}/{case.model}", kind, path, path.stat().st_size, about=about))
    except DimError as e:
        return e.message
    return ""


async def run_all(folder: Path) -> dict[Case, str]:
    """Case -> what is wrong with it."""
    out: dict[Case, str] = {}
    pool = AgentPool(replace(AgentSettings(), start_timeout=120.0), folder / "agents")
    async with trio.open_nursery() as nursery:
        await nursery.start(pool.run_pool)
        for case in cases():
            out[case] = await run_case(pool, case, folder)
        nursery.cancel_scope.cancel()
    return out


def render(results: Mapping[Case, str]) -> str:
    order = list(ENTRIES)
    lines = ["| loader | model | from | gives the reference answers |", "| --- | --- | --- | --- |"]
    for case, wrong in sorted(results.items(), key=lambda r: (order.index(r[0].format), r[0].model)):
        answer = f"no: {wrong}" if wrong else f"yes, within {case.tolerance:g}" if case.tolerance else "yes, exactly"
        lines.append(f"| {case.format} | {case.model} | {case.source} | {answer} |")
    return "\n".join(lines)


def table_in(document: Path) -> str | None:
    """What stands between the marks; None if there are none."""
    text = document.read_text(encoding="utf-8")
    if BEGIN not in text:
        return None
    return text.partition(BEGIN)[2].partition(END)[0].strip()


def write(document: Path, table: str) -> bool:
    """Whether the document has the marks."""
    text = document.read_text(encoding="utf-8")
    if BEGIN not in text:
        return False
    head, _, rest = text.partition(BEGIN)
    document.write_text(f"{head}{BEGIN}\n{table}\n{END}{rest.partition(END)[2]}", encoding="utf-8")
    return True


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        results = trio.run(run_all, Path(folder))
    table = render(results)
    print(table)
    if arguments.write:
        for document in DOCUMENTS:
            print(f"{document.name}: {'written' if write(document, table) else 'has no marks'}", file=sys.stderr)
    return 1 if any(results.values()) else 0


if __name__ == "__main__":
    sys.exit(main())

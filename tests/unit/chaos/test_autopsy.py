"""What is read from journals after a run."""

from __future__ import annotations

from pathlib import Path

import pytest

from dimnode.domain import codec
from dimnode.domain.record import Ballot, SignedEntry
from dimnode.state.journal import open_journal
from tests.support import entries as make
from tools.chaos import autopsy, journals


async def write(home: Path, *entries: SignedEntry, ballot: Ballot | None = None) -> Path:
    home.mkdir(parents=True)
    async with open_journal(home / journals.NAME) as journal:
        await journal.append(entries)
        if ballot is not None:
            await journal.raise_ballot(make.JOB, ballot)
    return home


async def test_each_journal_says_what_it_knows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    await write(tmp_path / "anna", make.core(), make.claim(1), make.assign(1), make.claim(1, job="job-b"))
    await write(tmp_path / "deep" / "bert", make.assign(1), make.attempt(1), ballot=make.ballot(3, "q"))
    await write(tmp_path / "cora")
    assert autopsy.main([str(tmp_path), make.JOB]) == 0
    anna, cora, bert = capsys.readouterr().out.split("--- ")[1:]
    assert anna.startswith("anna: 3 entries, highest ballot None\n    scheduling; owner 1/p/b;")
    assert [line.split()[1] for line in anna.splitlines()[2:]] == ["core", "claim", "assign"]
    assert cora == "cora: 0 entries, highest ballot None\n"
    assert "2 entries, highest ballot 3/q/b" in bert
    assert "attempts ['t']" in bert


async def test_a_long_record_is_shown_by_its_ends(tmp_path: Path) -> None:
    home = await write(tmp_path / "anna", make.core(), *(make.assign(1, attempt=n) for n in range(1, 100)))
    lines = autopsy.report(home, make.JOB)
    assert len(lines) == 2 + autopsy.MOST + 1
    assert "70 more" in lines[2 + autopsy.MOST // 2]
    assert "attempt=99" in lines[-1]


def test_a_folder_without_homes_is_refused(tmp_path: Path) -> None:
    assert autopsy.main([str(tmp_path), make.JOB]) == 2


async def test_repeated_executions_are_counted_once_each(tmp_path: Path) -> None:
    first, again, failed = make.attempt(1), make.attempt(1, number=2, node="y"), make.attempt(1, number=3, status="failed")
    found = journals.Executions()
    found.add_home(await write(tmp_path / "x", first, failed, make.attempt(1, task="u")))
    found.add_home(await write(tmp_path / "y", again, first))
    found.add_result({"tasks": [{"receipt": codec.encode(first)}, {"receipt": b""}]})
    assert found.tasks == 2
    assert found.repeated() == {make.JOB: 1}

"""What a study came to in a line: the command line, the API and the pages say the same, and how sure it is."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator

import pytest
from daemons import at_work, database, opened, recorded

from advisor.asking.submission import Submission
from advisor.faces.cli import run
from advisor.pages.short import best_so_far
from advisor.pages.study_report import report_of
from advisor.web.served import Served

ASKED = {"lengths": "8", "batch": 2}


def job_of_study(served: Served) -> str:
    """Store a job of the study that there is, cancelled since; return its id."""
    name = served.submit(Submission("org/model", ASKED)).id
    served.jobs.tell(name, study=1, first=0)
    served.jobs.cancel(name)
    return name


@pytest.fixture
def unsure(sqlite_url: str) -> Iterator[Served]:
    """Give a database whose study confirmed nothing."""
    with opened(database(sqlite_url, recorded(), blocks=0), recorded()) as served:
        yield served


def test_an_answer_that_is_open_names_what_was_found(
    unsure: Served, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not the default alone: what the search saw, that it is not confirmed, and why the search stopped."""
    monkeypatch.setenv("ADVISOR_DATABASE_URL", unsure.url)
    monkeypatch.setenv("COLUMNS", "300")
    with at_work(unsure) as daemon:
        name = job_of_study(unsure)
        words = unsure.told(name)["answer"]
        best = max(report_of(unsure.store, 1).searched, key=lambda point: point.value or 0)
        assert re.fullmatch(
            r"unconfirmed: (.+), (\d+\.\d\d) × the default in the search, not confirmed: .+; until then the default, .+",
            words,
        )
        assert words.startswith(f"unconfirmed: {best.configuration}, {best.ratio:.2f} ×")
        assert run(["jobs", name]) == 0
        assert words in capsys.readouterr().out
        for place in ("/", f"/jobs/{name}"):
            assert words in html.unescape(daemon.get(place).body.decode())
        assert daemon.get(f"/api/v1/jobs/{name}").json["answer"] == words


def test_a_job_that_is_over_has_one_answer(sqlite_url: str) -> None:
    """Its page says what was confirmed, and not beside it what only the search saw."""
    with opened(database(sqlite_url, recorded()), recorded()) as served, at_work(served) as daemon:
        name = job_of_study(served)
        words, report = served.told(name)["answer"], report_of(served.store, 1)
        chosen = next(each for each in report.finalists if each.is_chosen)
        assert words == f"faster {chosen.ratio:.2f} ×: {chosen.configuration}"
        page = html.unescape(daemon.get(f"/jobs/{name}").body.decode())
        assert words in page
        assert "Best found" not in page
        assert f"{chosen.ratio:.2f} × the default in {len(chosen.blocks)} blocks ({chosen.verdict})" in best_so_far(
            report
        )

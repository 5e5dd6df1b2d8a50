"""Pages for browsers: what they show is what the advice says, and they are whole, quiet and readable in a real browser."""

from __future__ import annotations

from pathlib import Path

import pytest
from made_databases import laid

from advisor.advice.suggest import recommend
from advisor.faces.cli import run
from advisor.measure.landscape import Landscape, read_landscapes
from advisor.measure.replay import ReplayRunner
from advisor.nouns.environment import Machine
from advisor.nouns.model import ModelSource
from advisor.nouns.objective import Budget
from advisor.pages.rendering import report_html
from advisor.pages.study_report import own_source, report_of
from advisor.storage.store import Store
from advisor.study.tune import tune
from advisor.study.tuning import Job

LANDSCAPES = Path(__file__).parent / "landscapes"


@pytest.fixture(scope="module")
def landscapes() -> dict[str, Landscape]:
    """Read what was recorded on GPUs."""
    return read_landscapes(LANDSCAPES)


def tuned(store: Store, landscape: Landscape, name: str = "org/model", trials: int = 60) -> int:
    """Tune on a recording and return the study: the loop, the rows and the advice are the real ones."""
    source = ModelSource(name, "/nowhere", {"of": landscape.model}, "trained", "sha256:0", has_tokenizer=False)
    machine = Machine(landscape.environment, "host", "GPU-0", 0, 70 * 2**30)
    job = Job(source, landscape.workload, landscape.objective, Budget(trials=trials), machine)
    return tune(job, store, ReplayRunner(landscape, seed=1), lambda _: None)


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory, landscapes: dict[str, Landscape]) -> str:
    """Return the URL of a database with studies: 1 and 2 of one model, padded and not, 3 of another one."""
    url = laid(f"sqlite:///{tmp_path_factory.mktemp('pages')}/advisor.db")
    with Store.open(url, write=True) as store:
        for name in ("h100-minilm-l6-8x64-padding-0.4", "h100-minilm-l6-8x64-padding-0", "h200-llama-3.2-1b-4x4096"):
            tuned(store, landscapes[name])
    return url


def test_a_report_says_what_the_advice_says(database: str) -> None:
    """The recommendation, its ratio and every trial are those that are stored; no configuration is drawn twice."""
    with Store.open(database, write=False) as store:
        study = store.study(1)
        found = recommend(store, own_source(study, None), study, study.objective)
        report = report_of(store, 1)
        trials = store.trials(1)

    assert found.chosen is not None
    assert found.chosen.comparison is not None
    assert report.verdict == found.verdict
    assert f"{found.chosen.comparison.ratio:.2f} × the default" in report.headline
    assert [point.number for point in report.points] == [trial.number for trial in trials]
    drawn = [point.configuration for point in report.searched]
    assert len(drawn) == len(set(drawn)) == 1 + len(found.runners_up) + len(found.rejected)
    assert report.code is not None
    assert "from_pretrained('org/model'" in report.code.loading


def test_the_command_writes_a_page_and_says_where(
    database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Without -o it is a file in this folder; an older one is replaced, and nothing else is left beside it."""
    monkeypatch.setenv("ADVISOR_DATABASE_URL", database)
    monkeypatch.chdir(tmp_path)
    Path("advisor-report-1.html").write_text("older")

    assert run(["report", "1"]) == 0
    assert capfd.readouterr().out == "advisor-report-1.html\n"
    assert [file.name for file in tmp_path.iterdir()] == ["advisor-report-1.html"]
    assert Path("advisor-report-1.html").read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    assert run(["report", "1", "-o", "-"]) == 0
    assert capfd.readouterr().out.startswith("<!DOCTYPE html>")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["report", "1", "-o", "nowhere/page.html"], "there is no folder nowhere"),
        (["report", "1", "-o", "."], "is a folder"),
        (["report", "77"], "there is no study 77"),
        (["report"], "--compare A B"),
    ],
)
def test_what_cannot_be_written_is_said_in_a_line(
    database: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    arguments: list[str],
    words: str,
) -> None:
    """The status is 2, one line says why, and no file is there."""
    monkeypatch.setenv("ADVISOR_DATABASE_URL", database)
    monkeypatch.chdir(tmp_path)

    assert run(arguments) == 2
    said = capfd.readouterr()
    assert said.out == ""
    assert words in said.err
    assert said.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_page_holds_no_markup_of_a_model(sqlite_url: str, landscapes: dict[str, Landscape]) -> None:
    """A model's name is text wherever it stands: in the title, the code and the charts' data."""
    name = "</pre></script><script>alert(1)</script><img src=x onerror=alert(2)>"
    with Store.open(laid(sqlite_url), write=True) as store:
        tuned(store, landscapes["h100-minilm-l6-8x64-padding-0"], name, trials=3)
        text = report_html(report_of(store, 1))

    assert "<script>alert" not in text
    assert "<img" not in text
    assert "&lt;/pre&gt;" in text

"""Pages for browsers: what they show is what the advice says, and they are whole, quiet and readable in a real browser."""

from __future__ import annotations

import json
import os
import re
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from browsing import HOSTILE, INVALID_CHARTS, Seen, chromium, until, violations
from made_databases import laid
from playwright.sync_api import Browser, Page

from advisor.advice.kept_answers import answer_of
from advisor.advice.suggest import recommend
from advisor.errors import NotMeasured
from advisor.faces.cli import run
from advisor.measure.landscape import Landscape, read_landscapes
from advisor.measure.replay import ReplayRunner
from advisor.models.checkpoint import find_model
from advisor.nouns.environment import Environment, Machine
from advisor.nouns.model import ModelSource
from advisor.nouns.objective import Budget
from advisor.nouns.trial import Outcome
from advisor.pages.comparison import compared
from advisor.pages.drawing import labels
from advisor.pages.points import Role
from advisor.pages.rendering import compared_html, map_html, report_html, times
from advisor.pages.study_report import own_source, report_of
from advisor.pages.winners import letter, map_of
from advisor.storage.store import Store
from advisor.study.tune import tune
from advisor.study.tuning import Job
from advisor.workloads import Workload

ROOT = Path(__file__).parent.parent
MODEL = ROOT / "benchmarks" / "shapes" / "qwen2.5-1.5b.json"
PADDED, EVEN, OTHER = (
    "h100-qwen2.5-1.5b-8x2048-padding-0.4",
    "h100-qwen2.5-1.5b-8x2048-padding-0",
    "h200-llama-3.2-1b-4x4096",
)


@pytest.fixture(scope="module")
def landscapes() -> dict[str, Landscape]:
    """Read what was recorded on GPUs."""
    return read_landscapes(ROOT / "tests" / "landscapes")


def tuned(
    store: Store,
    landscape: Landscape,
    *,
    workload: Workload | None = None,
    environment: Environment | None = None,
    trials: int = 30,
    blocks: int = 9,
    most_bytes: int | None = None,
    source: ModelSource | None = None,
    seed: int = 1,
) -> int:
    """Tune on a recording and return the study: the loop, the rows and the advice are the real ones."""
    source = source or find_model(str(MODEL))
    machine = Machine(environment or landscape.environment, "host", "GPU-0", 0, 70 * 2**30)
    objective = replace(landscape.objective, max_memory_bytes=most_bytes)
    job = Job(source, workload or landscape.workload, objective, Budget(trials=trials, blocks=blocks), machine)
    return tune(job, store, ReplayRunner(landscape, seed=seed), lambda _: None)


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory, landscapes: dict[str, Landscape]) -> str:
    """Return the URL of a database with studies of one model.

    1: padded, 2: not; 3: as 1 with newer packages; 4: on another device; 5: as 1 with less memory than anything needs; 6: longer.
    """
    url = laid(f"sqlite:///{tmp_path_factory.mktemp('pages')}/advisor.db")
    padded = landscapes[PADDED]
    newer = replace(padded.environment, packages={**padded.environment.packages, "torch": "2.13.0"})
    longer = replace(padded.workload, lengths=tuple(2 * length for length in padded.workload.lengths), batch=4)
    with Store.open(url, write=True) as store:
        tuned(store, padded)
        tuned(store, landscapes[EVEN])
        tuned(store, padded, environment=newer, trials=8, seed=2)
        tuned(store, landscapes[OTHER], trials=8)
        tuned(store, padded, most_bytes=2**20, trials=3)
        tuned(store, padded, workload=longer, trials=8)
    return url


@pytest.fixture
def store(database: str) -> Iterator[Store]:
    """Open the database of studies."""
    with Store.open(database, write=False) as opened:
        yield opened


@pytest.fixture
def command(database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Return what runs a command on the database of studies in an empty folder."""
    monkeypatch.setenv("ADVISOR_DATABASE_URL", database)
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: run(arguments)


# ------------------------------------------------------------------------------------------------------ what pages show


def test_a_report_says_what_the_advice_says(store: Store) -> None:
    """The recommendation, its ratio and every trial are those that are stored; no configuration is drawn twice."""
    study, trials = store.study(1), store.trials(1)
    found = recommend(store, own_source(study, None), study, study.objective)
    report = report_of(store, 1)

    assert found.chosen is not None
    assert found.chosen.comparison is not None
    assert report.verdict == found.verdict
    assert f"{found.chosen.comparison.ratio:.2f} × the default" in report.headline
    assert [point.number for point in report.points] == [trial.number for trial in trials]
    drawn = [point.configuration for point in report.searched]
    assert len(drawn) == len(set(drawn)) == 1 + len(found.runners_up) + len(found.rejected)
    chosen = [point for point in report.searched if point.role is Role.CHOSEN]
    assert [point.configuration for point in chosen] == [str(found.configuration)]
    assert [point.number for point in report.failures] == [t.number for t in trials if t.outcome.is_failure]


def test_a_reports_finalists_are_the_comparisons(store: Store) -> None:
    """A row for each comparison that is stored, with its own interval; the path never gets worse and ends at the best."""
    report, comparisons = report_of(store, 1), store.comparisons(1)

    assert sorted((f.ratio, f.low, f.high) for f in report.finalists) == sorted(
        (c.ratio, *c.interval) for c in comparisons
    )
    best = [step.best for step in report.path if step.best is not None]
    assert best == sorted(best)
    right = [
        point.value
        for point in report.points
        if point.phase == "search" and point.role is not Role.FAILED and point.value
    ]
    assert best[-1] == max(right)


def test_code_is_of_the_model_where_it_is(store: Store) -> None:
    """The script loads the model by its place here; where that holds another model by now, it is named as it was."""
    report = report_of(store, 1, find_model(str(MODEL)))
    elsewhere = report_of(store, 1, find_model(str(ROOT / "benchmarks" / "shapes" / "minilm-l6.json")))

    assert report.code is not None
    assert str(MODEL) in report.code.loading
    compile(report.code.script, "script", "exec")
    assert any("is not found here" in note for note in elsewhere.notes)
    assert not any("is not found here" in note for note in report.notes)
    assert "minilm" not in report_html(elsewhere)


def test_nothing_right_is_said_so(store: Store) -> None:
    """Where nothing may be recommended the page says so and why, has no code, and still draws what was measured."""
    report = report_of(store, 5)
    text = report_html(report)

    assert report.verdict == answer_of(store, store.study(5)).verdict == "none-right"
    assert report.code is None
    assert "Nothing is recommended" in text
    assert "above the 1 MiB allowed" in text
    assert {point.role for point in report.searched} == {Role.REJECTED}


def test_a_comparison_names_what_differs(store: Store) -> None:
    """Another version is a difference, all else being equal it is fair; ratios are the second's over the first's."""
    page = compared(report_of(store, 1), report_of(store, 3))

    assert [name for name, *_ in page.differences if name != "measured"] == ["torch"]
    assert page.unfair == ()
    assert any(pair.first.speed != pair.second.speed for pair in page.pairs)
    for pair in page.pairs:
        assert pair.first.key == pair.second.key
        assert pair.speed_ratio == (pair.second.speed or 0) / (pair.first.speed or 1)
    assert page.alone[0] == len(page.first.searched) - len(page.pairs)


@pytest.mark.parametrize(
    ("other", "words"), [(4, "other devices"), (2, "other workloads"), (6, "other workloads"), (4, "other workloads")]
)
def test_a_comparison_says_where_it_is_not_fair(store: Store, other: int, words: str) -> None:
    """Another device or workload is told first."""
    page = compared(report_of(store, 1), report_of(store, other))

    assert any(words in line for line in page.unfair)
    assert "Not a fair comparison" in compared_html(page)


def test_other_weights_are_no_fair_comparison(sqlite_url: str, landscapes: dict[str, Landscape]) -> None:
    """Of other weights speeds can be compared, and the page says that quality can't."""
    source = find_model(str(MODEL))
    with Store.open(laid(sqlite_url), write=True) as opened:
        for digest in ("sha256:1", "sha256:2"):
            named = replace(source, weights="trained", weights_digest=digest)
            tuned(opened, landscapes[EVEN], trials=2, source=named)
        page = compared(report_of(opened, 1), report_of(opened, 2))

    assert page.unfair == ("They ran other weights: speeds of equal shapes can be compared, quality can't.",)


def test_the_map_has_what_was_measured_and_nothing_else(store: Store) -> None:
    """A cell for each length and padding, with the answers of its studies; the rest says that it was not measured."""
    page = map_of(store, "qwen", find_model(str(MODEL)).architecture_key)

    assert page.device == store.study(1).environment.device_name
    assert page.lengths == (2048, 4096)
    assert page.others == (store.study(4).environment.device_name,)
    assert {win.study.id for win in page.wins} == {2, 3, 5, 6}  # 3 is newer than 1, and asks the same
    for win in page.wins:
        answer = answer_of(store, win.study)
        assert (win.answer.configuration, win.answer.verdict, win.answer.ratio) == (
            answer.configuration,
            answer.verdict,
            answer.ratio,
        )
    cells = len(page.lengths) * len(page.paddings)
    measured = len({win.place for win in page.wins})
    assert map_html(page).count(">not measured<") == cells - measured > 0


def test_the_map_says_what_is_not_confirmed(sqlite_url: str, landscapes: dict[str, Landscape]) -> None:
    """Where the default stays for now, its cell and its row name the fastest that was found, as `suggest` does."""
    with Store.open(laid(sqlite_url), write=True) as opened:
        study = opened.study(tuned(opened, landscapes[PADDED], trials=3, blocks=0))
        best = recommend(opened, own_source(study, None), study, study.objective).best
        page = map_of(opened, "qwen", find_model(str(MODEL)).architecture_key)

    assert best is not None
    assert best.search_ratio is not None
    words = f"fastest found, unconfirmed: {best.configuration} ≈{best.search_ratio:.2f} ×"
    assert page.wins[0].winner == str(page.wins[0].answer.configuration) != str(best.configuration)
    assert map_html(page).count(words) == 2


def test_an_answer_stays_until_a_newer_one_is_there(sqlite_url: str, landscapes: dict[str, Landscape]) -> None:
    """A newer study of the same question that has none yet takes no cell away, and is named."""
    padded = landscapes[PADDED]
    newer = replace(padded.environment, packages={**padded.environment.packages, "torch": "2.13.0"})
    with Store.open(laid(sqlite_url), write=True) as opened:
        first = tuned(opened, padded, trials=3)
        begun = opened.open_study(find_model(str(MODEL)), padded.workload, newer, padded.objective, Budget(60.0), 0)
        page = map_of(opened, "qwen", find_model(str(MODEL)).architecture_key)

    assert [win.study.id for win in page.wins] == [first]
    assert page.unanswered == (begun,)


def test_a_damaged_study_is_named_beside_the_others(sqlite_url: str, landscapes: dict[str, Landscape]) -> None:
    """It takes no cell of another one away, and the page says what is left out; without an answer beside it that is said."""
    padded = landscapes[PADDED]
    newer = replace(padded.environment, packages={**padded.environment.packages, "torch": "2.13.0"})
    key = find_model(str(MODEL)).architecture_key
    with Store.open(laid(sqlite_url), write=True) as opened:
        first, second = tuned(opened, padded, trials=3), tuned(opened, landscapes[EVEN], trials=3)
        opened.open_study(find_model(str(MODEL)), padded.workload, newer, padded.objective, Budget(60.0), 0)
        _damage(opened, "UPDATE studies SET objective = '[' WHERE id = ?", second)
        page = map_of(opened.anew(), "qwen", key)
        assert [win.study.id for win in page.wins] == [first]
        assert f"Left out, for it can't be understood: row {second} of studies is damaged" in map_html(page)
        _damage(opened, "UPDATE studies SET objective = '[' WHERE id = ?", first)
        with pytest.raises(
            NotMeasured, match=r"has an answer yet \(row . of studies is damaged.*; advisor tune goes on"
        ):
            map_of(opened.anew(), "qwen", key)


def _damage(store: Store, statement: str, number: int) -> None:
    with store._database.writing() as connection:
        connection.exec_driver_sql(statement, (number,))


@pytest.mark.parametrize(
    "damage",
    [
        (
            "UPDATE workloads SET payload = replace(payload, '\"forward\"', '\"dreaming\"') WHERE id = 2",
            "'dreaming'",
            0,
        ),
        ("UPDATE trials SET outcome = 'dreamt' WHERE study_id = 2 AND number = 0", "trials is damaged", 2),
    ],
)
def test_a_study_that_nobody_understands_hides_no_other(
    tmp_path: Path,
    landscapes: dict[str, Landscape],
    command: Callable[..., int],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    damage: tuple[str, str, int],
) -> None:
    """Of a kind of work that is not known here, or damaged: the map is of the others and says so."""
    statement, words, status = damage
    url = laid(f"sqlite:///{tmp_path}/advisor.db")
    monkeypatch.setenv("ADVISOR_DATABASE_URL", url)
    with Store.open(url, write=True) as opened:
        for name in (EVEN, PADDED):
            tuned(opened, landscapes[name], trials=2)
    with sqlite3.connect(tmp_path / "advisor.db") as connection:
        connection.execute(statement)
    connection.close()

    assert command("map", str(MODEL)) == 0
    told = capfd.readouterr()
    assert words in told.err
    assert (tmp_path / told.out.strip()).read_text().count(
        '<tr><th scope="row">'
    ) == 2  # a row of the map, one of the table
    assert command("report") == status  # of the newest that can be understood
    told = capfd.readouterr()
    assert words in told.err
    assert "no study" not in told.err
    with sqlite3.connect(tmp_path / "advisor.db") as connection:
        connection.execute(statement.replace("= 2", "> 0"))
    connection.close()
    for arguments in (["map", str(MODEL)], ["report"]):
        assert command(*arguments) == 2
        assert words in capfd.readouterr().err


def test_the_map_is_of_one_device(store: Store) -> None:
    """--on names another one, by key or by a part of its name; where nothing of it is stored, it says what there is."""
    key = find_model(str(MODEL)).architecture_key
    there = map_of(store, "qwen", key, "h200")

    assert [win.study.id for win in there.wins] == [4]
    assert map_of(store, "qwen", key, store.study(4).environment_key[:8]).device == there.device
    with pytest.raises(NotMeasured, match="H200"):
        map_of(store, "qwen", key, "T4")
    with pytest.raises(NotMeasured, match="advisor tune"):
        map_of(store, "other", "0" * 16)


def test_marks_have_letters_beyond_z() -> None:
    """However many win, each has a letter of its own."""
    assert [letter(mark) for mark in (0, 25, 26, 27, 52)] == ["A", "Z", "AA", "AB", "BA"]


# --------------------------------------------------------------------------------------------------------- the commands


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (("report", "1"), "advisor-report-1.html"),
        (("report", "--compare", "1", "3"), "advisor-report-1-3.html"),
        (("map", str(MODEL)), "advisor-map-qwen2.5-1.5b.html"),
        (("report", "1", "-o", "own.html"), "own.html"),
    ],
)
def test_a_command_writes_a_page_and_says_where(
    command: Callable[..., int],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    name: str,
) -> None:
    """Without -o it is a file in this folder; an older one is replaced, and nothing else is left beside it."""
    (tmp_path / name).write_text("older")

    assert command(*arguments) == 0
    assert capfd.readouterr() == (f"{name}\n", "")
    assert [file.name for file in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text(encoding="utf-8").startswith("<!DOCTYPE html>")


def test_a_link_stays_a_link(command: Callable[..., int], tmp_path: Path) -> None:
    """What it names is replaced."""
    (tmp_path / "real.html").write_text("older")
    (tmp_path / "link.html").symlink_to("real.html")

    assert command("report", "1", "-o", "link.html") == 0
    assert (tmp_path / "link.html").is_symlink()
    assert (tmp_path / "real.html").read_text(encoding="utf-8").startswith("<!DOCTYPE html>")


def test_a_link_to_itself_is_said_in_a_line(
    command: Callable[..., int], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Links that name one another lead to no file."""
    (tmp_path / "a.html").symlink_to("b.html")
    (tmp_path / "b.html").symlink_to("a.html")

    assert command("report", "1", "-o", "a.html") == 2
    said = capfd.readouterr().err
    assert said.startswith("advisor: -o: a.html ")
    assert said.count("\n") == 1


def test_a_name_may_be_as_long_as_a_file_system_takes(
    command: Callable[..., int], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """In bytes, of which a letter may have four; of a model's name is taken what any file system takes."""
    name = f"{'𝔪' * 62}.html"
    assert command("report", "1", "-o", name) == 0
    model = tmp_path / f"{'模' * 80}.json"
    model.write_text(MODEL.read_text())
    assert command("map", model.name) == 0
    assert capfd.readouterr().out.splitlines() == [name, "advisor-map--.html"]


def test_a_report_of_a_model_from_elsewhere_is_written_and_said(
    sqlite_url: str,
    tmp_path: Path,
    landscapes: dict[str, Landscape],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """A study's model that is not on this machine, whatever it is called there, is no reason to write nothing."""
    monkeypatch.setenv("ADVISOR_DATABASE_URL", laid(sqlite_url))
    with Store.open(sqlite_url, write=True) as opened:
        for name in ("/elsewhere/model", "/" + "long" * 500):
            tuned(opened, landscapes[EVEN], trials=2, source=replace(find_model(str(MODEL)), name=name))
            study = opened.studies()[0].id
            capfd.readouterr()
            assert run(["report", str(study), "-o", str(tmp_path / "page.html")]) == 0
            assert f"note: the code names the model of study {study} as it was measured" in capfd.readouterr().err


def test_a_page_goes_to_stdout(command: Callable[..., int], tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """`-o -` writes the page there and no file."""
    assert command("map", str(MODEL), "-o", "-") == 0
    assert capfd.readouterr().out.startswith("<!DOCTYPE html>")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "words", "status"),
    [
        (("report", "1", "-o", "nowhere/page.html"), "there is no folder nowhere", 2),
        (("report", "1", "-o", "."), "is a folder", 2),
        (("report", "1", "-o", ""), "is a folder", 2),
        (("report", "1", "-o", os.devnull), "is no regular file", 2),
        (("report", "1", "-o", "long" * 100), "can't be written: File name too long", 2),
        (("report", "77"), "there is no study 77", 2),
        (("report", "--compare", "1", "77"), "there is no study 77", 2),
        (("report", "1", "--compare", "1", "2"), "--compare A B", 2),
        (("report", "one"), "a study's number", 2),
        (("map", str(MODEL), "--on", "T4"), "no study of", 3),
        (("map", "nowhere/config.json"), "nowhere/config.json", 2),
    ],
)
def test_what_cannot_be_written_is_said_in_a_line(
    command: Callable[..., int],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    words: str,
    status: int,
) -> None:
    """One line says why, and no file is there."""
    assert command(*arguments) == status
    said = capfd.readouterr()
    assert said.out == ""
    assert words in said.err
    assert said.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_page_that_cannot_be_put_in_its_place_leaves_nothing(
    command: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Where the file can't be replaced, the older one stays, nothing half written is left, and one line says so."""
    (tmp_path / "page.html").write_text("older")

    def refuse(*_: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "replace", refuse)  # root may write anywhere, so permissions can't show it
    assert command("report", "1", "-o", "page.html") == 2
    assert capfd.readouterr().err == "advisor: page.html can't be written: Permission denied\n"
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("page.html", "older")]


def test_commands_without_pages_import_none_of_it() -> None:
    """`advisor --help` and `suggest` do without plotly and Jinja2, and nothing that makes page data needs them."""
    code = (
        "import sys, advisor.faces.commands, advisor.advice.suggest, advisor.show.report, advisor.pages.study_report; "
        "import advisor.pages.figures; print({'plotly', 'jinja2', 'torch'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)

    assert done.stdout == "set()\n"


# --------------------------------------------------------------------------------------------------------- in a browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Start a real Chromium."""
    with chromium() as started:
        yield started


@pytest.fixture(scope="module")
def pages(database: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Write a page of every kind, of what may be recommended and of what may not."""
    folder = tmp_path_factory.mktemp("html")
    with Store.open(database, write=False) as opened:
        source = find_model(str(MODEL))
        texts = {
            "report": report_html(report_of(opened, 1, source)),
            "none-right": report_html(report_of(opened, 5, source)),
            "compare": compared_html(compared(report_of(opened, 1), report_of(opened, 3))),
            "unfair": compared_html(compared(report_of(opened, 1), report_of(opened, 4))),
            "map": map_html(map_of(opened, source.name, source.architecture_key)),
        }
    for name, text in texts.items():
        (folder / f"{name}.html").write_text(text, encoding="utf-8")
    return {name: folder / f"{name}.html" for name in texts}


def shown(browser: Browser, file: Path, width: int = 1440, scheme: Any = "light") -> tuple[Page, Seen]:
    """Open a page, and keep what it asks for and says."""
    page, seen = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme), Seen()
    seen.watch(page)
    page.goto(file.as_uri())
    until(page, "[...document.querySelectorAll('.plot')].every(plot => plot.querySelector('.main-svg'))")
    return page, seen


@pytest.mark.parametrize("name", ["report", "none-right", "compare", "unfair", "map"])
def test_a_page_is_quiet_fits_and_is_accessible(browser: Browser, pages: dict[str, Path], name: str) -> None:
    """It asks for no other file, says nothing on the console, does not scroll sideways, and axe finds no violation.

    On a telephone and on a desktop, light and dark, with all that is folded opened.
    """
    page, seen = shown(browser, pages[name])
    page.evaluate("document.querySelectorAll('details').forEach(each => { each.open = true; })")
    for width, scheme in product((360, 1440), ("light", "dark")):
        page.set_viewport_size({"width": width, "height": 900})
        page.emulate_media(color_scheme=scheme)
        until(page, f"[...document.querySelectorAll('.main-svg')].every(plot => plot.clientWidth <= {width})")
        assert [(width, scheme, *each) for each in violations(page)] == []
        assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert seen.requests == [pages[name].as_uri()]
    assert seen.said == []
    assert page.evaluate(f"typeof Plotly === 'undefined' ? [] : {INVALID_CHARTS}") == []
    page.close()


def test_charts_follow_light_and_dark(browser: Browser, pages: dict[str, Path]) -> None:
    """Their text has the page's own colour, also when that turns while the page is open."""
    page, _ = shown(browser, pages["report"])
    ink = "getComputedStyle(document.querySelector('.plot .xtick text')).fill === getComputedStyle(document.body).color"

    assert page.evaluate(ink)
    before = page.evaluate("getComputedStyle(document.body).color")
    page.emulate_media(color_scheme="dark")
    until(page, ink)
    assert page.evaluate("getComputedStyle(document.body).color") != before
    page.close()


#: Of every chart, whether its labels are inside it and apart, and how many it has.
_LABELS = """[...document.querySelectorAll('.plot')].map(plot => [plot.getBoundingClientRect(),
  [...plot.querySelectorAll('.annotation-text')].map(text => text.getBoundingClientRect())]).map(([edge, labels]) => [
  labels.every(one => one.left >= edge.left - 1 && one.right <= edge.right + 1 && one.top >= edge.top - 1),
  labels.every((one, place) => labels.slice(place + 1).every(other => one.right <= other.left || other.right <= one.left
    || one.bottom <= other.top || other.bottom <= one.top)), labels.length])"""


def test_labels_of_charts_stay_inside_and_apart(browser: Browser, pages: dict[str, Path]) -> None:
    """No label of a chart is cut off by its edge or lies on another one, on a telephone too."""
    for name in ("report", "compare"):
        page, _ = shown(browser, pages[name], 360)
        found = page.evaluate(_LABELS)
        assert [(inside, apart) for inside, apart, _ in found] == [(True, True)] * len(found)
        assert max(count for *_, count in found) >= 2
        page.close()


def test_charts_of_few_points_can_be_read_on_a_telephone(
    browser: Browser, tmp_path: Path, sqlite_url: str, landscapes: dict[str, Landscape]
) -> None:
    """Where the default stays, its label is inside, wherever its point is; a ratio's axis counts in powers of ten."""
    with Store.open(laid(sqlite_url), write=True) as opened:
        report = report_of(opened, tuned(opened, landscapes[PADDED], trials=3, blocks=0))
    (middle,) = [point for point in report.points if point.is_default]
    for name, share in {"left": 0.6, "right": 1.4, "middle": 1.0}.items():
        others = [
            replace(middle, is_default=False, role=Role.RIGHT, quality=3.2e-4 * factor, peak_bytes=int(2**33 * factor))
            for factor in (0.5, 1.5)
        ]
        moved = replace(middle, quality=3.2e-4 * share, peak_bytes=int(2**33 * share))
        file = tmp_path / f"{name}.html"
        file.write_text(report_html(replace(report, points=(moved, *others))), encoding="utf-8")
        page, seen = shown(browser, file, 360)
        assert [(inside, apart) for inside, apart, _ in page.evaluate(_LABELS)][:2] == [(True, True)] * 2
        ticks = page.evaluate(
            "[...document.querySelectorAll('[data-figure=figure-quality] .xtick')].map(tick => tick.textContent)"
        )
        assert ticks
        assert all(re.fullmatch(r"\d(\.\d+)?e−\d+", tick) for tick in ticks), ticks
        assert seen.said == []
        page.close()


def test_code_is_copied_by_keyboard(browser: Browser, pages: dict[str, Path]) -> None:
    """The button is reached by Tab, says that it copied, and what was copied are the lines to paste."""
    page, _ = shown(browser, pages["report"])
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
    for _ in range(20):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.tagName") == "BUTTON":
            break
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.keyboard.press("Enter")
    until(page, "document.getElementById('loading-said').textContent === 'copied'")

    assert page.evaluate("navigator.clipboard.readText()") == page.evaluate(
        "document.getElementById('loading').textContent"
    )
    page.close()


def test_a_page_needs_no_script_to_be_read(browser: Browser, pages: dict[str, Path]) -> None:
    """Without JavaScript the answer, the code and every figure are there; a button that could do nothing is not."""
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(pages["report"].as_uri())

    assert page.locator("#loading").is_visible()
    assert page.locator("button").first.is_hidden()
    assert page.locator("#trials ~ details tbody tr").count() > 20
    context.close()


def test_nothing_in_a_database_becomes_markup(
    browser: Browser, tmp_path: Path, sqlite_url: str, landscapes: dict[str, Landscape]
) -> None:
    """A model's name and a trial's reason are text in the title, the tables, the code and the charts, whatever they are."""
    recorded = landscapes[EVEN]
    failed = {
        "outcome": Outcome.RUNTIME_ERROR,
        "reason": HOSTILE,
        "effective": None,
        "measurements": (),
        "quality": None,
    }
    broken = [trial if trial.requested == recorded.baseline else replace(trial, **failed) for trial in recorded.trials]
    source = replace(find_model(str(MODEL)), name=HOSTILE, weights="trained", weights_digest=HOSTILE)
    with Store.open(laid(sqlite_url), write=True) as opened:
        tuned(opened, replace(recorded, trials=tuple(broken)), source=source)
        report = report_of(opened, 1)
        texts = [
            report_html(report),
            compared_html(compared(report, report)),
            map_html(map_of(opened, HOSTILE, source.architecture_key)),
        ]
    assert HOSTILE in [point.reason for point in report.failures]
    seen_name = HOSTILE.replace("\u202e", "\\u202e")
    for number, text in enumerate(texts):
        file = tmp_path / f"{number}.html"
        file.write_text(text, encoding="utf-8")
        page, seen = shown(browser, file)
        assert page.evaluate("window.led") is None
        assert page.locator("img").count() == 0
        assert (seen.requests, seen.said) == ([file.as_uri()], [])
        assert seen_name in page.evaluate("document.body.innerText")
        assert "\u202e" not in text
        page.close()


def test_a_label_of_a_chart_is_no_markup(browser: Browser, tmp_path: Path, store: Store) -> None:
    """Plotly reads tags in texts: a configuration that looks like some is shown as it is."""
    name = "<b>x</b><a href='javascript:1'>&lt;y"
    report = report_of(store, 1)
    finalists = tuple(replace(each, configuration=name) for each in report.finalists)
    file = tmp_path / "page.html"
    file.write_text(report_html(replace(report, finalists=finalists)), encoding="utf-8")
    page, _ = shown(browser, file)
    texts = page.evaluate(
        "[...document.querySelectorAll('[data-figure=figure-blocks] .annotation-text')].map(t => t.textContent)"
    )

    assert texts == [name] * len(finalists)
    assert page.locator(".plot a").count() == 0
    page.close()


def test_a_label_goes_where_nothing_is() -> None:
    """It leaves a side where points are, the edges, and other labels alone."""
    reach = (0.0, 100.0)
    middle, crowd = (50.0, 50.0), [(62.0 + x, 60.0) for x in range(8)]

    (free,) = labels([(middle, "name")], [middle], reach, reach)
    (crowded,) = labels([(middle, "name")], [middle, *crowd], reach, reach)
    (edge,) = labels([((99.0, 99.0), "name")], [], reach, reach)
    first, second = labels([(middle, "name"), ((50.0, 50.5), "other")], [], reach, reach)
    assert (free["ax"] > 0, free["ay"] < 0) == (True, True)
    assert (crowded["ax"] > 0, crowded["ay"] < 0) != (True, True)
    assert (edge["ax"] < 0, edge["ay"] > 0) == (True, True)
    assert (first["ax"], first["ay"]) != (second["ax"], second["ay"])


def test_ratios_beyond_all_sense_are_short() -> None:
    """The interval of two blocks that differ wildly can reach to the end of the floats."""
    assert [times(ratio) for ratio in (None, 1.2345, 1e304, 1e-304)] == ["–", "1.234", "1.0e+304", "1.0e-304"]


def test_a_page_lets_nothing_in(pages: dict[str, Path]) -> None:
    """Its policy allows its own scripts by their hash and no request at all; it names no other host in its own markup."""
    for file in pages.values():
        text = file.read_text(encoding="utf-8")
        policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)
        assert policy is not None
        assert "default-src 'none'" in policy.group(1)
        assert "unsafe" not in policy.group(1).replace("style-src 'unsafe-inline'", "")
        markup = re.sub(r"<script>.*?</script>", "", text, flags=re.DOTALL)
        assert re.findall(r"<(?:link|iframe|img|script)[^>]*(?:src|href)=", markup) == []
        for data in re.findall(r'<script type="application/json"[^>]*>(.*?)</script>', text):
            assert "<" not in data
            assert json.loads(data)["data"]

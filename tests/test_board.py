"""The daemon's pages in a real browser: real jobs, slots and studies over HTTP. They follow what changes, and let nothing in."""

from __future__ import annotations

import asyncio
import gzip
import json
import re
import secrets
import shlex
import threading
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from itertools import product
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
import uvicorn
from browsing import HOSTILE, INVALID_CHARTS, Seen, chromium, until, violations
from fastapi import FastAPI, Request
from fastapi.responses import StreamingResponse
from made_databases import laid
from playwright.sync_api import Browser, BrowserContext, Page

from advisor.asking.submission import Submission
from advisor.daemon import engine
from advisor.faces.arguments import build_parser
from advisor.machine.leftovers import owner
from advisor.measure.landscape import Landscape, read_landscapes
from advisor.measure.replay import ReplayRunner
from advisor.models.checkpoint import find_model
from advisor.nouns.environment import Machine
from advisor.nouns.model import ModelSource
from advisor.nouns.objective import Budget
from advisor.nouns.step import Done
from advisor.pages.board import PAGE, board_of, flags_of, job_page_of
from advisor.pages.short import best_so_far
from advisor.pages.study_report import report_of
from advisor.storage.store import Store
from advisor.study.next_step import next_step
from advisor.study.opening import opened
from advisor.study.tune import carried_out, tune
from advisor.study.tuning import Job as Tuning
from advisor.web.pages import router
from advisor.web.served import Limits, Served
from advisor.web.server import Server

ROOT = Path(__file__).parent.parent
MODEL = ROOT / "benchmarks" / "shapes" / "qwen2.5-1.5b.json"
PADDED = "h100-qwen2.5-1.5b-8x2048-padding-0.4"
GPU, OTHER_GPU = "GPU-11111111-2222-3333-4444-555555555555", "GPU-99999999-2222-3333-4444-555555555555"

#: How long something may take until it is seen without a reload, seconds: the event, the question, and two busy cores.
SEEN_S = 20.0

#: The strictest policy that a daemon can send with every page: scripts by nonce alone, not by their place.
POLICY = (
    "default-src 'none'; script-src 'nonce-{nonce}'; style-src 'unsafe-inline'; img-src data: blob:; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)


@pytest.fixture(scope="module")
def landscape() -> Landscape:
    """Read what was recorded on a GPU."""
    return read_landscapes(ROOT / "tests" / "landscapes")[PADDED]


def asked_of(landscape: Landscape, *, batch: int = 8, source: ModelSource | None = None) -> Tuning:
    """Return a tune of what was recorded."""
    machine = Machine(landscape.environment, "host", GPU, 0, 70 * 2**30)
    workload = replace(landscape.workload, batch=batch)
    return Tuning(source or find_model(str(MODEL)), workload, landscape.objective, Budget(trials=30, blocks=9), machine)


def tuned(store: Store, landscape: Landscape, **asked: Any) -> int:
    """Tune on a recording and return the study: the loop, the rows and the advice are the real ones."""
    return tune(asked_of(landscape, **asked), store, ReplayRunner(landscape, seed=1), lambda _: None)


# ------------------------------------------------------------------------------------------------------------ the daemon


class _Still(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        """Follow no redirection."""


@dataclass
class Daemon:
    """A daemon's database with jobs and slots, and where its pages are served in this process."""

    served: Served
    landscape: Landscape
    address: str = ""

    def submit(self, model: str = "org/model", priority: int = 0, **given: Any) -> str:
        """Have a job wait; return its id."""
        return self.served.jobs.submit(Submission(model, given, priority, self.landscape.environment.device_class))

    def asked(self, place: str, form: Mapping[str, str] | None = None, **headers: str) -> tuple[int, Any, bytes]:
        """Ask for a page, or post a form; return the status, the headers and what comes."""
        data = None if form is None else urlencode(form).encode()
        request = urllib.request.Request(f"{self.address}{place}", data, headers)
        try:
            with urllib.request.build_opener(_Still()).open(request, timeout=30) as answer:
                return answer.status, answer.headers, answer.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.headers, error.read()


def told(served: Served, request: Request, stopping: threading.Event) -> StreamingResponse:
    """Tell of jobs and their trials as they change, as the API does, until nobody listens or the server ends."""

    def standing() -> str:
        return json.dumps([(job["id"], job["state"], job["trials"]) for job in served.listed(None, 0, PAGE)])

    async def events() -> AsyncIterator[str]:
        last = ""
        while not stopping.is_set() and not await request.is_disconnected():
            now = await asyncio.to_thread(standing)
            yield f"event: job\ndata: {now}\n\n" if now != last else ": still here\n\n"
            last = now
            await asyncio.sleep(0.3)

    return StreamingResponse(events(), media_type="text/event-stream")


def guarded(app: FastAPI) -> Callable[..., Any]:
    """Return an application whose answers have a strict policy, with a nonce that its routes are told."""

    async def answer(scope: Any, receive: Any, send: Any) -> None:
        nonce = secrets.token_urlsafe(16)
        header = (b"content-security-policy", POLICY.format(nonce=nonce).encode())

        async def sent(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], header]
            await send(message)

        if scope["type"] == "http":
            scope.setdefault("state", {})["nonce"] = nonce
        await app(scope, receive, sent)

    return answer


@contextmanager
def serving(daemon: Daemon, port: int = 0) -> Iterator[Daemon]:
    """Serve the pages with uvicorn, on a port that is free where none is named."""
    app = FastAPI()
    app.include_router(router(daemon.served))
    stopping = threading.Event()

    async def events(request: Request) -> StreamingResponse:
        return told(daemon.served, request, stopping)

    app.add_api_route("/api/v1/events", events, response_model=None)
    config = uvicorn.Config(guarded(app), port=port, log_level="warning", timeout_graceful_shutdown=60)
    server = Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    waited(lambda: server.started)
    try:
        port = server.servers[0].sockets[0].getsockname()[1]
        yield replace(daemon, address=f"http://127.0.0.1:{port}")
    finally:
        stopping.set()
        server.should_exit = True
        thread.join()


def waited(condition: Callable[[], Any]) -> Any:
    """Wait until something holds, and return it."""
    until_s = time.monotonic() + SEEN_S
    while time.monotonic() < until_s:
        if found := condition():
            return found
        time.sleep(0.05)
    raise AssertionError("it never came")


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory, landscape: Landscape) -> Iterator[Daemon]:
    """Make a daemon's database: study 1 is done, two slots are there, one of them idle."""
    url = laid(f"sqlite:///{tmp_path_factory.mktemp('board')}/advisor.db")
    engine.prepare(url)
    served = Served.open(url, Limits())
    tuned(served.store, landscape)
    for name in (GPU, OTHER_GPU):
        assert served.roster.enter(name, "gpu1", landscape.environment, owner())
    yield Daemon(served, landscape)
    served.close()


@pytest.fixture(scope="module")
def daemon(kept: Daemon) -> Iterator[Daemon]:
    """Serve it."""
    with serving(kept) as there:
        yield there


@pytest.fixture(autouse=True)
def _there(kept: Daemon) -> None:
    """Have both slots say that they are there, as a slot does every few seconds."""
    kept.served.roster.beat(GPU, owner(), "idle")
    kept.served.roster.beat(OTHER_GPU, owner(), "waiting", "a process of somebody else's computes on it")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Start a real Chromium."""
    with chromium() as started:
        yield started


@pytest.fixture
def context(browser: Browser) -> Iterator[BrowserContext]:
    """Open a window of its own for a test."""
    opened = browser.new_context()
    yield opened
    opened.close()


def visited(context: BrowserContext, daemon: Daemon, place: str) -> tuple[Page, Seen]:
    """Open a page, mark it so that a reload would be seen, and keep what it asks for and says."""
    page, seen = context.new_page(), Seen()
    seen.watch(page)
    page.goto(f"{daemon.address}{place}")
    page.evaluate("window.stayed = true")
    until(page, "[...document.querySelectorAll('.plot')].every(plot => plot.querySelector('.main-svg'))")
    return page, seen


def is_quiet(daemon: Daemon, seen: Seen) -> bool:
    """Whether a page asked this daemon alone, and its console said nothing."""
    assert seen.said == []
    assert [url for url in seen.requests if not url.startswith((f"{daemon.address}/", "data:", "blob:"))] == []
    return True


@dataclass
class Work:
    """A slot that tunes jobs on a recording, a trial whenever it is let. The jobs are DBOS's, the studies the store's."""

    daemon: Daemon
    url: str
    failures: list[BaseException] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Let nothing go on yet."""
        self.may_go_on, self.ended = threading.Semaphore(0), threading.Event()

    def perform(self, name: str, _: int) -> str:
        """Tune a job, with a batch of its own so that its study is another one; see `engine.at_work`."""
        served = self.daemon.served
        served.roster.beat(GPU, owner(), "busy", "", name)

        landscape = self.daemon.landscape
        tuning = asked_of(landscape, batch=int(served.jobs.job(name).submission.given["batch"]))
        try:
            with (
                Store.open(self.url, write=True) as store,
                opened(tuning, store, ReplayRunner(landscape, seed=1), self.hear, time.monotonic) as tuner,
            ):
                served.jobs.tell(name, study=tuner.study)
                while not isinstance(step := next_step(seen := tuner.snapshot()), Done):
                    carried_out(tuner, seen, step)
        except BaseException as error:
            self.failures.append(error)
            raise
        finally:
            self.ended.set()
        return ""

    def hear(self, event: Mapping[str, Any]) -> None:
        """Wait after each trial until the next may begin."""
        if event["event"] == "trial":
            self.may_go_on.acquire(timeout=60)

    def let(self, trials: int) -> None:
        """Let so many trials more end."""
        self.may_go_on.release(trials)


@pytest.fixture
def work(daemon: Daemon) -> Iterator[Work]:
    """Have a slot take jobs up while a test lasts, from now on: what waits already is cancelled."""
    slot, stop, jobs = Work(daemon, daemon.served.url), threading.Event(), daemon.served.jobs
    for job in jobs.page("queued", most=1000):
        jobs.cancel(job.id)

    def run() -> None:
        with engine.at_work(slot.url, GPU, daemon.landscape.environment.device_class, slot.perform):
            stop.wait()

    thread = threading.Thread(target=run)  # a thread of its own: playwright's event loop is this one's
    thread.start()
    yield slot
    slot.let(1000)
    assert slot.ended.wait(60)
    waited(lambda: not jobs.running_on([GPU]))
    stop.set()
    thread.join()
    assert slot.failures == []


# ------------------------------------------------------------------------------------------------------ what pages show


@pytest.mark.parametrize(
    ("given", "flags"),
    [
        ({}, ""),
        ({"lengths": [512, 64], "batch": "auto"}, "--lengths 512,64 --batch auto"),
        ({"padding": 0, "max_memory": None, "exhaustive": True, "allow_unjudged": False}, "--padding 0 --exhaustive"),
        ({"only": {"precision": ["fp32", "tf32"]}}, "--only precision=fp32,tf32"),
        ({"ignore_rule": ["P1", "P2"], "on": "H100 80GB"}, "--ignore-rule P1 --ignore-rule P2 --on 'H100 80GB'"),
    ],
)
def test_what_is_asked_is_spelled_as_flags(given: dict[str, Any], flags: str) -> None:
    """What a job asks for can be pasted behind `advisor tune MODEL`; 0 is given, None and False are not."""
    assert flags_of(given) == flags


def test_a_jobs_page_says_what_submits_the_same_again(kept: Daemon) -> None:
    """And what tunes the same without a daemon: the parsers take both, and `tune` knows no other host's device."""
    given = {"lengths": "8,16", "batch": 2, "on": kept.landscape.environment.device_class, "exhaustive": True}
    payload = {**kept.served.jobs.job(kept.submit()).payload, "given": given, "priority": 3}
    job = job_page_of(payload, []).job

    for command, verb in ((job.submit_command, "submit"), (job.tune_command, "tune")):
        told = vars(build_parser().parse_args(shlex.split(command)[1:]))
        assert (told["command"], told["lengths"], told["exhaustive"]) == (verb, "8,16", True)
        assert told.get("on") == (given["on"] if verb == "submit" else None)
        assert told.get("priority") == (3 if verb == "submit" else None)


def test_the_board_says_when_and_how_many(kept: Daemon) -> None:
    """Jobs say how long they wait, run or took; a page has so many, and names the pages beside it."""
    now = datetime(2026, 5, 1, 12, tzinfo=UTC)
    job = {**kept.served.jobs.job(kept.submit()).payload, "submitted_at": (now - timedelta(hours=2)).isoformat()}
    slots = [slot.payload for slot in kept.served.roster.slots()]
    started, ended = (now - timedelta(minutes=30)).isoformat(), (now - timedelta(minutes=10)).isoformat()
    jobs = [
        job,
        {**job, "state": "running", "started_at": started, "slot": GPU},
        {**job, "state": "done", "started_at": started, "finished_at": ended, "answer": "faster 2.00 ×: x"},
    ]
    board = board_of(jobs, slots, {"a device": 1}, now=now)

    assert [each.when for each in board.jobs] == [
        "submitted 2.0 h ago",
        "running for 30 min",
        "took 20 min, ended 10 min ago",
    ]
    assert [each.about for each in board.jobs] == ["", "", "faster 2.00 ×: x"]
    assert board.said == "1 job queued. 0 of 2 slots busy."
    assert (board.newer, board.older) == (None, None)
    second = board_of([job] * (PAGE + 1), slots, {}, state="queued", first=PAGE, now=now)
    assert (second.newer, second.older) == ("/?state=queued", f"/?state=queued&first={2 * PAGE}")
    assert len(second.jobs) == PAGE


def test_the_best_so_far_is_where_the_search_stands(kept: Daemon) -> None:
    """It is the last step of the search's path, with the configuration that reached it."""
    report = report_of(kept.served.store, 1)
    words = best_so_far(report)
    best = max(
        (point for point in report.searched if point.role.value != "may not be recommended"), key=lambda p: p.value or 0
    )

    assert report.best_after(report.path[-1].number) in words
    assert best.configuration in words
    compared = {each.configuration: each.ratio for each in report.finalists}
    assert f"{compared[best.configuration]:.2f} × the default in " in words


# ------------------------------------------------------------------------------------------------------------ addresses


@pytest.mark.parametrize(
    ("place", "status", "words"),
    [
        ("/studies/77", 404, "there is no study 77"),
        ("/studies/x", 404, "there is no such study"),
        (f"/studies/{'9' * 30}", 404, "there is no such study"),
        ("/jobs/zzzz", 404, "there is no job"),
        ("/jobs/%25", 404, "there is no such job"),
        ("/map", 422, "a map is of one model"),
        ("/map?model=%00", 404, "no study of this model"),
        (f"/map?{urlencode({'model': '<script>alert(1)</script>'})}", 404, "no study of this model"),
        (f"/map?{urlencode({'model': str(MODEL), 'on': HOSTILE})}", 404, "no study of"),
        ("/?state=dreaming", 422, "no job is ever of this state"),
        ("/?first=x", 422, "first is wrong in it"),
        ("/?first=-1", 422, "first must be"),
        ("/studies?first=99999999999999999999", 422, "first must be"),
        ("/static/page.js", 404, "no such file"),
        ("/static/..%2f..%2fversion.py", 404, ""),
    ],
)
def test_a_wrong_address_is_a_page_that_says_so(daemon: Daemon, place: str, status: int, words: str) -> None:
    """Its status is HTTP's, its text one line, and nothing of the address is markup."""
    found, headers, body = daemon.asked(place)

    assert found == status
    if words:
        assert headers["Content-Type"].startswith("text/html")
        assert words in body.decode()
        assert 'nav aria-label="Pages"' in body.decode()
    assert b"<script>" not in body
    assert b"<img" not in body


def test_scripts_are_kept_and_pages_are_not(daemon: Daemon) -> None:
    """Plotly's script is fetched once, packed, from a place with its version in it; a page is asked for anew each time."""
    _, headers, body = daemon.asked("/studies/1")
    places = re.findall(r'<script src="([^"]*)"', body.decode())

    assert headers["Cache-Control"] == "no-store"
    assert len(body) < 200_000
    assert [re.sub(r"[0-9a-f.]{5,}", "V", place) for place in places] == [
        "/static/plotly-Vmin.js",
        "/static/page-V.js".replace("V.js", "Vjs"),
        "/static/live-Vjs",
    ]
    for place in places:
        plain, packed = daemon.asked(place), daemon.asked(place, **{"Accept-Encoding": "gzip"})
        assert (plain[0], packed[0]) == (200, 200)
        assert "immutable" in plain[1]["Cache-Control"]
        assert packed[1]["Content-Encoding"] == "gzip"
        assert gzip.decompress(packed[2]) == plain[2]


# --------------------------------------------------------------------------------------------------------- in a browser


def test_the_board_follows_jobs_without_a_reload(context: BrowserContext, daemon: Daemon) -> None:
    """A job that comes is shown, and one that is cancelled on its page changes where it is listed; focus stays where it was."""
    first = daemon.submit("org/first", lengths="128")
    page, seen = visited(context, daemon, "/")
    page.focus(f"#job-{first} a")
    page.wait_for_timeout(4000)  # it has heard how things stand, and asks by itself every 10 s from now on
    second = daemon.submit("org/second", priority=7, lengths="64,32", batch="auto")
    until(page, f"!!document.getElementById('job-{second}')", 5.0)  # it is told
    card = page.locator(f"#job-{second}")

    assert "org/second" in card.inner_text()
    assert "--lengths 64,32 --batch auto" in card.inner_text()
    assert "priority 7" in card.inner_text()
    assert "a process of somebody else's computes on it" in page.locator(f"#slot-{OTHER_GPU}").inner_text()
    assert page.evaluate("document.activeElement.closest('li').id") == f"job-{first}"
    other, other_seen = visited(context, daemon, f"/jobs/{second}")
    assert not other.get_by_role("button", name="Yes, cancel it").is_visible()  # it asks first
    other.locator("#cancel summary").press("Enter")
    other.get_by_role("button", name="Yes, cancel it").press("Enter")
    until(other, "document.getElementById('said').textContent === 'This job was cancelled.'", SEEN_S)
    assert other.locator("#cancel").count() == 0
    page.bring_to_front()
    until(page, f"document.querySelector('#job-{second} .state').textContent === 'cancelled'", SEEN_S)
    assert daemon.served.jobs.job(second).state == "cancelled"
    assert len([url for url in seen.requests if url.endswith("/api/v1/events")]) == 1
    assert page.evaluate("window.stayed")
    assert is_quiet(daemon, seen)
    assert is_quiet(daemon, other_seen)


#: How many points a page's chart of speed against memory has.
POINTS = "[...document.querySelectorAll('[data-figure=figure-memory]')].flatMap(plot => plot.data).flatMap(each => each.x).length"


def test_pages_follow_a_study_trial_by_trial(context: BrowserContext, daemon: Daemon, work: Work) -> None:
    """A job's page, its study's and the board get each trial without a reload; what is folded open stays; they end with it."""
    name = daemon.submit(str(MODEL), batch=4)
    number = waited(lambda: daemon.served.jobs.job(name).study)
    job, job_seen = visited(context, daemon, f"/jobs/{name}")
    work.let(4)
    until(job, f"{POINTS} >= 3", SEEN_S)
    study, study_seen = visited(context, daemon, f"/studies/{number}")
    study.locator("#trials ~ details summary").click()
    before = study.evaluate(POINTS)
    work.let(4)
    until(study, f"{POINTS} > {before}", SEEN_S)

    assert "This study is running" in study.locator("#said").inner_text()
    assert "run the same tune again" not in study.content()  # it runs already
    assert study.locator("#trials ~ details[open] tbody tr").count() > before
    board, board_seen = visited(context, daemon, "/")
    until(board, f"/best so far: .*tokens.s/.test(document.getElementById('job-{name}').innerText)", SEEN_S)
    assert f"study {number}" in board.locator(f"#job-{name}").inner_text()
    work.let(1000)
    for page, seen in ((study, study_seen), (job, job_seen), (board, board_seen)):
        page.bring_to_front()
        ended = f"document.querySelector('#job-{name} .state').textContent === 'done'" if page is board else _ENDED
        until(page, ended, 2 * SEEN_S)
        assert page.evaluate("window.stayed")
        assert is_quiet(daemon, seen)
    report = report_of(daemon.served.store, number)
    for page in (study, job):
        assert page.evaluate(INVALID_CHARTS) == []
        assert report.headline in page.locator("main").inner_text()
        assert page.evaluate(POINTS) == len(report.in_memory_chart)
        assert report.code is not None
        assert page.locator("#loading").text_content() == report.code.loading
        assert page.locator("#loading").is_visible()
        assert page.get_by_role("button", name="Copy the loading lines").is_visible()
    assert "faster" in board.locator(f"#job-{name}").inner_text()


#: Whether a page has seen that what it followed is over, and follows nothing any more.
_ENDED = "!document.body.dataset.follows && !/running|queued/.test(document.getElementById('said').textContent)"


def test_a_page_says_when_the_daemon_is_gone(context: BrowserContext, kept: Daemon) -> None:
    """What stood last stays, with a line that nothing is heard; once the daemon is back the line goes, without a reload."""
    with serving(kept) as there:
        page, _ = visited(context, there, "/")
        port = int(there.address.rpartition(":")[2])
    lost = "document.getElementById('lost').textContent"
    until(page, f"{lost}.startsWith('The daemon does not answer')", SEEN_S)
    assert page.locator(f"#slot-{GPU}").is_visible()
    with serving(kept, port):
        until(page, f"{lost} === ''", SEEN_S)
        assert page.evaluate("window.stayed")
        page.close()


def _every_page(daemon: Daemon) -> dict[str, str]:
    waiting = daemon.submit(str(MODEL), lengths=list(range(100, 900)), batch=8, only={"precision": ["fp32"]})
    return {
        "board": "/",
        "job": f"/jobs/{waiting}",
        "studies": "/studies",
        "study": "/studies/1",
        "map": f"/map?{urlencode({'model': str(MODEL)})}",
        "submit": "/submit",
        "wrong": "/studies/77",
    }


@pytest.mark.parametrize("name", ["board", "job", "studies", "study", "map", "submit", "wrong"])
def test_a_page_is_quiet_fits_and_is_accessible(context: BrowserContext, daemon: Daemon, name: str) -> None:
    """It asks nobody but the daemon, says nothing on the console, does not scroll sideways, and axe finds no violation."""
    page, seen = visited(context, daemon, _every_page(daemon)[name])
    page.evaluate("document.querySelectorAll('details').forEach(each => { each.open = true; })")
    for width, scheme in product((360, 1440), ("light", "dark")):
        page.set_viewport_size({"width": width, "height": 900})
        page.emulate_media(color_scheme=scheme)
        until(page, f"[...document.querySelectorAll('.main-svg')].every(plot => plot.clientWidth <= {width})")
        assert [(width, scheme, *each) for each in violations(page)] == []
        assert page.evaluate("document.documentElement.scrollWidth") <= width
    if name == "wrong":
        seen.said = [said for said in seen.said if "404" not in said]  # what the browser says of the address itself
    assert is_quiet(daemon, seen)


def test_nothing_in_a_database_becomes_markup(context: BrowserContext, daemon: Daemon) -> None:
    """A model's name, an option, why a job waits and what a slot is called are text, whatever they are."""
    served, name = daemon.served, daemon.submit(HOSTILE, only={HOSTILE: [HOSTILE]}, on=HOSTILE)
    served.jobs.tell(name, why=HOSTILE)
    assert served.roster.enter(HOSTILE, HOSTILE, daemon.landscape.environment, owner())
    served.roster.beat(HOSTILE, owner(), "waiting", HOSTILE, HOSTILE)
    number = tuned(served.store, daemon.landscape, batch=2, source=replace(find_model(str(MODEL)), name=HOSTILE))
    try:
        for place in ("/", f"/jobs/{name}", "/studies", f"/studies/{number}", f"/map?{urlencode({'model': HOSTILE})}"):
            page, seen = visited(context, daemon, place)
            assert HOSTILE.replace("\u202e", "\\u202e") in page.evaluate("document.body.innerText")
            assert page.evaluate("window.led") is None
            assert page.locator("img, main script").count() == 0
            assert is_quiet(daemon, seen)
            page.close()
    finally:
        served.roster.leave(HOSTILE)
        served.jobs.cancel(name)


def test_a_job_is_submitted_by_keyboard(context: BrowserContext, daemon: Daemon) -> None:
    """The form leads to the job's page; what it typed is what the job asks, and an empty field asks nothing."""
    page, seen = visited(context, daemon, "/")
    page.get_by_role("link", name="Submit a job").first.press("Enter")
    page.get_by_label("Model").fill("org/typed")
    page.keyboard.press("Tab")
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.keyboard.type("64,128")
    page.get_by_label("Batch").fill("auto")
    page.get_by_label("Budget").fill("2m")
    page.get_by_label("Priority").fill("3")
    page.get_by_label("Device").select_option(daemon.landscape.environment.device_class)
    page.keyboard.press("Tab")
    page.get_by_role("button", name="Submit").press("Enter")
    page.wait_for_url(re.compile(r"/jobs/[0-9a-z]+$"))
    job = daemon.served.jobs.job(page.url.rpartition("/")[2])

    on = daemon.landscape.environment.device_class
    assert dict(job.submission.given) == {"lengths": "64,128", "batch": "auto", "budget": "2m", "on": on}
    assert (job.submission.model, job.submission.priority) == ("org/typed", 3)
    assert "queued" in page.locator("#said").inner_text()
    assert is_quiet(daemon, seen)


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ({"model": "/etc/passwd"}, "is no hub id"),
        ({"model": ""}, "model must be a hub id"),
        ({"model": HOSTILE}, "is no hub id"),
        ({"model": "org/model", "budget": "9h"}, "budget: 32400 s is more than"),
        ({"model": "org/model", "lengths": "many"}, "lengths"),
        ({"model": "org/model", "batch": HOSTILE}, "batch must be"),
        ({"model": "org/model", "padding": "2x"}, "padding"),
        ({"model": "org/model", "priority": "first"}, "priority must be"),
        ({"model": "org/model", "on": "T4"}, "on T4 names no device"),
    ],
)
def test_what_can_not_be_submitted_is_said_beside_the_form(daemon: Daemon, typed: dict[str, str], words: str) -> None:
    """One line says why, what was typed is still there, nothing of it is markup, and no job came of it."""
    before = len(daemon.served.jobs.page(most=1000))
    status, _, body = daemon.asked("/submit", typed)
    text = body.decode()

    assert status in (409, 422)
    assert words in re.sub("<[^>]*>", "", text[text.index('role="alert"') :])
    assert "--" not in text[text.index('role="alert"') : text.index("</p>", text.index('role="alert"'))]
    assert 'value="org/model"' in text or typed["model"] != "org/model"
    assert "<script>" not in text
    assert "<img" not in text
    assert len(daemon.served.jobs.page(most=1000)) == before


def test_what_is_wrong_is_read_first(context: BrowserContext, daemon: Daemon) -> None:
    """After a form that was refused, focus is at the line that says why; axe finds nothing there."""
    page, _ = visited(context, daemon, "/submit")
    page.get_by_label("Model").fill("../elsewhere")
    page.get_by_role("button", name="Submit").click()
    until(page, "document.activeElement.id === 'error'")

    assert "is no hub id" in page.locator("#error").inner_text()
    assert page.get_by_label("Model").input_value() == "../elsewhere"
    assert violations(page) == []


def test_pages_work_without_script(browser: Browser, daemon: Daemon) -> None:
    """Without JavaScript the board is all there and reloads by itself, a report has its code, and a job can be cancelled."""
    name = daemon.submit("org/plain")
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(f"{daemon.address}/")

    assert page.locator(f"#job-{name}").is_visible()
    assert page.locator("meta[http-equiv=refresh]").get_attribute("content") == "10"
    page.goto(f"{daemon.address}/studies/1")
    assert page.locator("#loading").is_visible()
    assert page.locator("meta[http-equiv=refresh]").count() == 0  # it is done
    page.goto(f"{daemon.address}/jobs/{name}")
    page.get_by_text("Cancel this job").click()
    page.get_by_role("button", name="Yes, cancel it").click()
    page.wait_for_url(f"{daemon.address}/jobs/{name}")
    assert "This job was cancelled." in page.locator("#said").inner_text()
    context.close()

"""Who gets in, by which name, from which page, and what is let in with them: over HTTP, against the real server."""

from __future__ import annotations

import hmac
import json
import logging
import os
import socket
import threading
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from conftest import run_here
from daemons import MODELS, Daemon, Told, at_work, database, opened, recorded

from advisor.errors import BadInput
from advisor.measure.landscape import Landscape
from advisor.web import security
from advisor.web.security import COOKIE, Settings

TOKEN = "a-token-that-nobody-guesses-0123456789"
FORM = "application/x-www-form-urlencoded"

#: Every place that answers with what is in the database, or changes it.
PLACES = [
    ("GET", "/"),
    ("GET", "/submit"),
    ("POST", "/submit"),
    ("GET", "/studies"),
    ("GET", "/studies/1"),
    ("GET", "/jobs/x"),
    ("POST", "/jobs/x/cancel"),
    ("GET", "/map?model=org/model"),
    ("GET", "/docs"),
    ("GET", "/openapi.json"),
    ("GET", "/metrics"),
    ("POST", "/api/v1/jobs"),
    ("GET", "/api/v1/jobs"),
    ("GET", "/api/v1/jobs/x"),
    ("DELETE", "/api/v1/jobs/x"),
    ("GET", "/api/v1/jobs/x/events"),
    ("GET", "/api/v1/events"),
    ("GET", "/api/v1/suggest?model=org/model"),
    ("POST", "/api/v1/suggest"),
    ("GET", "/api/v1/trials?study=1"),
    ("GET", "/api/v1/studies"),
    ("GET", "/api/v1/environments"),
    ("GET", "/api/v1/nothing"),
    ("GET", "/static/../api/v1/jobs"),
    ("GET", "/login/../api/v1/jobs"),
    ("GET", "/api/v1/health/../jobs"),
    ("GET", "/api/v1/health%2f..%2fjobs"),
    ("GET", "//api/v1/jobs"),
    ("OPTIONS", "/api/v1/jobs"),
]


@pytest.fixture(scope="module")
def landscape() -> Landscape:
    """Read what was recorded."""
    return recorded()


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Make a daemon's database."""
    return database(f"sqlite:///{tmp_path_factory.mktemp('security')}/advisor.db")


@pytest.fixture(scope="module")
def guarded(url: str, landscape: Landscape) -> Iterator[Daemon]:
    """Serve it with a token."""
    with opened(url, landscape, model_root=MODELS) as served, at_work(served, token=TOKEN) as daemon:
        yield daemon


@pytest.fixture(scope="module")
def open_to_all(url: str, landscape: Landscape) -> Iterator[Daemon]:
    """Serve it without one, as on a loopback address."""
    with opened(url, landscape, model_root=MODELS) as served, at_work(served, allowed_hosts=("gpu1",)) as daemon:
        yield daemon


def logged_in(daemon: Daemon, token: str = TOKEN, **headers: str) -> Told:
    """Give the token as a browser's form does."""
    form = urlencode({"token": token}).encode()
    return daemon.post("/login", form, Authorization=None, Content_Type=FORM, **headers)


# --------------------------------------------------------------------------------------------------------------- tokens


@pytest.mark.parametrize(
    "authorization",
    [
        None,
        "",
        "Bearer",
        "Bearer ",
        f"Bearer {TOKEN[:-1]}",
        f"Bearer {TOKEN}x",
        f"Bearer {TOKEN.upper()}",
        f"Basic {TOKEN}",
        TOKEN,
        "Bearer \xe9\xff",
    ],
)
def test_without_the_token_nothing_is_told(guarded: Daemon, authorization: str | None) -> None:
    """Not one route answers, whatever is in its place: the same words for all of them."""
    for method, place in PLACES if authorization in (None, f"Bearer {TOKEN}x") else PLACES[:1] + PLACES[11:14]:
        told = guarded.ask(method, place, Authorization=authorization)
        if place.startswith("/login"):
            assert b"database" not in told.body
            assert told.status in (401, 404)
            continue
        if told.status == 404:  # a path that nobody serves
            assert "health" in place or "static" in place
            continue
        assert told.status == 401, (method, place)
        assert told.headers["WWW-Authenticate"] == "Bearer"
        assert told.problem["detail"] == "the token is missing or wrong"


def test_with_the_token_it_is(guarded: Daemon) -> None:
    """In any case of the scheme; health, and what a login page needs, are everybody's."""
    assert guarded.get("/api/v1/jobs").status == 200
    assert guarded.get("/metrics").status == 200
    assert guarded.get("/api/v1/jobs", Authorization=f"bearer  {TOKEN} ").status == 200
    for place in ("/api/v1/health", "/login"):
        assert guarded.get(place, Authorization=None).status == 200
    assert guarded.get(f"/api/v1/jobs?token={TOKEN}", Authorization=None).status == 401


def test_a_browser_gets_a_cookie_for_the_token(guarded: Daemon) -> None:
    """A page leads to the login, the login to a cookie that no script and no other site's page has, and that to the page."""
    led = guarded.get("/", Authorization=None, Accept="text/html")
    assert (led.status, led.headers["Location"]) == (303, "/login")
    page = guarded.get("/login", Authorization=None)
    assert b'type="password"' in page.body
    told = logged_in(guarded)
    assert (told.status, told.headers["Location"]) == (303, "/")
    cookie = told.headers["Set-Cookie"]
    parts = [part.strip().lower() for part in cookie.split(";")]
    assert {"httponly", "samesite=strict", "path=/"} <= set(parts)
    assert "secure" not in parts
    assert TOKEN not in cookie
    given = cookie.partition(";")[0]
    for place in ("/", "/api/v1/jobs", "/metrics"):
        assert guarded.get(place, Authorization=None, Cookie=given).status == 200
    assert guarded.get("/", Authorization=None, Cookie=f"other=1; {given}").status == 200
    assert "secure" in logged_in(guarded, X_Forwarded_Proto="https").headers["Set-Cookie"].lower()


@pytest.mark.parametrize("token", ["", "wrong", TOKEN[:-1], TOKEN + "x", "é" * 40, "\ud800"])
def test_a_wrong_token_gets_no_cookie(guarded: Daemon, token: str) -> None:
    """401, and the page again."""
    form = urlencode({"token": token.encode("utf-8", "surrogatepass")}).encode()
    told = guarded.post("/login", form, Authorization=None, Content_Type=FORM)
    assert (told.status, told.headers["Set-Cookie"]) == (401, None)
    assert b"That is not the token." in told.body


@pytest.mark.parametrize("body", [b"", b"token", b"a=1", b"&" * 50_000, b"token=" + b"%" * 1000, b"\xff\xfe"])
def test_a_form_that_is_none_gets_no_cookie(guarded: Daemon, body: bytes) -> None:
    """Whatever is posted."""
    told = guarded.post("/login", body, Authorization=None, Content_Type=FORM)
    assert (told.status, told.headers["Set-Cookie"]) == (401, None)


def test_a_cookie_of_another_process_is_refused(guarded: Daemon, landscape: Landscape) -> None:
    """It is of the daemon that gave it alone; so are signs that are none."""
    with opened(guarded.served.url, landscape) as served, at_work(served, token=TOKEN) as other:
        given = logged_in(other).headers["Set-Cookie"].partition(";")[0]
        assert other.get("/api/v1/jobs", Authorization=None, Cookie=given).status == 200
    for cookie in (
        given,
        f"{COOKIE}=",
        COOKIE,
        f"{COOKIE}={TOKEN}",
        f'{COOKIE}="\\351"',
        "\xff=\xff",
        ";;;=",
        f"{COOKIE}=a\tb",
    ):
        assert guarded.get("/api/v1/jobs", Authorization=None, Cookie=cookie).status == 401, cookie


def test_tokens_and_cookies_are_compared_in_constant_time(guarded: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each time by `hmac.compare_digest`, of the whole of both."""
    compared = list[tuple[bytes, bytes]]()

    def counted(one: bytes, other: bytes) -> bool:
        compared.append((one, other))
        return hmac.compare_digest(one, other)

    class Counted:
        compare_digest = staticmethod(counted)

    monkeypatch.setattr(security, "hmac", Counted)
    assert guarded.get("/api/v1/jobs").status == 200
    assert guarded.get("/api/v1/jobs", Authorization="Bearer wrong").status == 401
    assert logged_in(guarded, "also wrong").status == 401
    assert compared == [(given.encode(), TOKEN.encode()) for given in (TOKEN, "wrong", "also wrong")]
    cookie = logged_in(guarded).headers["Set-Cookie"].partition(";")[0]
    compared.clear()
    assert guarded.get("/api/v1/jobs", Authorization=None, Cookie=f"{COOKIE}=x").status == 401
    assert guarded.get("/api/v1/jobs", Authorization=None, Cookie=cookie).status == 200
    session = cookie.partition("=")[2].encode()
    assert compared == [(b"x", session), (session, session)]


@pytest.mark.parametrize(
    ("host", "token", "words"),
    [
        ("127.0.0.1", "short", "ADVISOR_TOKEN has 5 characters, and fewer than 16 are guessed"),
        ("0.0.0.0", "", "on 0.0.0.0 others reach the daemon, and it has no token .*leave --host out"),
        ("::", "", "on :: others reach the daemon"),
        ("gpu1", "", "on gpu1 others reach the daemon"),
        ("0.0.0.0", "x" * 15, "has 15 characters"),
        ("127.0.0.1", "geheimnis-mit-ümläut", "ADVISOR_TOKEN holds what no header takes"),
        ("127.0.0.1", "a-token-with-a-line's-end\n", "ADVISOR_TOKEN holds what no header takes"),
        ("127.0.0.1", "a-token-with-half-a-sign-\udcff", "ADVISOR_TOKEN holds what no header takes"),
    ],
)
def test_what_would_be_open_is_refused(host: str, token: str, words: str) -> None:
    """Before it listens, and without the token's own words."""
    with pytest.raises(BadInput, match=words) as refused:
        Settings(host=host, token=token).refuse_open()
    assert not token or token not in str(refused.value)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "localhost", "::1"])
def test_a_loopback_needs_no_token(host: str) -> None:
    """Nobody else reaches it."""
    Settings(host=host).refuse_open()
    Settings(host="0.0.0.0", token=TOKEN).refuse_open()
    assert TOKEN not in repr(Settings(token=TOKEN))


# ---------------------------------------------------------------------------------------------------------------- hosts


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "localhost:8420",
        "LOCALHOST",
        "localhost.",
        "127.0.0.1",
        "127.0.0.1:1",
        "127.9.9.9",
        "[::1]",
        "[::1]:80",
        "gpu1",
        "GPU1:8420",
        "gpu1.",
    ],
)
def test_a_daemon_is_called_by_its_names(open_to_all: Daemon, host: str) -> None:
    """Loopback's, its own, and those that were allowed."""
    assert open_to_all.get("/api/v1/jobs", Host=host).status == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.com",
        "evil.com:8420",
        "localhost.evil.com",
        "127.0.0.1.evil.com",
        "gpu1.evil.com",
        "evilgpu1",
        "10.0.0.1",
        "[::2]",
        "[::1",
        "localhost@evil.com",
        "evil.com/localhost",
        "evil.com#localhost",
        "evil.com?localhost",
        "",
        " ",
        ":80",
        "1",
        "\xe9",
    ],
)
def test_what_a_page_elsewhere_resolves_here_is_no_name(open_to_all: Daemon, host: str) -> None:
    """Every route is closed under it, health and login too."""
    for place in ("/api/v1/jobs", "/api/v1/health", "/login", "/", "/static/x.js"):
        told = open_to_all.get(place, Host=host)
        assert told.status in (400, 421), place
        if told.status == 421:
            assert told.problem["title"] == "not this daemon"
    assert open_to_all.post("/api/v1/jobs", {}, Host=host).status in (400, 421)


def addresses() -> list[str]:
    """Return this machine's addresses of IPv4, as the kernel lists them (`/proc/net/fib_trie` is what `ip addr` reads too)."""
    found = list[str]()
    lines = Path("/proc/net/fib_trie").read_text().splitlines()
    for above, line in pairwise(lines):
        if "/32 host LOCAL" in line:
            found.append(above.split()[-1])
    return sorted({each for each in found if not each.startswith(("127.", "169.254."))})


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_a_daemon_at_every_address_is_called_by_each(url: str, landscape: Landscape, host: str) -> None:
    """By those that this machine has and by its name; what a page elsewhere resolves here is no name of it."""
    with opened(url, landscape) as served, at_work(served, host=host, token=TOKEN) as daemon:
        for name in (*addresses(), socket.gethostname(), socket.gethostname().upper(), "localhost", "127.0.0.1"):
            assert daemon.get("/api/v1/jobs", Host=f"{name}:{daemon.port}").status == 200, name
        for name in ("evil.com", "198.51.100.77", f"{socket.gethostname()}.evil.com", "[2001:db8::77]", ""):
            assert daemon.get("/api/v1/jobs", Host=name).status in (400, 421), name
        assert "0.0.0.0" not in daemon.address
        assert "::" not in daemon.address.removeprefix("http://[")[:2]
        with urllib.request.urlopen(f"{daemon.address}/api/v1/health", timeout=10) as answer:
            assert answer.status == 200


def test_a_daemon_at_one_address_is_not_called_by_others(open_to_all: Daemon) -> None:
    """They lead to nothing of its own."""
    for name in addresses():
        assert open_to_all.get("/api/v1/jobs", Host=name).status == 421


def test_a_request_without_a_name_is_refused(open_to_all: Daemon) -> None:
    """HTTP/1.1 wants one."""
    assert open_to_all.get("/api/v1/jobs", Host=None).status in (400, 421)


# ---------------------------------------------------------------------------------------------------- pages of other sites


@pytest.mark.parametrize(
    "headers",
    [
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Sec-Fetch-Site": ""},
        {"Sec-Fetch-Site": "cross-site", "Origin": "http://localhost"},
        {"Origin": "http://evil.com"},
        {"Origin": "null"},
        {"Origin": ""},
        {"Origin": "http://["},
        {"Origin": "http://localhost:1"},
    ],
)
def test_a_page_of_another_site_changes_nothing(open_to_all: Daemon, headers: dict[str, str]) -> None:
    """By no method that changes something, to no place; reading is by the same-origin policy, for nothing says otherwise."""
    body = json.dumps({"model": "org/model", "given": {"lengths": "8"}}).encode()
    before = open_to_all.get("/api/v1/jobs").json
    for method, place in (
        ("POST", "/api/v1/jobs"),
        ("POST", "/api/v1/suggest"),
        ("DELETE", "/api/v1/jobs/x"),
        ("POST", "/submit"),
        ("POST", "/login"),
        ("POST", "/jobs/x/cancel"),
        ("PUT", "/api/v1/jobs"),
        ("PATCH", "/api/v1/jobs"),
    ):
        told = open_to_all.ask(method, place, body, **{"Content-Type": "application/json", **headers})
        assert (told.status, told.problem["title"]) == (403, "not from here"), (method, place)
    assert open_to_all.get("/api/v1/jobs").json == before


@pytest.mark.parametrize(
    "headers", [{}, {"Sec-Fetch-Site": "same-origin"}, {"Sec-Fetch-Site": "none"}, {"Origin": "own"}]
)
def test_our_pages_and_programs_do(open_to_all: Daemon, headers: dict[str, str]) -> None:
    """A program sends none of these headers."""
    own = {name: f"http://127.0.0.1:{open_to_all.port}" if text == "own" else text for name, text in headers.items()}
    asked = {"model": "org/model", "given": {"lengths": "8"}}
    told = open_to_all.post("/api/v1/jobs", asked, **own)
    assert told.status == 201
    assert open_to_all.ask("DELETE", told.headers["Location"], **own).json["state"] == "cancelled"


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS"])
def test_no_other_site_may_read(open_to_all: Daemon, method: str) -> None:
    """No answer has a CORS header, not even to a preflight, and each has what keeps a page to itself."""
    asked = {
        "Origin": "http://evil.com",
        "Access-Control-Request-Method": "DELETE",
        "Access-Control-Request-Headers": "x",
    }
    for place in (
        "/",
        "/login",
        "/docs",
        "/openapi.json",
        "/metrics",
        "/api/v1/jobs",
        "/api/v1/health",
        "/nothing",
        "/studies/x",
    ):
        told = open_to_all.ask(method, place, **asked)
        assert told.status in (200, 404, 405), place
        assert not [name for name in told.headers if name.lower().startswith("access-control")]
        assert told.headers["X-Content-Type-Options"] == "nosniff"
        assert told.headers["Referrer-Policy"] == "no-referrer"
        assert told.headers["Cache-Control"] == "no-store"
        assert told.headers["Server"] is None
        policy = dict(part.strip().partition(" ")[::2] for part in told.headers["Content-Security-Policy"].split(";"))
        assert policy["default-src"] == policy["frame-ancestors"] == policy["base-uri"] == "'none'"
        assert policy["script-src"] == policy["connect-src"] == policy["form-action"] == "'self'"
        assert "http" not in told.headers["Content-Security-Policy"]


def test_refusals_of_the_guard_have_the_headers_too(guarded: Daemon) -> None:
    """401, 403, 413 and 421 are not kept and not guessed at."""
    for told, status in (
        (guarded.get("/api/v1/jobs", Authorization=None), 401),
        (guarded.post("/api/v1/jobs", {}, Origin="http://evil.com"), 403),
        (guarded.post("/api/v1/jobs", b"", Content_Length="99999999"), 413),
        (guarded.get("/api/v1/jobs", Host="evil.com"), 421),
        (logged_in(guarded, "wrong"), 401),
        (logged_in(guarded), 303),
    ):
        assert told.status == status
        assert told.headers["Cache-Control"] == "no-store"
        assert told.headers["X-Content-Type-Options"] == "nosniff"
        assert "frame-ancestors 'none'" in told.headers["Content-Security-Policy"]


# ------------------------------------------------------------------------------------------------------- what is let in


@pytest.mark.parametrize("verb", ["jobs", "suggest"])
@pytest.mark.parametrize(
    "model",
    [
        "/etc/passwd",
        "../qwen2.5-1.5b.json",
        "x/../../secret",
        "~/x",
        "./qwen2.5-1.5b.json/..",
        "out",
        "out/passwd",
        "a\0b",
        "a/b/c",
        "..",
        ".",
        "file:///etc/passwd",
        "https://evil.com/x",
        "x" * 999,
        "\\\\host\\share",
        "-x",
        "\ud800",
    ],
)
def test_a_request_names_no_path_beside_the_root(
    tmp_path: Path, url: str, landscape: Landscape, verb: str, model: str
) -> None:
    """Also not by a link that leads out of it; the words are the same, whatever is there."""
    root = tmp_path / "models"
    root.mkdir()
    (root / "out").symlink_to("/etc")
    with opened(url, landscape, model_root=root) as served, at_work(served) as daemon:
        told = daemon.post(f"/api/v1/{verb}", {"model": model, "given": {"lengths": "8"}})
        assert told.status == 422
        assert told.problem["detail"].endswith("is no hub id, and no model that lies where this daemon's models are")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"allow_pickle": True}, "allow_pickle is decided by who runs the daemon, not by a request"),
        ({"allow_pickle": "yes"}, "allow_pickle"),
        ({"device": "cuda:1"}, "device is a machine's own"),
        ({"lengths_from": "/etc/passwd"}, "lengths_from names a file of this machine"),
        ({"trust_remote_code": True}, "has no option 'trust_remote_code'"),
        ({"database": "sqlite:////etc/passwd"}, "has no option 'database'"),
        ({"__class__": "x"}, "has no option '__class__'"),
    ],
)
@pytest.mark.parametrize("verb", ["jobs", "suggest", "get"])
def test_what_the_operator_decides_is_not_a_requests(
    open_to_all: Daemon, verb: str, given: dict[str, Any], words: str
) -> None:
    """Pickle, a device of this host, a file of it, and whatever nobody has: of a job, and of a question."""
    if verb == "get":
        told = open_to_all.get(f"/api/v1/suggest?{urlencode({'model': 'org/model', 'lengths': '8', **given})}")
    else:
        told = open_to_all.post(f"/api/v1/{verb}", {"model": "org/model", "given": {"lengths": "8", **given}})
    assert told.status == 422, told.body
    assert words in told.problem["detail"]


@pytest.mark.parametrize(
    "place",
    [
        "jobs/..%2f..%2fetc",
        "jobs/%2e%2e",
        "jobs/../../etc/passwd",
        "studies/%2e%2e%2f",
        "static/..%2f..%2fapp.py",
        "static/%2e%2e/app.py",
        "static/..\\app.py",
        "static/%00",
        "api/v1/jobs/%2e%2e%2fhealth",
        "api/v1/jobs/a%2fb",
    ],
)
def test_no_address_leads_out(open_to_all: Daemon, place: str) -> None:
    """Dots and slashes, spelled however, name nothing."""
    assert open_to_all.get(f"/{place}").status == 404


# -------------------------------------------------------------------------------------------------------------- secrets


def test_no_secret_is_told(
    url: str,
    landscape: Landscape,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whatever is asked, and whatever goes wrong: not in the log, on no stream, in no metric, in no answer."""
    told = list[Told]()
    with caplog.at_level(logging.DEBUG), opened(url, landscape) as served, at_work(served, token=TOKEN) as daemon:
        cookie = logged_in(daemon).headers["Set-Cookie"].partition(";")[0]
        for method, place in PLACES:
            if "events" in place:
                continue
            told += [
                daemon.ask(method, place),
                daemon.ask(method, place, Authorization=None, Cookie=cookie),
                daemon.ask(method, place, Authorization=f"Bearer {TOKEN}x"),
            ]
        told.append(daemon.get(f"/?token={TOKEN}", Authorization=None))

        def broken(*_: Any) -> None:
            raise RuntimeError("it broke")

        monkeypatch.setattr(served, "listed", broken)
        told.append(daemon.get("/api/v1/jobs"))
        assert told[-1].status == 500
    said = caplog.text + "".join(f"{vars(record)}" for record in caplog.records) + "".join(capfd.readouterr())
    session = cookie.partition("=")[2]
    for secret in (TOKEN, session):
        assert secret not in said
        assert not [each for each in told if secret in f"{each.headers}{each.body!r}"]
    assert "it broke" in said


class _Elsewhere(BaseHTTPRequestHandler):
    """Answers as its server was told to, and keeps what it was asked."""

    server: Elsewhere

    def _answer(self) -> None:
        self.server.asked.append((self.path, dict(self.headers)))
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.wfile.write(self.server.answer)
        self.close_connection = True

    do_GET = do_POST = do_DELETE = _answer  # noqa: N815 - http.server's names

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


class Elsewhere(ThreadingHTTPServer):
    """A server that is no daemon. answer: what it says, byte for byte."""

    answer = b""

    def __init__(self) -> None:
        """Listen on a port that is free."""
        super().__init__(("127.0.0.1", 0), _Elsewhere)
        self.asked: list[tuple[str, dict[str, str]]] = []
        self.url = f"http://127.0.0.1:{self.server_address[1]}"


@pytest.fixture
def elsewhere() -> Iterator[tuple[Elsewhere, Elsewhere]]:
    """Give two servers that are no daemons."""
    servers = Elsewhere(), Elsewhere()
    threads = [threading.Thread(target=server.serve_forever, args=(0.05,)) for server in servers]
    for thread in threads:
        thread.start()
    yield servers
    for server, thread in zip(servers, threads, strict=True):
        server.shutdown()
        thread.join()
        server.server_close()


COMMANDS = [
    ["jobs"],
    ["jobs", "x"],
    ["jobs", "--format", "json"],
    ["cancel", "x"],
    ["submit", "org/model", "--lengths", "8"],
    ["suggest", "org/model", "--lengths", "8"],
]


def http(status: str, body: str = "", **headers: str) -> bytes:
    """Return an answer as it goes over the wire."""
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *(f"{n}: {text}" for n, text in headers.items())]
    return "\r\n".join([*lines, "", body]).encode()


@pytest.mark.parametrize(
    "status", ["301 Moved", "302 Found", "303 See Other", "307 Temporary Redirect", "308 Permanent Redirect"]
)
@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_a_redirection_takes_no_token_elsewhere(
    elsewhere: tuple[Elsewhere, Elsewhere], command: list[str], status: str
) -> None:
    """The other host is not even asked; a line says what came."""
    first, other = elsewhere
    first.answer = http(status, Location=f"{other.url}/api/v1/jobs")
    ran = run_here(*command, "--server", first.url, ADVISOR_TOKEN=TOKEN)
    assert (ran.returncode, ran.stdout, ran.stderr.count("\n")) == (2, "", 1)
    assert f"answers with status {status[:3]}" in ran.stderr
    assert TOKEN not in ran.stderr
    assert first.asked[0][1]["Authorization"] == f"Bearer {TOKEN}"
    assert other.asked == []


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"SSH-2.0-OpenSSH_9.6\r\n",
        b"\x00\xff" * 100,
        b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\n{",
        b"HTTP/1.1 500 Oops\r\nContent-Length: 50\r\n\r\n{",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        http("200 OK", "<html>"),
        http("200 OK", "[]"),
        http("200 OK", "{}"),
        http("200 OK", '{"jobs": 3, "id": 4, "text": [], "exit_status": "x"}'),
        http("200 OK", '{"jobs": [3], "id": null, "exit_status": null, "state": null}'),
        http("200 OK", '{"jobs": [{}], "exit_status": []}'),
        http("404 Not Found", "<html>"),
        http("404 Not Found", '{"detail": "Not Found"}'),
        http("409 Conflict", '{"detail": "x", "reasons": 3}'),
        http("503 Away", "[]"),
        http("401 Who", "{}"),
        http("200 OK", "[" * 100_000),
    ],
    ids=lambda answer: repr(answer[:40]),
)
@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_what_is_no_daemon_is_told_in_a_line(
    elsewhere: tuple[Elsewhere, Elsewhere], command: list[str], answer: bytes
) -> None:
    """Whatever answers there."""
    first, _ = elsewhere
    first.answer = answer
    ran = run_here(*command, "--server", first.url, ADVISOR_TOKEN=TOKEN)
    assert ran.returncode in (2, 3, 4), ran
    assert (ran.stdout, ran.stderr.count("\n")) == ("", 1), ran
    assert ran.stderr.startswith("advisor: ")
    assert TOKEN not in ran.stderr


@pytest.mark.parametrize(
    "token", ["a-token-with-a-line's-end\n", "token\r\nX-Other: 1", "geheimnis-\u4e2d", "half-\udcff"]
)
def test_a_token_that_no_header_takes_is_not_told(open_to_all: Daemon, token: str) -> None:
    """A line says so without it, and nothing is asked."""
    ran = run_here("jobs", "--server", open_to_all.address, ADVISOR_TOKEN=token)
    assert (ran.returncode, ran.stdout, ran.stderr.count("\n")) == (2, "", 1)
    assert "ADVISOR_TOKEN holds what no header takes" in ran.stderr
    assert token.split(maxsplit=1)[0] not in ran.stderr


@pytest.mark.parametrize(
    "server",
    [
        "http://",
        "gpu1:8420",
        "ftp://gpu1",
        "http://user:pass@gpu1",
        "http://gpu1?x",
        "http://[",
        "http://gpu1:port",
        "http://a b",
        "http://gpu1:99999999",
        "file:///etc/passwd",
        "http://a\nb",
        "http://gpu1/#x",
        "http://" + "a" * 300,
    ],
)
def test_what_is_no_url_of_a_daemon_is_refused(server: str) -> None:
    """In a line, with one that would be."""
    ran = run_here("jobs", "--server", server, ADVISOR_TOKEN=TOKEN)
    assert (ran.returncode, ran.stdout, ran.stderr.count("\n")) == (2, "", 1), ran
    assert "advisor: " in ran.stderr
    assert os.sep + "etc" not in ran.stderr or server in ran.stderr

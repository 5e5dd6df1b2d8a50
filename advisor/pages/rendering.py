"""Rendering: page data -> one HTML text. The only place of Jinja2 and of plotly.

A page that is written to a file has its scripts in it, and needs nothing but a browser. The same page served by a daemon names
them, so that a browser keeps plotly's 5 MB, and follows what changes.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from advisor.pages.board import Board, JobPage
from advisor.pages.compared_figure import compared_figure
from advisor.pages.comparison import ComparedStudies
from advisor.pages.figures import blocks_figure, memory_figure, path_figure, quality_figure
from advisor.pages.live import Live
from advisor.pages.study_report import StudyReport
from advisor.pages.winners import WinnersMap, letter
from advisor.storage.study_record import StudyRecord
from advisor.terminal import gib, printable
from advisor.version import __version__

if TYPE_CHECKING:
    from jinja2 import Environment


#: What a page may do, beside running its scripts. Plotly styles its charts in place.
_POLICY = (
    "default-src 'none'; script-src {scripts}; style-src 'unsafe-inline'; img-src data: blob:; base-uri 'none'; {more}"
)

#: A page's own scripts, by their files: every page has the first, a served one both.
_SCRIPTS, _LIVE_SCRIPTS = ("page.js",), ("page.js", "live.js")


def report_html(report: StudyReport, live: Live | None = None) -> str:
    """Return the page of one study. live: as a daemon serves it, None for a page that stands alone."""
    return _page("report.html", _figures(report), live, title=report.title, report=report)


def compared_html(page: ComparedStudies) -> str:
    """Return the page of two studies beside each other."""
    return _page("compare.html", {"both": compared_figure(page)}, None, title=page.title, page=page)


def map_html(page: WinnersMap, live: Live | None = None) -> str:
    """Return the page of what wins where. live: as a daemon serves it, None for a page that stands alone."""
    return _page("map.html", {}, live, title=page.title, page=page)


def board_html(page: Board, live: Live) -> str:
    """Return the page of the jobs and the slots."""
    return _page("board.html", {}, live, title=page.title, page=page)


def job_html(page: JobPage, live: Live) -> str:
    """Return the page of a job: how it stands, and the report of its study where there is one."""
    figures = _figures(page.report) if page.report is not None else {}
    return _page("job.html", figures, live, title=page.title, page=page, report=page.report)


def submit_html(given: Mapping[str, str], devices: Sequence[str], tiers: Sequence[str], error: str, live: Live) -> str:
    """Return the form that submits a job. given: what was typed; devices, tiers: what can be asked; error: "" or why not."""
    return _page("submit.html", {}, live, title="Submit a job", given=given, devices=devices, tiers=tiers, error=error)


def studies_html(
    studies: Sequence[StudyRecord], newer: str | None, older: str | None, live: Live, damaged: Sequence[str] = ()
) -> str:
    """Return the list of studies, the newest first. newer, older: the pages beside this one; damaged: what is left out."""
    told = {"studies": studies, "newer": newer, "older": older, "damaged": damaged}
    return _page("studies.html", {}, live, title="Studies", **told)


def message_html(title: str, text: str, hint: str, live: Live) -> str:
    """Return a page that says something in a line: what is wrong, or what is not there yet."""
    return _page("message.html", {}, live, title=title, text=text, hint=hint)


def api_html(description: Mapping[str, Any], live: Live) -> str:
    """Return a page of an API's description (OpenAPI) that needs no other host."""
    return _page("api.html", {}, live, title="The API", description=description)


def _figures(report: StudyReport) -> dict[str, Any]:
    return {
        "memory": memory_figure(report),
        "quality": quality_figure(report),
        "blocks": blocks_figure(report),
        "path": path_figure(report),
    }


def _page(template: str, figures: dict[str, Any], live: Live | None, **values: Any) -> str:
    """Return a template filled in. figures: by the name of their place in it, None for those that there are not."""
    drawn = {name: figure for name, figure in figures.items() if figure is not None}
    needs_plotly = bool(drawn) or (live is not None and live.changes and bool(figures))
    texts, sources, policy = _standing_alone(needs_plotly) if live is None else _served(needs_plotly)
    return (
        _templates()
        .get_template(template)
        .render(
            figures=drawn,
            texts=texts,
            sources=sources,
            policy=policy,
            live=live,
            style=_own("page.css"),
            version=__version__,
            **values,
        )
    )


def _standing_alone(needs_plotly: bool) -> tuple[list[str], list[str], str]:
    """Return the scripts of a page that needs nothing but a browser, no place of any, and its policy."""
    texts = [*([_plotly()] if needs_plotly else []), *map(_own, _SCRIPTS)]
    hashes = " ".join(f"'sha256-{_hash(text)}'" for text in texts)
    return texts, [], _POLICY.format(scripts=hashes, more="form-action 'none'")


def _served(needs_plotly: bool) -> tuple[list[str], list[str], str]:
    """Return no script, the places of those of a page that a daemon serves, and its policy."""
    names = [*([_PLOTLY] if needs_plotly else []), *_LIVE_SCRIPTS]
    policy = _POLICY.format(scripts="'self'", more="connect-src 'self'; form-action 'self'")
    return [], [f"/static/{_place(name)}" for name in names], policy


_PLOTLY = "plotly"


def static_script(place: str) -> str | None:
    """Return the script that a served page finds in /static/ at a place, None where there is none.

    What is there at one place never changes: its version, or a digest of it, is in the name.
    """
    found = next((name for name in (_PLOTLY, *_LIVE_SCRIPTS) if _place(name) == place), None)
    return None if found is None else _script(found)


def _script(name: str) -> str:
    return _plotly() if name == _PLOTLY else _own(name)


@cache
def _place(name: str) -> str:
    """Return what a script is called in /static/."""
    if name == _PLOTLY:
        from plotly.offline import get_plotlyjs_version

        return f"plotly-{get_plotlyjs_version()}.min.js"
    digest = hashlib.sha256(_own(name).encode()).hexdigest()
    return f"{name.removesuffix('.js')}-{digest[:12]}.js"


@cache
def _templates() -> Environment:
    """Return the templates. All that is put in is escaped, and what would turn the reading direction is spelled out."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    templates = Environment(
        loader=PackageLoader("advisor.pages"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: printable(value) if isinstance(value, str) and not hasattr(value, "__html__") else value,
    )
    templates.filters |= {
        "data": _data,
        "gib": gib,
        "verbatim": _verbatim,
        "letter": letter,
        "times": times,
        "coded": coded,
    }
    return templates


def times(ratio: float | None) -> str:
    """Return a ratio for people; the interval of two blocks can reach beyond all that makes sense."""
    if ratio is None:
        return "–"
    return f"{ratio:.3f}" if 0.001 <= ratio < 1000 else f"{ratio:.1e}"


def coded(text: str) -> Any:
    """Return text with what stands between backticks as code. All of it is escaped."""
    from markupsafe import Markup

    parts = printable(text).split("`")
    if len(parts) % 2 == 0:  # one is left over, and means itself
        return text
    return Markup().join(Markup("<code>{}</code>").format(part) if at % 2 else part for at, part in enumerate(parts))


def _verbatim(text: str) -> Any:
    """Return our own script or style as it is: no text of anybody else's may come here."""
    from markupsafe import Markup

    return Markup(text)  # noqa: S704 - files of this package and plotly's bundle alone


def _data(value: Any) -> Any:
    """Return JSON that can stand in a script element: nothing in it ends the element or begins a comment."""
    from markupsafe import Markup

    text = json.dumps(value, allow_nan=False).replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
    return Markup(text)  # noqa: S704 - escaped above


@cache
def _own(name: str) -> str:
    return (files("advisor.pages") / "templates" / name).read_text(encoding="utf-8")


@cache
def _plotly() -> str:
    """Return plotly's script. It holds no end of a script element, which would end it here too."""
    from plotly.offline import get_plotlyjs

    text = str(get_plotlyjs())
    if "</script" in text.lower() or "<!--" in text:
        raise ValueError("this plotly.js can't stand in a page")
    return text


@cache
def _hash(text: str) -> str:
    """Return what the page's policy knows a script by: nothing else is run."""
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()

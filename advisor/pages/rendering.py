"""Rendering: page data -> one HTML text that needs nothing but a browser. The only place of Jinja2 and of plotly."""

from __future__ import annotations

import base64
import hashlib
import json
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from advisor.pages.compared_figure import compared_figure
from advisor.pages.comparison import ComparedStudies
from advisor.pages.figures import blocks_figure, memory_figure, path_figure, quality_figure
from advisor.pages.study_report import StudyReport
from advisor.pages.winners import WinnersMap, letter
from advisor.terminal import gib, printable
from advisor.version import __version__

if TYPE_CHECKING:
    from jinja2 import Environment


def report_html(report: StudyReport) -> str:
    """Return the page of one study."""
    figures = {
        "memory": memory_figure(report),
        "quality": quality_figure(report),
        "blocks": blocks_figure(report),
        "path": path_figure(report),
    }
    return _page("report.html", figures, title=report.title, report=report)


def compared_html(page: ComparedStudies) -> str:
    """Return the page of two studies beside each other."""
    return _page("compare.html", {"both": compared_figure(page)}, title=page.title, page=page)


def map_html(page: WinnersMap) -> str:
    """Return the page of what wins where."""
    return _page("map.html", {}, title=page.title, page=page)


def _page(template: str, figures: dict[str, Any], **values: Any) -> str:
    """Return a template filled in. figures: by the name of their place in it, None for those that there are not."""
    drawn = {name: figure for name, figure in figures.items() if figure is not None}
    scripts = {"plotly": _plotly() if drawn else "", "own": _own("page.js")}
    return (
        _templates()
        .get_template(template)
        .render(
            figures=drawn,
            scripts=scripts,
            hashes=" ".join(f"'sha256-{_hash(text)}'" for text in scripts.values() if text),
            style=_own("page.css"),
            version=__version__,
            **values,
        )
    )


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
    templates.filters |= {"data": _data, "gib": gib, "verbatim": _verbatim, "letter": letter, "times": times}
    return templates


def times(ratio: float | None) -> str:
    """Return a ratio for people; the interval of two blocks can reach beyond all that makes sense."""
    if ratio is None:
        return "–"
    return f"{ratio:.3f}" if 0.001 <= ratio < 1000 else f"{ratio:.1e}"


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

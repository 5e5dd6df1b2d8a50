"""What all charts are drawn with: marks, labels, axes and layout, as plotly's JSON. Colours are names of the page's own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from advisor.pages.points import Role
from advisor.terminal import printable

Figure = dict[str, Any]

#: How each role is drawn: plotly's symbol, the page's colour, and the size in pixels.
MARKS: dict[Role, tuple[str, str, int]] = {
    Role.RIGHT: ("circle", "--right", 9),
    Role.REJECTED: ("x", "--rejected", 9),
    Role.DEFAULT: ("square", "--default", 13),
    Role.CHOSEN: ("star", "--chosen", 17),
}

#: Characters of a configuration that a chart's label shows; its table has all of them.
_LABEL = 44


def plain(text: str) -> str:
    """Return text that plotly takes as it is: it would read tags in it."""
    return printable(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def short(text: str) -> str:
    """Return a configuration as a chart's label has it."""
    return plain(text if len(text) <= _LABEL else f"{text[: _LABEL - 1]}…")


def memory_unit(sizes: Sequence[float]) -> tuple[str, int]:
    """Return the unit that bytes are drawn in, and how many it is."""
    return ("GiB", 2**30) if max(sizes, default=0) >= 2**30 else ("MiB", 2**20)


def label(place: tuple[float, float], words: str, *, is_left: bool, is_up: bool) -> Figure:
    """Return a label beside its point. is_left: whether the point is in the left half; is_up: above it, for two may be close."""
    return {
        "x": place[0],
        "y": place[1],
        "text": f"<b>{words}</b>",
        "align": "left",
        "showarrow": True,
        "arrowcolor": "--ink",
        "arrowwidth": 1,
        "arrowhead": 0,
        "standoff": 8,
        "ax": 18 if is_left else -18,
        "ay": -30 if is_up else 30,
        "xanchor": "left" if is_left else "right",
        "font": {"color": "--ink", "size": 13},
    }


def padded(values: Sequence[float], *, is_log: bool = False, room: float = 0.14) -> list[float]:
    """Return the range of an axis, or of its logarithm. room: for marks at both ends, as a share of its span."""
    shown = [math.log10(value) for value in values] if is_log else list(values)
    low, high = min(shown), max(shown)
    more = room * (high - low) or 0.1 * abs(high) or 1.0
    return [low - more, high + more]


def log_axis(title: str, reach: Sequence[float]) -> Figure:
    """Return a logarithmic axis, with some whole powers of ten. reach: its ends, as logarithms."""
    every = max(1, math.ceil((reach[1] - reach[0]) / 6))
    plain_axis = {name: value for name, value in axis(title).items() if name != "nticks"}
    return {**plain_axis, "type": "log", "exponentformat": "power", "dtick": every, "range": list(reach)}


def axis(title: str) -> Figure:
    """Return an axis with its title."""
    return {
        "title": {"text": plain(title), "font": {"color": "--ink", "size": 13}, "standoff": 8},
        "color": "--ink",
        "gridcolor": "--line",
        "zeroline": False,
        "automargin": True,
        "fixedrange": True,
        "nticks": 6,
        "tickfont": {"color": "--ink", "size": 12},
    }


def layout(height: int) -> Figure:
    """Return the layout of a chart so many pixels high: its ground is the page's."""
    return {
        "height": height,
        "showlegend": False,
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"family": "system-ui, sans-serif", "color": "--ink"},
        "margin": {"l": 56, "r": 14, "t": 14, "b": 52},
        "dragmode": False,
        "hoverlabel": {"bgcolor": "--paper", "bordercolor": "--ink", "font": {"color": "--ink"}},
    }

"""What all charts are drawn with: marks, labels, axes and layout, as plotly's JSON. Colours are names of the page's own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product
from typing import Any

from advisor.pages.points import Role
from advisor.terminal import printable

Figure = dict[str, Any]

#: Where something is in a chart, in the axes' own values or in pixels; and the left, right, top and bottom of a label in pixels.
Place = tuple[float, float]
Box = tuple[float, float, float, float]

#: The width and height of a chart's inside on the narrowest screen, in pixels: labels are placed for that.
_NARROW = (256, 300)

#: How each role is drawn: plotly's symbol, the page's colour, and the size in pixels.
MARKS: dict[Role, tuple[str, str, int]] = {
    Role.RIGHT: ("circle", "--right", 9),
    Role.REJECTED: ("x", "--rejected", 9),
    Role.DEFAULT: ("square", "--default", 13),
    Role.CHOSEN: ("star", "--chosen", 17),
}

#: What is less than this is written with a power of ten.
_SMALL = 0.01

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


def labels(
    wanted: Sequence[tuple[Place, str]], points: Sequence[Place], x_range: Sequence[float], y_range: Sequence[float]
) -> list[Figure]:
    """Return labels beside their points, each where the fewest points and labels are in its way on a narrow screen.

    wanted: a place and its words, lines parted by <br>; points: all places of the chart.
    """

    def pixel(place: Place) -> Place:
        x, y = ((at - low) / (high - low) for at, (low, high) in zip(place, (x_range, y_range), strict=True))
        return x * _NARROW[0], (1 - y) * _NARROW[1]

    crowd, found = [pixel(point) for point in points], []
    taken: list[Box] = []
    for place, words in wanted:
        boxes = {offset: _box(pixel(place), offset, words) for offset in product((18, -18), (-30, 30, -56, 56))}
        best = min(boxes, key=lambda offset: _in_the_way(boxes[offset], crowd, taken))
        taken.append(boxes[best])
        found.append(_label(place, words, best))
    return found


def _box(at: Place, offset: tuple[int, int], words: str) -> Box:
    """Return the left, right, top and bottom of a label, in pixels."""
    lines = words.split("<br>")
    width, height = 8 * max(map(len, lines)), 18 * len(lines)
    near = at[0] + offset[0]
    middle = at[1] + offset[1]
    left, right = (near, near + width) if offset[0] > 0 else (near - width, near)
    return left, right, middle - height / 2, middle + height / 2


def _in_the_way(box: Box, crowd: Sequence[Place], taken: Sequence[Box]) -> int:
    """Return how much is in a label's way: the chart's edges and other labels count more than points."""
    left, right, top, bottom = box
    edges = (left < -40) + (right > _NARROW[0]) + (top < -8) + (bottom > _NARROW[1])
    hidden = sum(left < other[1] and other[0] < right and top < other[3] and other[2] < bottom for other in taken)
    return 20 * (edges + hidden) + sum(left - 6 < x < right + 6 and top - 6 < y < bottom + 6 for x, y in crowd)


def _label(place: Place, words: str, offset: tuple[int, int]) -> Figure:
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
        "ax": offset[0],
        "ay": offset[1],
        "xanchor": "left" if offset[0] > 0 else "right",
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


def axis(title: str, reach: Sequence[float] | None = None) -> Figure:
    """Return an axis with its title. reach: its ends; small figures have powers of ten, for nobody reads "320µ" of a ratio."""
    ends = {} if reach is None else {"range": list(reach)}
    small = {"exponentformat": "e"} if reach is not None and max(map(abs, reach)) < _SMALL else {}
    return {
        **ends,
        **small,
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

"""A grouped bar chart as a picture that needs nothing but a viewer: SVG, system fonts, no script, no library.

It stands on a light card of its own, so that it reads the same in a light and in a dark viewer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape, quoteattr

#: The picture's size and the space kept free along its edge, in pixels.
WIDTH, HEIGHT, _EDGE = 900, 480, 18

_FONT = "system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', Arial, sans-serif"
_INK, _FAINT, _GRID, _CARD, _BORDER = "#1f2328", "#59636e", "#d9dee3", "#ffffff", "#d0d7de"

#: Okabe and Ito's colours, which colour-blind people tell apart; grey first, for what the others are held to.
_COLOURS = ("#8c959f", "#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#5c4b8a")

#: Characters' widths over the font size, a little more than DejaVu Sans has, which is a wide font: what fits in it fits.
_NARROW, _WIDE = frozenset(" .,:;|!'()[]·fijlrtI"), frozenset("mwMW@%—…")
_ASPECTS = (0.42, 0.66, 1.02)

#: Font sizes, and the lines that a title, a footer or a group's name may take: what is longer is cut off.
_TITLE, _NAME, _LEGEND, _VALUE, _SMALL = 17, 13, 13, 12, 11
_TITLE_LINES, _FOOTER_LINES, _NAME_LINES = 2, 3, 2

#: Bars are at most this wide, and take this share of a group's width (of which the rest parts it from the next).
_WIDEST_BAR, _FILLED = 72.0, 0.86

Interval = tuple[float, float]


def bar_chart(
    title: str,
    groups: Sequence[str],
    series: Sequence[str],
    values: Sequence[Sequence[float | None]],
    intervals: Sequence[Sequence[Interval | None]],
    unit: str,
    footer: str,
) -> str:
    """Return the SVG of bars side by side: a cluster for every group, in it a bar for every series.

    values[s][g] belongs to series s and group g and is at least 0; None where nothing was measured. intervals[s][g] is
    what its error bar spans, None where it has none. Raises ValueError for tables of other shapes and for other numbers.
    """
    shapes = {(len(series), *(len(row) for row in table)) for table in (values, intervals)}
    if not groups or not series or shapes != {(len(series), *[len(groups)] * len(series))}:
        raise ValueError(f"values and intervals must be {len(series)} × {len(groups)} and not empty")
    bars = [
        _Bar(s, g, value, span)
        for s, (row, spans) in enumerate(zip(values, intervals, strict=True))
        for g, (value, span) in enumerate(zip(row, spans, strict=True))
    ]
    header, top = _header(title, series)
    below, bottom = _footer(footer)
    plot = _Plot.around(bars, (len(series), len(groups)), (top, bottom))
    parts = [*header, *plot.axis(unit)]
    parts += [svg for bar in bars for svg in plot.drawn(bar, series[bar.series], groups[bar.group])]
    parts += [svg for number, name in enumerate(groups) for svg in plot.named(number, name)]
    return _document(title, [*parts, *below])


@dataclass(frozen=True)
class _Bar:
    """One bar: where it stands, how high, and what its error bar spans."""

    series: int
    group: int
    value: float | None
    span: Interval | None

    def __post_init__(self) -> None:
        numbers = [number for number in (self.value, *(self.span or ())) if number is not None]
        if not all(math.isfinite(number) and number >= 0 for number in numbers):
            raise ValueError(f"a bar needs finite numbers that are not negative, not {numbers}")

    @property
    def top(self) -> float:
        """The highest value that has to be drawn."""
        return max(self.value or 0.0, *(self.span or (0.0,)))

    @property
    def label(self) -> str:
        """The value in about three digits."""
        value = self.value
        if value is None:
            return "–"
        if 0 < value < 0.1:
            return f"{value:.2g}"
        return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


@dataclass(frozen=True)
class _Plot:
    """The bars' area in pixels and its scale: `steps` ticks above 0, `step` apart.

    above: where the unit stands; upright: whether values stand upright, because bars are narrower than they are.
    """

    above: float
    left: float
    top: float
    bottom: float
    step: float
    steps: int
    group_width: float
    bar_width: float
    series: int
    upright: bool

    @classmethod
    def around(cls, bars: Sequence[_Bar], counts: tuple[int, int], edges: tuple[float, float]) -> _Plot:
        """Fit it between the header's and the footer's edge. counts: of series and groups."""
        step, steps = _scale(max(bar.top for bar in bars))
        left = _EDGE + max(_width(_tick(step * n, step), _SMALL) for n in range(steps + 1)) + 8
        group_width = (WIDTH - _EDGE - left) / counts[1]
        bar_width = min(_FILLED * group_width / counts[0], _WIDEST_BAR)
        widest = max(_width(bar.label, _VALUE) for bar in bars)
        upright = widest > bar_width - 2
        above = edges[0] + _SMALL
        top = above + (widest if upright else _VALUE) + 12
        bottom = edges[1] - _NAME_LINES * 1.3 * _NAME - 8
        return cls(above, left, top, bottom, step, steps, group_width, bar_width, counts[0], upright)

    def y(self, value: float) -> float:
        """Return where a value stands."""
        return self.bottom - (self.bottom - self.top) * value / (self.step * self.steps)

    def axis(self, unit: str) -> list[str]:
        """Return the grid, the ticks' texts and the unit above them."""
        parts = [_text((_EDGE, self.above), _cut(unit, WIDTH - 2 * _EDGE, _SMALL), _SMALL, fill=_FAINT)]
        for n in range(self.steps + 1):
            y, colour = self.y(n * self.step), _GRID if n else _FAINT
            parts.append(_line((self.left, y), (WIDTH - _EDGE, y), colour))
            parts.append(_text((self.left - 6, y + 4), _tick(n * self.step, self.step), _SMALL, "end", fill=_FAINT))
        return parts

    def drawn(self, bar: _Bar, series: str, group: str) -> list[str]:
        """Return a bar with its error bar, its value above, and its words for those who point at it."""
        cluster = self.left + (bar.group + 0.5) * self.group_width - self.series * self.bar_width / 2
        x, width, parts = cluster + bar.series * self.bar_width, self.bar_width - 2, []
        middle = x + width / 2
        if bar.value is not None:
            words = f"{group}, {series}: {bar.label}"
            words += f" ({bar.span[0]:.4g}–{bar.span[1]:.4g})" if bar.span else ""
            parts.append(
                f'<rect x="{x:.1f}" y="{self.y(bar.value):.2f}" width="{width:.1f}" '
                f'height="{self.bottom - self.y(bar.value):.2f}" fill="{_COLOURS[bar.series % len(_COLOURS)]}">'
                f"<title>{escape(_clean(words))}</title></rect>"
            )
        if bar.span is not None:
            low, high, cap = self.y(bar.span[0]), self.y(bar.span[1]), min(5.0, width / 4)
            parts += [_line((middle, low), (middle, high), _INK, 1.5)]
            parts += [_line((middle - cap, y), (middle + cap, y), _INK, 1.5) for y in (low, high)]
        y = self.y(bar.top) - 5
        fill = _INK if bar.value is not None else _FAINT
        if self.upright and bar.value is not None:
            return [*parts, _text((middle + 4, y), bar.label, _VALUE, fill=fill, turned=True)]
        return [*parts, _text((middle, y), bar.label, _VALUE, "middle", fill=fill)]

    def named(self, group: int, name: str) -> list[str]:
        """Return the lines of a group's name under its bars."""
        lines = _wrapped(name, self.group_width - 8, _NAME, _NAME_LINES)
        x = self.left + (group + 0.5) * self.group_width
        return [_text((x, self.bottom + 1.3 * _NAME * (n + 1)), line, _NAME, "middle") for n, line in enumerate(lines)]


def _header(title: str, series: Sequence[str]) -> tuple[list[str], float]:
    """Return the title and the legend, and the edge below them."""
    y, parts = float(_EDGE), []
    for line in _wrapped(title, WIDTH - 2 * _EDGE, _TITLE, _TITLE_LINES, bold=True):
        y += 1.25 * _TITLE
        parts.append(_text((_EDGE, y), line, _TITLE, bold=True))
    x, y = float(_EDGE), y + 1.9 * _LEGEND
    for number, name in enumerate(series):
        shown = _cut(name, WIDTH - 2 * _EDGE - 20, _LEGEND)
        width = 20 + _width(shown, _LEGEND)
        if x > _EDGE and x + width > WIDTH - _EDGE:
            x, y = float(_EDGE), y + 1.5 * _LEGEND
        parts.append(
            f'<rect x="{x:.1f}" y="{y - 11:.1f}" width="13" height="13" fill="{_COLOURS[number % len(_COLOURS)]}"/>'
        )
        parts.append(_text((x + 19, y), shown, _LEGEND))
        x += width + 14
    return parts, y + 1.3 * _LEGEND


def _footer(text: str) -> tuple[list[str], float]:
    """Return the lines at the bottom, and the edge above them."""
    lines = _wrapped(text, WIDTH - 2 * _EDGE, _SMALL, _FOOTER_LINES)
    top = HEIGHT - _EDGE + 4 - 1.4 * _SMALL * (len(lines) - 1)
    return [_text((_EDGE, top + 1.4 * _SMALL * n), line, _SMALL, fill=_FAINT) for n, line in enumerate(lines)], top - 14


def _scale(highest: float) -> tuple[float, int]:
    """Return a round step, 1, 2 or 5 times a power of ten, and how many of them reach the highest value: four to ten."""
    if highest < 1e-6:
        return 0.2, 5  # nothing that could be seen
    power = 10.0 ** math.floor(math.log10(highest / 4))
    step = max(factor * power for factor in (1.0, 2.0, 5.0) if factor * power <= highest / 4 * (1 + 1e-9))
    return step, math.ceil(highest / step - 1e-9)


def _tick(value: float, step: float) -> str:
    return f"{value:,.{max(0, -math.floor(math.log10(step) + 1e-9))}f}"


def _width(text: str, size: float, *, bold: bool = False) -> float:
    wide = sum(character in _WIDE or character > "\u2e80" for character in text)  # from there on scripts are wide
    narrow = sum(character in _NARROW for character in text)
    parts = zip((narrow, len(text) - narrow - wide, wide), _ASPECTS, strict=True)
    return sum(count * aspect for count, aspect in parts) * size * (1.12 if bold else 1.0)


def _cut(text: str, width: float, size: float, *, bold: bool = False) -> str:
    """Return a text that fits into a width, its end cut off if need be."""
    text = _clean(text)
    if _width(text, size, bold=bold) <= width:
        return text
    while text and _width(text + "…", size, bold=bold) > width:
        text = text[:-1]
    return text + "…"


def _wrapped(text: str, width: float, size: float, most: int, *, bold: bool = False) -> list[str]:
    """Return a text in at most so many lines of a width."""
    lines: list[str] = []
    words = _clean(text).split()
    while words and len(lines) < most - 1:
        count = 1
        while count < len(words) and _width(" ".join(words[: count + 1]), size, bold=bold) <= width:
            count += 1
        lines.append(_cut(" ".join(words[:count]), width, size, bold=bold))
        words = words[count:]
    return [*lines, _cut(" ".join(words), width, size, bold=bold)] if words else lines


def _clean(text: str) -> str:
    """Return a text on one line without what XML can't hold."""
    return "".join(character for character in " ".join(text.split()) if character.isprintable())


def _text(
    place: tuple[float, float],
    text: str,
    size: float,
    anchor: str = "start",
    *,
    fill: str = _INK,
    bold: bool = False,
    turned: bool = False,
) -> str:
    x, y = place
    more = ' font-weight="600"' if bold else ""
    more += f' transform="rotate(-90 {x:.1f} {y:.1f})"' if turned else ""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}" fill="{fill}"{more}>'
        f"{escape(_clean(text))}</text>"
    )


def _line(start: tuple[float, float], end: tuple[float, float], colour: str, width: float = 1.0) -> str:
    (x1, y1), (x2, y2) = start, end
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}" stroke-width="{width}"/>'


def _document(title: str, parts: Sequence[str]) -> str:
    name = quoteattr(_clean(title))
    card = f'<rect x="0.5" y="0.5" width="{WIDTH - 1}" height="{HEIGHT - 1}" rx="6" fill="{_CARD}" stroke="{_BORDER}"/>'
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
        f'role="img" aria-label={name} font-family="{_FONT}">'
    )
    return "\n".join([head, card, *parts, "</svg>"]) + "\n"

"""The chart's promises: valid SVG whatever the words, bars as high as their values, and nothing outside the picture."""

from __future__ import annotations

import re
from itertools import pairwise
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from advisor.show.chart import HEIGHT, WIDTH, _width, bar_chart

SVG = "{http://www.w3.org/2000/svg}"

GROUPS = ["256 tokens, 30 % padding", "4096 tokens, no padding"]
SERIES = ["eager", "sdpa", "flash_attention_2"]
VALUES: list[list[float | None]] = [[1.0, 1.0], [1.1, 0.5], [1.2, 3.66]]
INTERVALS: list[list[tuple[float, float] | None]] = [[None, None], [(1.0, 1.2), (0.4, 0.6)], [(1.1, 1.3), (3.5, 4.25)]]


def drawn(svg: str) -> ET.Element:
    """Parse a chart."""
    return ET.fromstring(svg)


def bars(root: ET.Element) -> list[ET.Element]:
    """Return the bars: the rectangles that say what they are."""
    return [rect for rect in root.iter(f"{SVG}rect") if rect.find(f"{SVG}title") is not None]


def number(element: ET.Element, name: str) -> float:
    """Return an attribute's number."""
    return float(element.attrib[name])


def boxes(root: ET.Element) -> list[tuple[float, float, float, float]]:
    """Return left, top, right and bottom of every text, by the widths that the chart reckons with."""
    found = []
    for text in root.iter(f"{SVG}text"):
        size, x, y = (number(text, name) for name in ("font-size", "x", "y"))
        width = _width(text.text or "", size, bold="font-weight" in text.attrib)
        left = x - {"start": 0.0, "middle": width / 2, "end": width}[text.attrib["text-anchor"]]
        box = (left, y - size, left + width, y + 0.3 * size)
        if "transform" in text.attrib:  # a quarter turn to the left around its start
            box = (x - size, y - width, x + 0.3 * size, y)
        found.append(box)
    return found


def chart(title: str = "Speed", footer: str = "One H200.") -> str:
    """Draw the example."""
    return bar_chart(title, GROUPS, SERIES, VALUES, INTERVALS, "times eager", footer)


def test_bars_are_as_high_as_their_values() -> None:
    """Every measured value has a bar whose height is proportional to it, and all stand on one line."""
    found = bars(drawn(chart()))
    expected = [value for row in VALUES for value in row if value is not None]
    scales = [number(bar, "height") / value for bar, value in zip(found, expected, strict=True)]

    assert max(scales) - min(scales) < 0.05
    assert scales[0] * 3.66 > HEIGHT / 3  # and they fill the picture
    assert len({round(number(bar, "y") + number(bar, "height"), 1) for bar in found}) == 1


def test_error_bars_span_their_intervals() -> None:
    """An error bar's ends stand where bars of those heights would end."""
    root = drawn(chart())
    bar = bars(root)[-1]
    bottom, scale = number(bar, "y") + number(bar, "height"), number(bar, "height") / 3.66
    middle = number(bar, "x") + number(bar, "width") / 2
    spans = [
        sorted((bottom - number(line, y)) / scale for y in ("y1", "y2"))
        for line in root.iter(f"{SVG}line")
        if number(line, "x1") == number(line, "x2") == pytest.approx(middle, abs=0.1)
    ]

    assert spans == [pytest.approx([3.5, 4.25], abs=0.01)]


def test_values_names_legend_and_unit_are_written() -> None:
    """What a reader needs stands there: title, groups, series, the values, round ticks, the unit and the footer."""
    texts = [text.text or "" for text in drawn(chart()).iter(f"{SVG}text")]

    assert {"Speed", *GROUPS, *SERIES, "3.66", "0.50", "times eager", "One H200."} <= set(texts)
    assert [text for text in texts if re.fullmatch(r"\d", text)] == ["0", "1", "2", "3", "4", "5"]


def test_what_was_not_measured_has_no_bar() -> None:
    """None is a dash, not a bar of height 0."""
    root = drawn(bar_chart("t", ["g"], ["a", "b"], [[None], [2.0]], [[None], [None]], "s", ""))

    assert len(bars(root)) == 1
    assert "–" in [text.text for text in root.iter(f"{SVG}text")]


def test_words_are_escaped() -> None:
    """Markup in a name is shown as it is, in the picture and in the title for readers aloud."""
    name = "<b>\"a\" & 'b'</b>"
    root = drawn(bar_chart(name, [name], [name], [[1.0]], [[None]], name, name))

    assert root.attrib["aria-label"] == name
    assert [text.text for text in root.iter(f"{SVG}text")].count(name) == 5


def test_narrow_bars_have_upright_values_that_do_not_touch() -> None:
    """Where values are wider than bars they stand upright, side by side."""
    row: list[float | None] = [1234567.0, 36238.0, 9.5] * 3
    root = drawn(bar_chart("t", ["name"] * 9, list("abcd"), [row] * 4, [[None] * 9] * 4, "tokens/s", "f"))
    turned = sorted(
        box for box, text in zip(boxes(root), root.iter(f"{SVG}text"), strict=True) if "transform" in text.attrib
    )

    assert len(turned) == 36
    assert all(right < next_left for (_, _, right, _), (next_left, *_) in pairwise(turned))


def test_other_shapes_and_numbers_are_refused() -> None:
    """Tables that do not fit the names, and numbers that no bar can have, raise ValueError."""
    for values in ([[1.0]], [[1.0], [2.0]], [[1.0, 2.0], [1.0]], [[1.0, float("nan")]], [[-1.0, 2.0]], [[1e400, 2.0]]):
        with pytest.raises(ValueError, match=r"must be|not"):
            bar_chart("t", ["g", "h"], ["s"], values, [[None, None]], "u", "f")
    with pytest.raises(ValueError, match="empty"):
        bar_chart("t", [], [], [], [], "u", "f")


words = st.text(max_size=120)
heights = st.floats(0, 1e9) | st.none()


@settings(max_examples=60, deadline=None)
@given(words, st.lists(words, min_size=1, max_size=6), st.lists(words, min_size=1, max_size=5), words, st.data())
def test_everything_stays_inside(
    title: str, groups: list[str], series: list[str], footer: str, data: st.DataObject
) -> None:
    """Whatever the words and values, it is well-formed XML, and every bar, line and text is inside the picture."""
    values = [[data.draw(heights) for _ in groups] for _ in series]
    spans = [[None if v is None else (v * 0.9, v * 1.1) for v in row] for row in values]
    root = drawn(bar_chart(title, groups, series, values, spans, title, footer))

    assert root.attrib["viewBox"] == f"0 0 {WIDTH} {HEIGHT}"
    for left, top, right, bottom in boxes(root):
        assert left >= 0
        assert top >= 0
        assert right <= WIDTH
        assert bottom <= HEIGHT
    for bar in bars(root):
        assert 0 <= number(bar, "x") <= WIDTH - number(bar, "width")
        assert 0 <= number(bar, "y") <= HEIGHT - number(bar, "height")
